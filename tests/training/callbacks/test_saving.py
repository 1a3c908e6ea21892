"""Checkpoints during training, averages, and the state that a stage inherits; in this process."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gen1_train.errors import UserError
from gen1_train.training.callbacks.saving import Writer
from gen1_train.training.checkpoints import writing
from gen1_train.training.checkpoints.checkpoint import OPTIMIZER, UNET, checkpoints_dir, read_checkpoint
from gen1_train.training.checkpoints.ema import rate
from gen1_train.training.checkpoints.state import MOMENTS
from gen1_train.training.config import TrainConfig
from gen1_train.training.run import train
from tests.made_checkpoint import edit_info
from tests.training.alone import STAGE, config, last, make_start


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage 2 to start from, and a stage 3 with a checkpoint of every step."""
    root = tmp_path_factory.mktemp("saving")
    make_start(root)
    train(every_step(root, "whole"))
    return root


def every_step(root: Path, output: str) -> TrainConfig:
    made = config(root, output, 4)
    made.checkpoint.every = 1
    made.checkpoint.keep = 10
    made.ema.decays = [0.9, 0.25]
    return made


def at(root: Path, output: str, step: int, stage: str = "3") -> Path:
    return checkpoints_dir(root / output / "run" / f"stage{stage}") / f"step-{step:08d}"


@pytest.mark.slow
def test_an_average_follows_from_the_weights_of_all_steps(root):
    """Computed again from the checkpoints of all steps, bit for bit; the first update nearly replaces the start."""
    for decay in (0.9, 0.25):
        file = f"ema_{decay:g}.safetensors"
        average = load_file(at(root, "whole", 1) / file)
        for step in range(2, 5):
            weights, share = load_file(at(root, "whole", step) / "unet.safetensors"), rate(decay, step - 1)
            average = {name: torch.lerp(tensor, weights[name], share) for name, tensor in average.items()}
            made = load_file(at(root, "whole", step) / file)
            assert all(torch.equal(average[name], tensor) for name, tensor in made.items()), (decay, step)
    assert (
        rate(0.9, 0) == 0.9 and rate(0.25, 0) == 0.9 and rate(0.25, 3) == 0.75 and rate(0.9, 1000) == pytest.approx(0.1)
    )


@pytest.mark.slow
def test_later_steps_do_not_change_a_checkpoint_that_is_being_written(root, monkeypatch):
    """Training continues while a checkpoint is written, and reaches its last step first."""
    write, may = writing.write, threading.Event()

    def late(*arguments):
        assert may.wait(60)
        write(*arguments)

    monkeypatch.setattr(writing, "write", late)
    made = every_step(root, "late")
    made.checkpoint.every = 2
    wait = Writer.wait

    def waiting(self: Writer) -> None:
        may.set()  # training has continued up to this point
        wait(self)
        may.clear()

    monkeypatch.setattr(Writer, "wait", waiting)
    train(made)
    for step in (2, 4):
        for path in at(root, "whole", step).glob("*.safetensors"):
            assert (at(root, "late", step) / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_a_run_resumes_with_other_averages(root):
    """A new average starts with the weights; one that is no longer configured is dropped."""
    first = every_step(root, "others")
    first.stage = replace(first.stage, steps=2)
    train(first)
    second = every_step(root, "others")
    second.ema.decays = [0.25, 0.75]
    train(second)
    found = read_checkpoint(at(root, "others", 4))
    assert found.counters.averaged == {"ema_0.25": 4, "ema_0.75": 2}
    assert not (found.path / "ema_0.9.safetensors").exists()
    same = [(at(root, output, 4) / "ema_0.25.safetensors").read_bytes() for output in ("others", "whole")]
    assert same[0] == same[1]


def next_stage(root: Path, output: str) -> TrainConfig:
    """Returns the config of a stage 4 that starts from stage 3 and takes two steps."""
    made = every_step(root, output)
    made.stage = replace(STAGE, name="4", predecessor="3", steps=2, structure=True, new=["input"])
    made.init.checkpoint = str(root / "whole" / "run" / "stage3")
    return made


@pytest.mark.slow
def test_the_next_stage_starts_from_the_average_and_resets_what_it_names(root):
    train(next_stage(root, "reset"))
    found, start = read_checkpoint(at(root, "reset", 1, "4")), load_file(at(root, "whole", 4) / "ema_0.9.safetensors")
    assert found.counters.updates == 1 and found.counters.averaged == {"ema_0.9": 1, "ema_0.25": 1}
    moved = {
        name: (tensor - start[name]).abs().max()
        for name, tensor in found.weights("raw").items()
        if "conv_in.w" not in name
    }
    assert 0 < max(moved.values()) < 2e-3  # a step of AdamW moves a weight by the rate, 1e-3 / 3


@pytest.mark.slow
def test_the_next_stage_keeps_what_it_does_not_reset(root):
    made = next_stage(root, "kept")
    made.stage.resets = []
    made.init.weights = "raw"
    train(made)
    kept = read_checkpoint(at(root, "kept", 1, "4"))
    assert kept.counters.updates == 5 and kept.counters.averaged == {"ema_0.9": 5, "ema_0.25": 5}
    before, after = (
        load_file(at(root, *where) / "optimizer.safetensors") for where in (("whole", 4), ("kept", 1, "4"))
    )
    name = "conv_out.weight.exp_avg_sq"
    assert (after[name] > 0.9 * before[name]).all()  # moments that were reset would be at 0.001 of it
    assert after["conv_in.weight.exp_avg"].shape[1] == 12


@pytest.mark.slow
def test_moments_of_other_weights_are_refused(root):
    made = next_stage(root, "mixed")
    made.stage.resets = ["ema"]
    with pytest.raises(UserError, match=r"add init\.weights=raw, or add optimizer to stage\.resets"):
        train(made)
    assert not (root / "mixed").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"new": []}, "of another shape: conv_in.weight"),
        ({"trains": ["*nothing*"]}, "which matches no weight"),
        ({"trains": []}, "would train nothing"),
        ({"new": ["everything"]}, "everything is not one of content_projection, temporal, input"),
    ],
)
def test_an_invalid_stage_is_refused(root, change, line):
    made = next_stage(root, "refused")
    made.stage = replace(made.stage, **change)
    with pytest.raises(UserError, match=line.replace("*", r"\*")):
        train(made)
    assert not (root / "refused").exists()


