"""Whole runs of the prior at miniature size, in this process: it learns, goes on to the bit, and ends in one line."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cosine_similarity

from gen1_train.batch import Pool, Sample
from gen1_train.data.pairs import PairsConfig
from gen1_train.data.shards import Manifest
from gen1_train.diffusion.prior import PriorSamplingConfig
from gen1_train.errors import UserError
from gen1_train.exits import STOPPED
from gen1_train.model.prior import PriorConfig
from gen1_train.stop import StopRequest
from gen1_train.training import prior_run
from gen1_train.training.checkpoint import CheckpointConfig, latest
from gen1_train.training.ema import EmaConfig
from gen1_train.training.metrics import read_metrics
from gen1_train.training.prior_checkpoint import read_prior
from gen1_train.training.prior_config import PriorOptimConfig, PriorStageConfig, PriorTrainConfig, PriorValidationConfig
from gen1_train.training.prior_run import train_prior
from gen1_train.training.stages import read_recorded
from tests.made import WIDTH, make_sample, make_shard_set
from tests.made_checkpoint import write_checkpoint
from tests.running import run, signal_when

STEPS = 60
TURN = np.linalg.qr(np.random.default_rng(5).standard_normal((WIDTH, WIDTH)))[0]


def turned(key: str, pool: Pool, seed: int) -> Sample:
    """An image embedding is its text's, turned, beside a part that all share and a little noise."""
    sample = make_sample(key, pool, seed)
    assert sample.text_embedding is not None and sample.image_embedding is not None
    low = sample.text_embedding.copy()
    low[4:] = 0  # few directions, so that few pairs tell of them
    image = 2 * low @ TURN + TURN[-1] + 0.1 * sample.image_embedding
    return replace(sample, text_embedding=low, image_embedding=image.astype(np.float16))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shard_set(tmp_path_factory.mktemp("prior") / "set", clips=10, images=290, make=turned)


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
    config.trainer.accelerator, config.trainer.precision = "cpu", "32-true"
    config.log.wandb, config.log.every = "disabled", 5
    return config


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished prior."""
    config = settings(shards, tmp_path_factory.mktemp("trained"))
    assert train_prior(config) == 0
    return config.tree / "prior"


def test_it_beats_both_baselines_on_pairs_that_it_has_not_seen(trained: Path) -> None:
    row = read_metrics(trained / "metrics.csv")[-1]
    score = {name: float(value) for name, value in row.items() if value and name.startswith("val_")}
    assert score["val_cosine_ema"] > 0.7
    assert score["val_cosine_ema"] > 0.3 + max(score["val_cosine_text"], score["val_cosine_mean_image"])
    assert score["val_own_ema"] > 3 * max(score["val_own_text"], score["val_own_mean_image"])
    found = latest(trained)
    assert found is not None and found.info.finished and found.info.step == STEPS
    assert sorted(found.info.files) == [
        "config.yaml",
        "ema_0.9.safetensors",
        "optimizer.safetensors",
        "prior.safetensors",
    ]


def test_a_finished_run_says_so(trained: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path for path in trained.rglob("*"))
    assert train_prior(settings(shards, trained.parents[1])) == 0
    assert "the prior is finished already" in capsys.readouterr().out
    assert sorted(path for path in trained.rglob("*")) == before


def test_a_stopped_run_goes_on_to_the_bit(
    trained: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked to stop twice, each time in the first step of a start; straight through is `trained`."""
    config = settings(shards, tmp_path)
    asked = StopRequest()
    asked.by = "SIGUSR1"
    for step in (1, 2):
        monkeypatch.setattr(prior_run, "STOP", asked)
        assert train_prior(config) == STOPPED
        stopped = latest(config.tree / "prior")
        assert stopped is not None and (stopped.info.step, stopped.info.finished) == (step, False)
        assert (
            f"the prior was stopped after step {step}: {stopped.path}; call again to go on" in capsys.readouterr().out
        )
    monkeypatch.setattr(prior_run, "STOP", StopRequest())
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
    """To the bit, however many texts there are; `clip` is what the set says of its CLIP."""
    prior = read_prior(trained, "cpu")
    texts = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))
    made = prior(texts, seed=4)
    assert made.shape == (3, WIDTH) and made.dtype == torch.float32 and made.isfinite().all()
    assert torch.equal(prior(texts[1:2], seed=4), made[1:2])
    assert torch.equal(prior(3 * texts, seed=4), made) or torch.allclose(prior(3 * texts, seed=4), made, atol=1e-4)
    assert cosine_similarity(prior(texts, seed=5), made).max() < 0.99999
    assert torch.allclose(made.norm(dim=-1), made.norm(dim=-1)[0].expand(3))
    assert prior.clip == Manifest.load(shards).estimators["clip"]
    first = load_file(latest(trained).path / "ema_0.9.safetensors")  # type: ignore[union-attr]
    assert torch.equal(first["out.weight"], prior.network.out.weight)


