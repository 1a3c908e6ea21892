"""Whole runs of gen1-train on CPU processes, as a user starts them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gen1_train.training.checkpoint import checkpoints_dir, latest
from gen1_train.training.metrics import read_metrics
from gen1_train.training.strategy import ZeroStrategy
from miniature.tiny import write_stable_diffusion
from tests.made import make_shard_set
from tests.running import ENVIRONMENT, TRAIN, kill_when, run, run_well

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 8


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made shard set, a random Stable Diffusion, and stages 1 and 2 run from it."""
    root = tmp_path_factory.mktemp("runs")
    make_shard_set(root / "set")
    write_stable_diffusion(root / "sd", widths=(32, 64, 64, 64), layers=1, heads=2)
    run_well("gen1_train.train", "stage=1", *TRAIN, f"init.from={root / 'sd'}", f"output={root / 'first'}")
    run_well("gen1_train.train", *stage(root, 2, "first"), "stage.steps=2")
    return root


def stage(root: Path, number: int, output: str, *more: str) -> list[str]:
    settings = [
        f"stage={number}",
        *TRAIN,
        f"data.root={root / 'set'}",
        f"output={root / output}",
        f"stage.steps={STEPS}",
    ]
    return [*settings, f"init.checkpoint={root / 'first' / 'demo' / f'stage{number - 1}'}", "checkpoint.every=3", *more]


def weights(root: Path, output: str) -> dict[str, torch.Tensor]:
    found = latest(root / output / "demo" / "stage3")
    assert found is not None and found.info.finished and found.info.step == STEPS
    return load_file(found.path / "unet.safetensors")


def losses(root: Path, output: str) -> list[tuple[str, str]]:
    return [(row["step"], row["loss"]) for row in read_metrics(root / output / "demo" / "stage3" / "metrics.csv")]


@pytest.fixture(scope="module")
def straight(place: Path) -> dict[str, torch.Tensor]:
    """Stage 3 with ZeRO-2 on two processes, uninterrupted."""
    run_well("gen1_train.train", *stage(place, 3, "straight"))
    return weights(place, "straight")


def test_killed_and_resumed_equals_straight_bit_for_bit(place, straight):
    """kill -9 as soon as there is a checkpoint, most likely within a later step; the next call goes on from it."""
    folder = checkpoints_dir(place / "killed" / "demo" / "stage3")
    arguments = stage(place, 3, "killed")
    kill_when("gen1_train.train", *arguments, ready=lambda: (folder / "step-00000003").exists())
    assert not (folder / f"step-{STEPS:08d}").exists()
    run_well("gen1_train.train", *arguments)
    resumed = weights(place, "killed")
    assert resumed.keys() == straight.keys()
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    assert losses(place, "killed") == losses(place, "straight")


CHECKPOINTING = "model.checkpointing=[true,true,true,true]"  # of activations, at all resolutions
OTHERS = {
    "single": ["strategy=single", "trainer.devices=1"],
    "ddp": ["strategy=ddp"],
    "zero3": ["strategy=zero3", "checkpoint.every=100"],
    "zero3-checkpointing": ["strategy=zero3", "checkpoint.every=100", CHECKPOINTING],
}


@pytest.fixture
def nothing_persists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ZeRO-3 lets go of every weight after its layer; by itself it keeps the small ones, which are all of tiny's."""
    config = ZeroStrategy(3, micro_batch=2).config
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (tmp_path / "deepspeed.json").write_text(json.dumps(config))
    monkeypatch.setitem(ENVIRONMENT, "PL_DEEPSPEED_CONFIG_PATH", str(tmp_path / "deepspeed.json"))


@pytest.mark.parametrize("name", OTHERS)
def test_other_strategies_take_the_same_steps(place, straight, nothing_persists, name):
    """Two ranks equal one; sharding changes nothing, also in image steps, which leave the temporal layers out; nor do
    layers that are computed again going back, when ZeRO-3 has to fetch their weights again.
    """
    run_well("gen1_train.train", *stage(place, 3, name, *OTHERS[name]))
    other = weights(place, name)
    assert other.keys() == straight.keys()
    for key, value in straight.items():
        torch.testing.assert_close(other[key], value, rtol=2e-3, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}")
    for (step, loss), (_, reference) in zip(losses(place, name), losses(place, "straight"), strict=True):
        assert float(loss) == pytest.approx(float(reference), rel=1e-3), f"step {step}"


def test_activation_checkpointing_takes_the_same_steps_to_the_bit(place, straight):
    run_well("gen1_train.train", *stage(place, 3, "checkpointing", "checkpoint.every=100", CHECKPOINTING))
    made = weights(place, "checkpointing")
    assert made.keys() == straight.keys() and all(torch.equal(made[name], straight[name]) for name in straight)
    assert losses(place, "checkpointing") == losses(place, "straight")


def test_a_finished_stage_is_not_trained_again(place, straight):
    before = (place / "straight" / "demo" / "stage3" / "metrics.csv").read_bytes()
    assert "finished already" in run_well("gen1_train.train", *stage(place, 3, "straight"))
    assert (place / "straight" / "demo" / "stage3" / "metrics.csv").read_bytes() == before


def test_the_run_folder_holds_what_made_it(place, straight):
    folder = place / "straight" / "demo" / "stage3"
    assert "temporal: true" in (folder / "config.yaml").read_text()
    rows = read_metrics(folder / "metrics.csv")
    assert {"loss", "lr", "samples_per_second", "tflops_per_second", "mfu", "data_wait"} <= set(rows[0])
    assert all(float(row["mfu"]) > 0 for row in rows)
    kinds = ["image" if "loss_image" in row else "video" for row in rows]
    assert len(kinds) == 8 and kinds.count("image") == 1  # exactly one in the first block of eight


def test_wandb_works_offline_and_leaves_the_same_numbers(place):
    more = ["log.wandb=auto", "stage.steps=2", "strategy=single", "trainer.devices=1"]
    run_well("gen1_train.train", *stage(place, 3, "wandb", *more))
    folder = place / "wandb" / "demo" / "stage3"
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert (folder / "wandb.id").read_text() in next(folder.glob("wandb/offline-run-*")).name


def test_a_missing_predecessor_ends_with_one_line_and_nothing_written(place):
    done = run("gen1_train.train", "stage=4", *TRAIN, f"data.root={place / 'set'}", f"output={place / 'none'}")
    assert done.returncode == 2
    assert "run `gen1-train stage=3` first" in done.stderr.strip().splitlines()[-1]
    assert not (place / "none").exists()


def test_a_checkpoint_of_another_shape_ends_with_one_line(place):
    more = ["model.channels=[16,32,32,32]", "model.context_dim=64"]
    done = run("gen1_train.train", *stage(place, 3, "shape", *more))
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("gen1-train: error: the UNet in") and "(model: [16, 32, 32, 32])" in last
    assert not (place / "shape").exists()