@pytest.mark.slow
def test_a_stage_trains_only_the_weights_that_it_names(root):
    made = next_stage(root, "temporal")
    made.stage.trains = ["*temporal*", "conv_in.*"]
    made.optim.weight_decay = 0.5
    train(made)
    start, end = (
        load_file(at(root, "whole", 4) / "ema_0.9.safetensors"),
        load_file(at(root, "temporal", 2, "4") / "unet.safetensors"),
    )
    changed = {
        name for name, weight in end.items() if name != "conv_in.weight" and not torch.equal(weight, start[name])
    }
    assert changed and all("temporal" in name or name == "conv_in.bias" for name in changed)
    folder = at(root, "temporal", 2, "4")
    trained = {name for name in end if "temporal" in name or name.startswith("conv_in.")}
    assert {name.rpartition(".")[0] for name in load_file(folder / OPTIMIZER)} == trained
    average = load_file(folder / "ema_0.9.safetensors")
    assert all(torch.equal(average[name], start[name]) for name in end if name not in trained)
    assert any(not torch.equal(average[name], start[name]) for name in trained - {"conv_in.weight"})
    assert last(root, "whole").name == "step-00000004"


def frozen(root: Path, output: str, steps: int) -> TrainConfig:
    """Stage 3 with frozen spatial layers, and without images, which would train nothing of it."""
    made = every_step(root, output)
    made.stage = replace(made.stage, steps=steps, trains=["*temporal*"], image_ratio=0.0)
    return made


@pytest.mark.slow
def test_a_run_resumes_with_the_weights_that_it_trains(root):
    train(frozen(root, "froze", 4))
    train(frozen(root, "froze-resumed", 2))
    older = at(root, "froze-resumed", 2)  # versions before kept moments of all weights
    weights, moments = load_file(older / UNET), load_file(older / OPTIMIZER)
    zeros = {f"{name}.{moment}": torch.zeros_like(weights[name]) for name in weights for moment in MOMENTS}
    save_file({**zeros, **moments}, older / OPTIMIZER)
    edit_info(older, lambda content: None)
    other = frozen(root, "froze-resumed", 4)
    other.stage.trains = ["*temporal*", "conv_in.*"]
    with pytest.raises(UserError, match=r"stage\.trains=\['\*temporal\*', 'conv_in\.\*'\] cannot change within a run"):
        train(other)
    train(frozen(root, "froze-resumed", 4))
    for file in (UNET, OPTIMIZER, "ema_0.9.safetensors"):
        made, straight = (load_file(at(root, output, 4) / file) for output in ("froze-resumed", "froze"))
        assert made.keys() == straight.keys() and all(torch.equal(made[name], straight[name]) for name in made)


@pytest.mark.slow
def test_steps_that_would_train_nothing_are_refused(root):
    made = frozen(root, "nothing", 2)
    made.data.image_ratio = 0.5
    with pytest.raises(UserError, match=r"image steps would train none of .*, or set data\.image_ratio=0"):
        train(made)
    made.stage.trains = ["*.attn2.to_q.*"]  # a single content token needs no queries
    with pytest.raises(UserError, match=r"video steps would train none of stage\.trains=.*: name others$"):
        train(made)
    kept = next_stage(root, "nothing")
    kept.stage = replace(kept.stage, trains=["*temporal*"], resets=["optimizer"])
    with pytest.raises(UserError, match=r"add ema to stage\.resets"):
        train(kept)