def test_another_width_is_refused(trained: Path) -> None:
    with pytest.raises(UserError, match="trained with a CLIP of width 64"):
        read_prior(trained)(torch.zeros(1, 768), seed=0)


def test_a_prior_and_a_stage_are_not_taken_for_each_other(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is of stage 5, not of a prior"):
        read_prior(write_checkpoint(tmp_path / "stage5"))
    found = latest(trained)
    assert found is not None
    with pytest.raises(UserError, match=r"holds no video model, but prior\.safetensors"):
        read_recorded(found)


def test_a_damaged_checkpoint_is_refused(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, tmp_path, steps=1)
    train_prior(config)
    found = latest(config.tree / "prior")
    assert found is not None
    with open(found.path / "ema_0.9.safetensors", "r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        stream.write(b"\x01\x02\x03\x04")
    with pytest.raises(UserError, match=r"is damaged: ema_0\.9\.safetensors"):
        read_prior(found.path)


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


def test_the_checks_of_a_start_alone_write_nothing(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_prior(replace(settings(shards, tmp_path), check_only=True)) == 0
    said = capsys.readouterr().out
    assert "300 of 300 samples" in said and f"the prior can go from step 0 to {STEPS}" in said
    assert list(tmp_path.iterdir()) == []


def test_more_processes_than_one_are_refused(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would all write into one run folder."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match="4 processes were started"):
        train_prior(settings(shards, tmp_path))


def test_without_a_set_it_is_said_which_setting_is_missing(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, tmp_path)
    with pytest.raises(UserError, match=r"data\.root is not given"):
        train_prior(replace(config, data=PairsConfig()))
    with pytest.raises(UserError, match="is not on this machine: copy the set"):
        train_prior(replace(config, data=PairsConfig("s3://bucket/set")))


@pytest.mark.slow
def test_as_a_command_it_hears_signals_and_writes_one_line_for_a_mistake(shards: Path, tmp_path: Path) -> None:
    common = [
        *("stage=prior", "prior_model=tiny", f"data.root={shards}", "data.batch=64", "trainer.accelerator=cpu"),
        *(f"output={tmp_path}", "log.wandb=disabled", "log.every=1", "stage.steps=100000", "validation.every=0"),
    ]
    metrics = tmp_path / "gen1" / "prior" / "metrics.csv"
    code, said = signal_when(
        "gen1_train.train",
        *common,
        ready=lambda: len(read_metrics(metrics)) > 2,
        send=lambda pid: os.kill(pid, signal.SIGTERM),
    )
    assert code == STOPPED and "call again to go on" in said and "Traceback" not in said, said
    assert latest(tmp_path / "gen1" / "prior") is not None
    refused = run("gen1_train.train", *common, "plan_only=true")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "gen1-train: error: there is no setting plan_only; did you mean check_only?\n"
