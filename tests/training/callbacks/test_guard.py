"""A bad step is skipped or stops the run, is recorded, and can be run again."""

import gc
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gen1_train.errors import UserError
from gen1_train.reporting.rows import read_metrics
from gen1_train.training import module
from gen1_train.training.callbacks.guard import GuardConfig, Norms, write_record
from gen1_train.training.checkpoints.checkpoint import checkpoints_dir, read_checkpoint
from gen1_train.training.config import TrainConfig
from gen1_train.training.replay import Record, ReplayConfig, open_recorded, replay
from gen1_train.training.run import train
from tests.tensors_of import assert_same_tensors, tensors_of, weights_of
from tests.training.alone import config, last, make_start
from tests.training.pair import run_pair

STEPS, BAD = 6, 3  # steps of a run; the one (counted from 0) that is bad


def test_the_first_norms_have_plain_mean_and_variance():
    norms, values = Norms(), [3.0, 1.0, 4.0, 1.0, 5.0]
    for value in values:
        norms.add(value, window=10)
    assert norms.mean == pytest.approx(torch.tensor(values).mean().item())
    assert norms.variance == pytest.approx(torch.tensor(values).var(correction=0).item())


def test_old_norms_are_forgotten():
    norms = Norms()
    for value in [100.0] * 50 + [1.0] * 400:
        norms.add(value, window=20)
    assert norms.mean == pytest.approx(1.0, abs=1e-6) and norms.variance < 1e-3


def test_there_is_no_spike_before_the_window_is_full():
    norms = Norms()
    for _ in range(9):
        norms.add(1.0, window=10)
    assert norms.bound(GuardConfig(window=10)) == math.inf
    norms.add(2.0, window=10)
    assert norms.bound(GuardConfig(window=10, sigmas=2)) == pytest.approx(1.1 + 2 * 0.3)
    assert norms.bound(GuardConfig(window=10, spike="allow")) == math.inf


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("guard")
    make_start(root)
    return root


def spoil(change: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch, rank: int = 0) -> None:
    """Changes the losses of step BAD on one rank."""
    observe = module.Gen1Module.observe

    def spoiled(self, batch, *more):
        observed = observe(self, batch, *more)
        if batch.step != BAD or self.global_rank != rank or more:
            return observed
        return module.replace(observed, losses=change(observed.losses))

    monkeypatch.setattr(module.Gen1Module, "observe", spoiled)


def not_finite(losses: Tensor) -> Tensor:
    """Makes the loss of the first sample NaN, and thereby the gradients."""
    return torch.cat([losses[:1] * math.nan, losses[1:]])


def guarded(root: Path, output: str, steps: int = STEPS) -> TrainConfig:
    made = config(root, output, steps)
    made.checkpoint.every, made.checkpoint.keep = 1, STEPS
    return made


def at(root: Path, output: str, step: int) -> Path:
    return checkpoints_dir(root / output / "run" / "stage3") / f"step-{step:08d}"


def assert_step_skipped(root: Path, output: str) -> None:
    """The bad step changed neither weights, nor moments, nor the average; the next step changed all of them."""
    assert_same_tensors(at(root, output, BAD), at(root, output, BAD + 1))
    before, later = (tensors_of(at(root, output, BAD + i)) for i in (0, 2))
    for file, tensors in before.items():
        assert not all(torch.equal(tensor, later[file][name]) for name, tensor in tensors.items()), file
    made = read_checkpoint(at(root, output, STEPS)).counters
    assert (made.updates, made.skipped, made.in_a_row, made.averaged) == (STEPS - 1, 1, 0, {"ema_0.9": STEPS - 1})
    weights = weights_of(at(root, output, STEPS))
    assert all(weight.isfinite().all() for weight in weights.values())


