"""Whole runs of a small prior, in this process: it learns, resumes bit for bit, and ends with one line."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cosine_similarity

from gen1_train.batch import Pool, Sample
from gen1_train.data.manifest import Manifest
from gen1_train.data.pairs import PairsConfig
from gen1_train.diffusion.prior import PriorSamplingConfig
from gen1_train.errors import STOPPED, UserError
from gen1_train.model.prior import PriorConfig
from gen1_train.reporting.rows import read_metrics
from gen1_train.system.signals import StopRequest
from gen1_train.training import session
from gen1_train.training.checkpoints.checkpoint import CheckpointConfig, latest
from gen1_train.training.checkpoints.ema import EmaConfig
from gen1_train.training.prior.checkpoint import read_prior
from gen1_train.training.prior.config import PriorOptimConfig, PriorStageConfig, PriorTrainConfig, PriorValidationConfig
from gen1_train.training.prior.run import train_prior
from gen1_train.training.stages import read_recorded
from tests.made import WIDTH, make_sample, make_shard_set
from tests.made_checkpoint import write_checkpoint
from tests.running import run

STEPS = 60
ROTATION = np.linalg.qr(np.random.default_rng(5).standard_normal((WIDTH, WIDTH)))[0]


def rotated_sample(key: str, pool: Pool, seed: int) -> Sample:
    """The image embedding is the text embedding, rotated, with a part that all share and a little noise."""
    sample = make_sample(key, pool, seed)
    assert sample.text_embedding is not None and sample.image_embedding is not None
    low = sample.text_embedding.copy()
    low[4:] = 0  # few directions, which few pairs suffice to learn
    image = 2 * low @ ROTATION + ROTATION[-1] + 0.1 * sample.image_embedding
    return replace(sample, text_embedding=low, image_embedding=image.astype(np.float16))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shard_set(tmp_path_factory.mktemp("prior") / "set", clips=10, images=290, make=rotated_sample)


def settings(shards: Path, output: Path, steps: int = STEPS) -> PriorTrainConfig:
    config = PriorTrainConfig(
        PriorStageConfig("prior", steps),
        output=str(output),
        prior=PriorConfig(width=32, layers=1, heads=2),
        data=PairsConfig(str(shards), batch=64),
        optim=PriorOptimConfig(lr=5e-3, warmup_steps=5, schedule="cosine"),
        ema=EmaConfig([0.9]),
        sampling=PriorSamplingConfig(steps=8, candidates=2),
        validation=PriorValidationConfig(every=30),
        checkpoint=CheckpointConfig(every=1000, keep=10),
    )
    config.trainer.accelerator = "cpu"
    config.trainer.precision = "32-true"
    config.log.wandb = "disabled"
    config.log.every = 5
    return config


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished prior."""
    config = settings(shards, tmp_path_factory.mktemp("trained"))
    assert train_prior(config) == 0
    return config.tree / "prior"


def test_it_beats_both_baselines_on_held_out_pairs(trained: Path) -> None:
    row = read_metrics(trained / "metrics.csv")[-1]
    score = {name: float(value) for name, value in row.items() if value and name.startswith("val_")}
    assert score["val_cosine_ema"] > 0.7
    assert score["val_cosine_ema"] > 0.3 + max(score["val_cosine_text"], score["val_cosine_mean_image"])
    assert score["val_own_ema"] > 3 * max(score["val_own_text"], score["val_own_mean_image"])
    checkpoint = latest(trained)
    assert checkpoint is not None and checkpoint.info.finished and checkpoint.info.step == STEPS
    assert sorted(checkpoint.info.files) == [
        "config.yaml",
        "ema_0.9.safetensors",
        "optimizer.safetensors",
        "prior.safetensors",
    ]


def test_a_finished_run_is_not_trained_again(trained: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path for path in trained.rglob("*"))
    assert train_prior(settings(shards, trained.parents[1])) == 0
    out = capsys.readouterr().out
    assert "the prior is finished already" in out and "settings differ" not in out
    assert sorted(path for path in trained.rglob("*")) == before


def test_a_finished_run_names_the_settings_that_differ(
    trained: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(shards, trained.parents[1])
    config.optim.lr *= 2
    config.prior.layers += 1
    assert train_prior(config) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "settings differ" in line]
    assert "warning: settings differ from those of" in line and "name= starts another run" in line
    changes = f"prior.layers: {config.prior.layers - 1} -> {config.prior.layers}, optim.lr: {config.optim.lr / 2} -> "
    assert line.endswith(f"{changes}{config.optim.lr}")


