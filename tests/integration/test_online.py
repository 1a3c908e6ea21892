"""Whole runs of gen1-train on a shard set without latents: the autoencoder encodes in every step."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gen1_train.batch import Pool, Sample, decode_sample, encode_sample
from gen1_train.cli.app import conf_dir
from gen1_train.data.index import read_index
from gen1_train.data.manifest import Manifest
from gen1_train.diffusion.structure import MAX_LEVEL, degrade
from gen1_train.errors import UserError
from gen1_train.frozen.autoencoder import Autoencoder, AutoencoderConfig, to_signed
from gen1_train.frozen.levels import with_levels
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.reporting.rows import read_metrics
from gen1_train.training.checkpoints.checkpoint import UNET, CheckpointConfig, CheckpointInfo, latest
from gen1_train.training.checkpoints.writing import begin, commit
from gen1_train.training.config import TrainConfig
from gen1_train.training.run import train
from gen1_train.training.stages import StageConfig, stage_unet
from tests.made import make_sample, make_shard_set
from tests.running import TRAIN, WEIGHTS, run_well
from tests.running import UNET as SMALL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
AUTOENCODER = WEIGHTS / "autoencoder"


@cache
def autoencoder() -> Autoencoder:
    return Autoencoder(AutoencoderConfig(str(AUTOENCODER)))


def encoded_sample(key: str, pool: Pool, seed: int) -> Sample:
    """A random sample with the latents of its frames, as they are decoded from their JPEGs, and of its structure."""
    sample = make_sample(key, pool, seed)
    frames = decode_sample(key, encode_sample(sample)).frames
    assert frames is not None and sample.structure is not None
    structure = torch.from_numpy(sample.structure.astype("float32")) / 65535
    moments = autoencoder().encode_moments(to_signed(torch.from_numpy(frames)))
    latent = autoencoder().encode_structure(structure)
    degraded = {
        level: autoencoder().encode_structure(degrade(structure[None], [level])[0]).half().numpy()
        for level in range(1, MAX_LEVEL + 1)
    }
    return replace(
        sample, moments=moments.half().numpy(), structure_latent=latent.half().numpy(), degraded_latents=degraded
    )


def bare_sample(key: str, pool: Pool, seed: int) -> Sample:
    return replace(make_sample(key, pool, seed), moments=None, structure_latent=None)


def make_set(root: Path, stored: bool, highest: int = 0) -> None:
    """Writes a shard set of random frames, with their latents by the miniature's autoencoder or without any.

    Those of the structure are said to be there up to t_s = highest.
    """
    make_shard_set(root, width=64, height=64, make=encoded_sample if stored else bare_sample)
    manifest = Manifest.load(root)
    encoding = {
        "config": {"path": str(AUTOENCODER)},
        "fingerprint": autoencoder().fingerprint,
        "scale": autoencoder().scale,
        "factor": autoencoder().factor,
        "stored": stored,
    }
    manifest.estimators["autoencoder"] = with_levels(encoding, highest)
    manifest.save(root)


def make_start(tree: Path, estimators: dict[str, Any]) -> Path:
    """Writes a finished stage 4 with random weights; returns its run folder."""
    config = stage_config(4)
    torch.manual_seed(0)
    weights = SpatioTemporalUNet(stage_unet(config.model, config.stage)).state_dict()
    info = CheckpointInfo("4", 10, finished=True, estimators=estimators)
    commit(begin(tree / "stage4", 10), {UNET: weights}, config.to_yaml(), info, CheckpointConfig())
    return tree / "stage4"


def stage_config(number: int) -> TrainConfig:
    files = (f"stage/{number}.yaml", "model/tiny.yaml")
    stage, model = (yaml.safe_load((conf_dir() / name).read_text()) for name in files)
    return TrainConfig(StageConfig(**stage), model=UNetConfig(**{**model, **SMALL}))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sets of the same frames: `levels` with all latents, `cached` with those at t_s = 0, `online` without any; and a
    stage 4 to start from."""
    root = tmp_path_factory.mktemp("online")
    make_set(root / "levels", stored=True, highest=MAX_LEVEL)
    make_set(root / "cached", stored=True)
    make_set(root / "online", stored=False)
    make_start(root / "first", Manifest.load(root / "online").estimators)
    return root