def record_of(root: Path, output: str) -> Path:
    return root / output / "run" / "stage3" / "guard" / f"step-{BAD:08d}" / "guard.json"


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_skipped_and_recorded(root, monkeypatch, capsys):
    spoil(not_finite, monkeypatch)
    train(guarded(root, "nan"))
    assert_step_skipped(root, "nan")
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    path = record_of(root, "nan")
    assert warnings == [
        f"gen1-train: warning: step {BAD}: the gradient is not finite; recorded: gen1-train replay={path}; the step is "
        "skipped"
    ]
    content = json.loads(path.read_text())
    assert [row["slot"] for row in content["samples"]] == list(range(len(content["samples"])))
    assert [row["slot"] for row in content["samples"] if row["loss"] is None] == [0]
    rows = read_metrics(root / "nan" / "run" / "stage3" / "metrics.csv")
    assert [row["skipped_steps"] for row in rows] == ["0"] * BAD + ["1"] * (STEPS - BAD)
    assert [row["grad_norm_max"] == "inf" for row in rows] == [step == BAD for step in range(STEPS)]


@pytest.mark.slow
def test_a_run_that_skipped_a_step_resumes_bit_for_bit(root, monkeypatch):
    spoil(not_finite, monkeypatch)
    train(guarded(root, "straight"))
    train(guarded(root, "resumed", steps=BAD + 1))
    train(guarded(root, "resumed"))
    assert_same_tensors(at(root, "resumed", STEPS), at(root, "straight", STEPS))
    counters = [read_checkpoint(at(root, output, STEPS)).counters for output in ("straight", "resumed")]
    assert counters[0] == counters[1]


@pytest.mark.slow
def test_a_spike_is_skipped(root, monkeypatch):
    spoil(lambda losses: losses * 1e4, monkeypatch)
    made = guarded(root, "spike")
    made.guard.window = 2
    train(made)
    assert_step_skipped(root, "spike")
    assert "is above" in json.loads(record_of(root, "spike").read_text())["reason"]


@pytest.mark.slow
def test_with_stop_a_bad_step_stops_the_run_and_keeps_its_checkpoints(root, monkeypatch):
    made = guarded(root, "stop")
    made.guard.non_finite = "stop"
    with monkeypatch.context() as patch:
        spoil(not_finite, patch)
        with pytest.raises(UserError, match=f"step {BAD}: the gradient is not finite; recorded: gen1-train replay="):
            train(made)
    assert last(root, "stop").name == f"step-{BAD:08d}"
    train(made)
    assert last(root, "stop").name == f"step-{STEPS:08d}"


@pytest.mark.slow
def test_a_run_that_skips_all_steps_stops(root, monkeypatch):
    monkeypatch.setattr(module, "per_sample_loss", lambda prediction, target: prediction.flatten(1).sum(1) * math.nan)
    made = guarded(root, "all")
    made.guard.in_a_row, made.guard.records = 3, 1
    with pytest.raises(UserError, match="3 steps in a row were skipped"):
        train(made)
    folders = sorted((root / "all" / "run" / "stage3" / "guard").iterdir())
    assert [(path.name, (path / "unet.safetensors").exists()) for path in folders] == [
        ("step-00000000", True),
        ("step-00000001", False),
        ("step-00000002", False),
    ]


@pytest.mark.slow
def test_a_recorded_step_is_run_again_to_the_same_numbers(root, monkeypatch, capsys):
    made = guarded(root, "again")
    made.guard.window, made.guard.sigmas = 2, 1e-9  # any norm above the mean is a spike
    made.optim.lr = 0.1  # so that norms rise
    train(made)
    path = sorted((root / "again" / "run" / "stage3" / "guard").glob("*/guard.json"))[0]
    content = json.loads(path.read_text())
    capsys.readouterr()
    replay(ReplayConfig(str(path), batch=len(content["samples"]), device="cpu"))
    said = capsys.readouterr().out.splitlines()
    table = [line.split() for line in said[2:-1] if "…" not in line]  # and how many more there are
    assert table and all(row[-3] == row[-2] for row in table)  # recorded, now
    assert said[-1] == f"gradient norm {content['norm']:.6g}, recorded {content['norm']:.6g}"
    replay(ReplayConfig(str(path), batch=1, device="cpu"))
    norm, recorded = map(float, re.findall(r"[\d.]+", capsys.readouterr().out.splitlines()[-1]))
    # a learning rate of 0.1 has spoilt the weights: group norms of nearly equal pixels enlarge the rounding
    assert recorded == pytest.approx(content["norm"], rel=1e-5) and norm == pytest.approx(recorded, rel=0.03)


