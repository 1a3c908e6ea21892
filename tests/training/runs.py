"""Runs of stage 3 in one root folder, and their results. `output` names a run; see `run_root` in tests/conftest.py."""

from pathlib import Path

import torch

from gen1_train.reporting.rows import read_metrics
from gen1_train.training.checkpoints.checkpoint import OPTIMIZER, UNET, latest
from tests.running import TRAIN
from tests.tensors_of import assert_same_tensors, tensors_of, weights_of

STEPS = 8
AVERAGES = ["ema_0.5.safetensors", "ema_0.9.safetensors"]  # `ema.decays` in `stage`


def stage(root: Path, number: int, output: str, *more: str) -> list[str]:
    """The settings of a run of a stage, on two CPU processes with ZeRO-2 unless `more` changes that."""
    settings = [
        f"stage={number}",
        *TRAIN,
        f"data.root={root / 'set'}",
        f"output={root / output}",
        f"stage.steps={STEPS}",
    ]
    return [
        *settings,
        f"init.checkpoint={root / 'first' / 'demo' / f'stage{number - 1}'}",
        "checkpoint.every=3",
        "ema.decays=[0.9,0.5]",
        *more,
    ]


def folder(root: Path, output: str) -> Path:
    """The run folder of a stage 3."""
    return root / output / "demo" / "stage3"


def last(root: Path, output: str) -> Path:
    """The last checkpoint of a finished run."""
    checkpoint = latest(folder(root, output))
    assert checkpoint is not None and checkpoint.info.finished
    return checkpoint.path


def losses(root: Path, output: str) -> list[tuple[int, float]]:
    """The step and the loss of each row. Losses are written so that no two float32 values look alike."""
    return [(int(row["step"]), float(row["loss"])) for row in read_metrics(folder(root, output) / "metrics.csv")]


def assert_equal_to_the_bit(root: Path, output: str, straight: str) -> None:
    """Losses of all steps, final weights and final state of the optimizer are those of a straight run."""
    assert losses(root, output) == losses(root, straight)
    assert last(root, output).name == last(root, straight).name
    assert list(tensors_of(last(root, straight))) == [*AVERAGES, OPTIMIZER, UNET]
    assert_same_tensors(last(root, output), last(root, straight))


def everything(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint by `KIND:NAME`; the kind is a file or a moment."""
    return {
        f"{name.rpartition('.')[2] if file == OPTIMIZER else file}:{name}": tensor
        for file, tensors in tensors_of(checkpoint).items()
        for name, tensor in tensors.items()
    }


def assert_close(checkpoint: Path, straight: Path) -> None:
    """Two checkpoints are equal up to the rounding of sums in another order.

    The weights, each average and each moment are compared as a whole.
    """
    actual, wanted = (everything(path) for path in (checkpoint, straight))
    assert actual.keys() == wanted.keys()
    for kind in {name.partition(":")[0] for name in wanted}:
        names = [name for name in wanted if name.startswith(f"{kind}:")]
        flat, reference = (torch.cat([tensors[name].flatten() for name in names]) for tensors in (actual, wanted))
        assert (flat - reference).norm() <= 5e-3 * reference.norm(), kind or "weights"


def assert_same_run(root: Path, output: str, straight: str) -> None:
    """Like `assert_equal_to_the_bit`, but up to the rounding of sums in another order."""
    assert_close(last(root, output), last(root, straight))
    reference, other = (weights_of(last(root, name)) for name in (straight, output))
    for key, value in reference.items():
        torch.testing.assert_close(other[key], value, rtol=2e-3, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}")
    assert [step for step, _ in losses(root, output)] == [step for step, _ in losses(root, straight)]
    for (step, loss), (_, wanted) in zip(losses(root, output), losses(root, straight)):
        assert abs(loss - wanted) <= 1e-3 * wanted, f"step {step}: {loss} instead of {wanted}"