def run_stage_5(root: Path, name: str, output: str, *more: str) -> str:
    """Runs three steps of stage 5, images among them, with ZeRO-2 on two processes; returns its standard output."""
    paths = [f"data.root={root / name}", f"output={root / output}", f"init.checkpoint={root / 'first' / 'stage4'}"]
    return run_well("gen1_train.train", "stage=5", *TRAIN, *paths, "stage.steps=3", "data.image_ratio=0.5", *more)


def losses(root: Path, output: str) -> dict[str, float]:
    rows = read_metrics(root / output / "demo" / "stage5" / "metrics.csv")
    return {f"step {row['step']}, {'image' if 'loss_image' in row else 'video'}": float(row["loss"]) for row in rows}


@pytest.fixture(scope="module")
def online(root: Path) -> dict[str, float]:
    """The losses of a run on the set without latents, in float32."""
    printed = run_stage_5(root, "online", "online")
    assert "holds no latents: the autoencoder encodes the frames in every step" in printed
    return losses(root, "online")


def test_the_set_without_latents_holds_none(root):
    (tar, *_) = sorted((root / "online" / "shards").glob("video-*.tar"))
    members = read_index(tar)[0].members
    assert "frame00.jpg" in members and "structure00.png" in members and "image_embedding.npy" in members
    assert "moments.npy" not in members and "structure_latent.npy" not in members


def test_a_run_on_it_takes_the_steps_of_one_with_latents(root, online):
    """The difference is the rounding of the stored latents to float16."""
    printed = run_stage_5(root, "cached", "cached")
    assert "holds no latents" not in printed
    assert "cached lacks latents of the structure at t_s up to 7: the autoencoder encodes it in every step" in printed
    assert len(online) == 3 and {"image", "video"} == {name.split()[-1] for name in online}
    assert online == pytest.approx(losses(root, "cached"), rel=1e-3)
    checkpoint = latest(root / "online" / "demo" / "stage5")
    assert checkpoint is not None and checkpoint.info.finished
    assert checkpoint.info.estimators["autoencoder"]["stored"] is False


def test_a_run_on_stored_levels_takes_the_same_steps_without_the_autoencoder(root, online):
    validated = ("validation.every=3", "validation.clips=3", "validation.edit_every=3", "validation.edits=1")
    printed = run_stage_5(root, "levels", "levels", *validated)
    assert "the autoencoder encodes" not in printed
    assert online == pytest.approx(losses(root, "levels"), rel=1e-3)
    run = root / "levels" / "demo" / "stage5"
    (row,) = [row for row in read_metrics(run / "metrics.csv") if row.get("val_loss")]
    assert float(row["val_loss"]) > 0 and (run / "samples" / "step-00000003" / "clip0.mp4").exists()


def test_in_bfloat16_under_zero_the_autoencoder_stays_in_float32(root, online):
    """DeepSpeed hands out batches in bfloat16, which the frozen autoencoder cannot take as they are."""
    run_stage_5(root, "online", "half", "trainer.precision=bf16-mixed")
    assert losses(root, "half") == pytest.approx(online, rel=3e-2)


def test_a_set_of_another_autoencoder_is_refused_before_anything_is_written(root, tmp_path):
    other = {**Manifest.load(root / "online").estimators, "autoencoder": {"config": {}, "fingerprint": "another"}}
    config = stage_config(5)
    config.output = str(tmp_path / "refused")
    config.data.root = str(root / "online")
    config.data.batch_clips = 4
    config.init.checkpoint = str(make_start(tmp_path / "first", other))
    with pytest.raises(UserError, match="was made with another autoencoder estimator than"):
        train(config)
    assert not (tmp_path / "refused").exists()