def test_a_stopped_run_resumes_bit_for_bit(
    trained: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is stopped twice, each time in the first step after its start, equals `trained`."""
    config = settings(shards, tmp_path)
    request = StopRequest()
    request.signal_name = "SIGUSR1"
    for step in (1, 2):
        monkeypatch.setattr(session, "STOP", request)
        assert train_prior(config) == STOPPED
        stopped = latest(config.tree / "prior")
        assert stopped is not None and (stopped.info.step, stopped.info.finished) == (step, False)
        assert (
            f"the prior was stopped after step {step}: {stopped.path}; call again to resume" in capsys.readouterr().out
        )
    monkeypatch.setattr(session, "STOP", StopRequest())
    assert train_prior(config) == 0
    straight, other = latest(trained), latest(config.tree / "prior")
    assert straight is not None and other is not None
    for file in ("prior.safetensors", "ema_0.9.safetensors", "optimizer.safetensors"):
        assert (other.path / file).read_bytes() == (straight.path / file).read_bytes(), file
    cosines = [
        [row[name] for row in read_metrics(run_folder / "metrics.csv") for name in row if name.startswith("val_")]
        for run_folder in (trained, config.tree / "prior")
    ]
    assert cosines[0] == cosines[1]


def test_a_prior_is_a_function_of_text_and_seed(trained: Path, shards: Path) -> None:
    """Bit for bit, whatever the number of texts; `clip` is the set's record of its CLIP."""
    prior = read_prior(trained, "cpu")
    texts = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))
    embeddings = prior(texts, seed=4)
    assert embeddings.shape == (3, WIDTH) and embeddings.dtype == torch.float32 and embeddings.isfinite().all()
    assert torch.equal(prior(texts[1:2], seed=4), embeddings[1:2])
    assert torch.allclose(prior(3 * texts, seed=4), embeddings, atol=1e-4)
    assert cosine_similarity(prior(texts, seed=5), embeddings).max() < 0.99999
    assert torch.allclose(embeddings.norm(dim=-1), embeddings.norm(dim=-1)[0].expand(3))
    assert prior.clip == Manifest.load(shards).estimators["clip"]
    first = load_file(latest(trained).path / "ema_0.9.safetensors")  # type: ignore[union-attr]
    assert torch.equal(first["out.weight"], prior.network.out.weight)


def test_another_width_is_refused(trained: Path) -> None:
    with pytest.raises(UserError, match="trained with a CLIP of width 64"):
        read_prior(trained)(torch.zeros(1, 768), seed=0)


def test_a_prior_and_a_stage_are_told_apart(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is of stage 5, not of a prior"):
        read_prior(write_checkpoint(tmp_path / "stage5"))
    checkpoint = latest(trained)
    assert checkpoint is not None
    with pytest.raises(UserError, match=r"holds prior\.safetensors, not a video model"):
        read_recorded(checkpoint)


def test_a_damaged_checkpoint_is_refused(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, tmp_path, steps=1)
    train_prior(config)
    checkpoint = latest(config.tree / "prior")
    assert checkpoint is not None
    with open(checkpoint.path / "ema_0.9.safetensors", "r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        stream.write(b"\x01\x02\x03\x04")
    with pytest.raises(UserError, match=r"is damaged: ema_0\.9\.safetensors"):
        read_prior(checkpoint.path)


def test_another_clip_and_other_pairs_are_refused(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, tmp_path, steps=1)
    train_prior(config)
    again = replace(config, stage=PriorStageConfig("prior", 2))
    with pytest.raises(UserError, match="was trained on other pairs"):
        train_prior(replace(again, data=replace(config.data, held_out=3)))
    manifest = Manifest.load(shards)
    manifest.estimators["clip"]["fingerprint"] = "other"
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "shards").symlink_to(shards / "shards")
    manifest.save(tmp_path / "set")
    with pytest.raises(UserError, match="made with another CLIP than"):
        train_prior(replace(again, data=replace(config.data, root=str(tmp_path / "set"))))


def test_a_gradient_that_is_not_finite_ends_the_run_and_saves_nothing(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, tmp_path)
    config.optim = PriorOptimConfig(lr=1e30, warmup_steps=0)
    with pytest.raises(UserError, match=r"the gradient of step .* is not finite: .* lower optim"):
        train_prior(config)
    assert latest(config.tree / "prior") is None


def test_check_only_writes_nothing(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_prior(replace(settings(shards, tmp_path), check_only=True)) == 0
    printed = capsys.readouterr().out
    assert "300 of 300 samples" in printed and f"the prior can run from step 0 to {STEPS}" in printed
    assert list(tmp_path.iterdir()) == []


def test_more_processes_than_one_are_refused(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would all write to one run folder."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match="4 processes were started"):
        train_prior(settings(shards, tmp_path))


def test_a_missing_set_is_reported_with_its_setting(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, tmp_path)
    with pytest.raises(UserError, match=r"data\.root is not given"):
        train_prior(replace(config, data=PairsConfig()))
    with pytest.raises(UserError, match="is not on this machine: copy the set"):
        train_prior(replace(config, data=PairsConfig("s3://bucket/set")))


@pytest.mark.slow
def test_the_command_prints_one_line_for_a_mistake(shards: Path, tmp_path: Path) -> None:
    common = [
        "stage=prior",
        "prior_model=tiny",
        f"data.root={shards}",
        "data.batch=64",
        "trainer.accelerator=cpu",
        f"output={tmp_path}",
        "log.wandb=disabled",
        "log.every=1",
        "stage.steps=100000",
        "validation.every=0",
    ]
    refused = run("gen1_train.train", *common, "plan_only=true")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert (
        refused.stderr.startswith("gen1-train: error: there is no setting plan_only")
        and refused.stderr.count("\n") == 1
    )
