"""Runs of stage 3 below one folder, and what they leave. `output` names a run; ROOT/set, ROOT/first are conftest's."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from gen1_train.training.checkpoint import OPTIMIZER, UNET, latest
from gen1_train.training.metrics import read_metrics
from gen1_train.training.state import MOMENTS
from tests.running import TRAIN

STEPS = 8


def stage(root: Path, number: int, output: str, *more: str) -> list[str]:
    """The settings of a run of a stage on two CPU processes with ZeRO-2, where `more` says nothing else."""
    settings = [
        f"stage={number}",
        *TRAIN,
        f"data.root={root / 'set'}",
        f"output={root / output}",
        f"stage.steps={STEPS}",
    ]
    return [*settings, f"init.checkpoint={root / 'first' / 'demo' / f'stage{number - 1}'}", "checkpoint.every=3", *more]


def folder(root: Path, output: str) -> Path:
    """The run folder of a stage 3."""
    return root / output / "demo" / "stage3"


def last(root: Path, output: str) -> Path:
    """The checkpoint that a finished run ends with."""
    found = latest(folder(root, output))
    assert found is not None and found.info.finished
    return found.path


def losses(root: Path, output: str) -> list[tuple[int, float]]:
    """The step and the loss of each row; a loss is written so that no two float32 look alike."""
    return [(int(row["step"]), float(row["loss"])) for row in read_metrics(folder(root, output) / "metrics.csv")]


def assert_equal_to_the_bit(root: Path, output: str, straight: str) -> None:
    """The losses of all steps, the last weights and the last state of the optimizer are those of a straight run."""
    assert losses(root, output) == losses(root, straight)
    assert last(root, output).name == last(root, straight).name
    for name in (UNET, OPTIMIZER):
        assert (last(root, output) / name).read_bytes() == (last(root, straight) / name).read_bytes(), name


def assert_close(checkpoint: Path, straight: Path) -> None:
    """Two checkpoints are the same to the rounding of another order of sums: weights, and either moment as a whole."""
    made, wanted = (load_file(path / UNET) | load_file(path / OPTIMIZER) for path in (checkpoint, straight))
    assert made.keys() == wanted.keys()
    for kind in ("", *MOMENTS):
        names = [name for name in wanted if (kind and name.endswith(f".{kind}")) or (not kind and ".exp" not in name)]
        flat, reference = (torch.cat([tensors[name].flatten() for name in names]) for tensors in (made, wanted))
        assert (flat - reference).norm() <= 5e-3 * reference.norm(), kind or "weights"


def assert_same_run(root: Path, output: str, straight: str) -> None:
    """The same as to the bit, to the rounding of another order of sums."""
    assert_close(last(root, output), last(root, straight))
    reference, other = (load_file(last(root, name) / UNET) for name in (straight, output))
    for key, value in reference.items():
        torch.testing.assert_close(other[key], value, rtol=2e-3, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}")
    assert [step for step, _ in losses(root, output)] == [step for step, _ in losses(root, straight)]
    for (step, loss), (_, wanted) in zip(losses(root, output), losses(root, straight)):
        assert abs(loss - wanted) <= 1e-3 * wanted, f"step {step}: {loss} instead of {wanted}"