@pytest.mark.slow
def test_a_replay_says_what_is_missing(root, tmp_path):
    made = guarded(root, "lost")
    made.guard.window, made.guard.sigmas = 2, 1e-9
    made.optim.lr = 0.1
    train(made)
    folder = sorted((root / "lost" / "run" / "stage3" / "guard").iterdir())[0]
    with pytest.raises(UserError, match=r"there is no .*nowhere\.json: give a guard\.json such as"):
        replay(ReplayConfig(str(folder / "nowhere.json")))
    torn = shutil.copytree(folder, tmp_path / "torn")
    (torn / "guard.json").write_text("{")
    with pytest.raises(UserError, match="is not a step that this version recorded"):
        replay(ReplayConfig(str(torn / "guard.json")))
    with pytest.raises(UserError, match="batch=0 must be 1 or above"):
        replay(ReplayConfig(str(folder / "guard.json"), batch=0))


STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp")


def train_spoiled(rank: int, root: Path) -> None:
    """Trains by every strategy with losses that are not finite in one step, on rank 1 only."""
    with pytest.MonkeyPatch.context() as patch:
        spoil(not_finite, patch, rank=1)
        for strategy in STRATEGIES:
            made = guarded(root, strategy)
            made.strategy.name, made.trainer.devices = strategy, 2
            train(made)
            gc.collect()  # DeepSpeed's engines hold references to themselves


@pytest.fixture(scope="module")
def spoiled(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs of two ranks by all strategies."""
    codes, outputs = run_pair(train_spoiled, tmp_path_factory.mktemp("pair"), root, seconds=500)
    assert codes == [0, 0], outputs
    return root


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_ranks_skip_a_step_that_is_bad_on_one(spoiled, strategy):
    assert_step_skipped(spoiled, strategy)
    content = json.loads(record_of(spoiled, strategy).read_text())
    broken = [row["slot"] for row in content["samples"] if row["loss"] is None]
    assert broken == [len(content["samples"]) // 2]  # the first slot of rank 1


def test_a_record_is_not_written_through_a_link(tmp_path: Path) -> None:
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.mkdir()
    for name in ("config.yaml", "file"):
        (victim / name).write_text("mine")
    folder = run / "guard" / "step-00000001"
    folder.mkdir(parents=True)
    (folder / "unet.safetensors").symlink_to(victim / "file")
    write_record(folder, "{}", "a: 1", {"w": torch.zeros(2)})
    assert load_file(folder / "unet.safetensors").keys() == {"w"} and not (folder / "unet.safetensors").is_symlink()
    (run / "guard" / "step-00000002").symlink_to(victim)
    shutil.rmtree(run / "guard" / "step-00000001")
    for _ in range(2):
        with pytest.raises(UserError, match="step-00000002 is a link"):
            write_record(run / "guard" / "step-00000002", "{}", "a: 1", {})
    assert sorted((path.name, path.read_text()) for path in victim.iterdir()) == [
        ("config.yaml", "mine"),
        ("file", "mine"),
    ]


def test_a_record_of_others_names_no_folder_to_write_to_and_no_address_to_ask(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("the network was asked"))
    victim = tmp_path / "victim" / "gen1" / "customize" / "images"
    victim.mkdir(parents=True)
    (victim / "images.json").write_text("mine")
    path = tmp_path / "run" / "guard" / "step-00000001" / "guard.json"
    made = config(root, "out", STEPS)
    made.data.order = "blocks"
    made.data.cache = str(tmp_path / "cache")
    assert open_recorded(Record(path, {}, made)).root == root / "set"
    made.data.root = "https://host/set"
    with pytest.raises(UserError, match="https://host/set is not on this machine: copy the set and give its folder"):
        open_recorded(Record(path, {}, made))
    made.data.root = None
    made.images = str(tmp_path)
    made.output, made.name, made.stage.name = str(tmp_path / "victim"), "gen1", "customize"
    with pytest.raises(UserError, match=f"no shard set at {tmp_path}/run/images/train"):
        open_recorded(Record(path, {}, made))
    assert (victim / "images.json").read_text() == "mine" and not (tmp_path / "cache").exists()
