"""Runs that stop and resume, in a single process without DeepSpeed."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gen1_train.errors import UserError
from gen1_train.training.checkpoints.checkpoint import OPTIMIZER, UNET
from gen1_train.training.config import TrainConfig
from gen1_train.training.run import train
from tests.made_checkpoint import edit_info
from tests.training.alone import config, last, make_start, rows
from tests.training.runs import assert_close

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage 2 to start from, and a stage 3 that ran to step 2 (`half`) and to step 4 (`whole`)."""
    root = tmp_path_factory.mktemp("state")
    make_start(root)
    train(config(root, "half", 2))
    train(config(root, "whole", 4))
    return root


def copy_of_half(root: Path, output: str) -> TrainConfig:
    """Copies the run that stopped at step 2, and returns the config with which it resumes to step 4."""
    shutil.copytree(root / "half", root / output)
    return config(root, output, 4)


def test_resumed_equals_straight_bit_for_bit(root):
    train(copy_of_half(root, "resumed"))
    for name in (UNET, OPTIMIZER, "ema_0.9.safetensors"):
        assert (last(root, "resumed") / name).read_bytes() == (last(root, "whole") / name).read_bytes()
    assert rows(root, "resumed") == rows(root, "whole")
    assert len({lr for *_, lr in rows(root, "whole")}) == 3  # the learning rate was still rising


def test_a_resumed_cosine_equals_a_straight_one_bit_for_bit(root):
    """The schedule depends on the stage's last step, so the run is shortened by removing its later checkpoints."""
    made = config(root, "cosine", 4)
    made.optim.schedule = "cosine"
    made.optim.warmup_steps = 1
    made.checkpoint.every = 2
    made.checkpoint.keep = 2
    train(made)
    shutil.copytree(root / "cosine", root / "cosine-resumed")
    shutil.rmtree(last(root, "cosine-resumed"))
    assert last(root, "cosine-resumed").name == "step-00000002"
    train(replace(made, output=str(root / "cosine-resumed")))
    for name in (UNET, OPTIMIZER):
        assert (last(root, "cosine-resumed") / name).read_bytes() == (last(root, "cosine") / name).read_bytes()
    assert rows(root, "cosine-resumed") == rows(root, "cosine")
    assert [float(lr) for *_, lr in rows(root, "cosine")] == pytest.approx([1e-3, 0.775e-3, 0.325e-3, 0.1e-3])


def test_a_run_resumes_with_other_micro_batches(root):
    other = copy_of_half(root, "accumulating")
    other.trainer.accumulate = 2
    train(other)
    assert_close(last(root, "accumulating"), last(root, "whole"))
    made, whole = ([float(loss) for _, loss, _ in rows(root, output)] for output in ("accumulating", "whole"))
    assert made == pytest.approx(whole, rel=1e-3)


def test_a_run_resumes_at_another_learning_rate(root):
    other = copy_of_half(root, "slower")
    other.optim.lr /= 2
    train(other)
    rates = [(float(lr), float(before)) for (*_, lr), (*_, before) in zip(rows(root, "slower"), rows(root, "whole"))]
    assert [lr / before for lr, before in rates] == pytest.approx([1, 1, 0.5, 0.5])


def test_every_weight_has_its_moments(root):
    weights, moments = (load_file(last(root, "whole") / name) for name in (UNET, OPTIMIZER))
    assert moments.keys() == {f"{name}.{moment}" for name in weights for moment in ("exp_avg", "exp_avg_sq")}
    assert all(moments[f"{name}.exp_avg_sq"].shape == weight.shape for name, weight in weights.items())
    assert {tensor.dtype for tensor in (*weights.values(), *moments.values())} == {torch.float32}


def test_moments_of_another_model_are_refused_by_name(root):
    other = copy_of_half(root, "damaged")
    path = last(root, "damaged") / OPTIMIZER
    moments = load_file(path)
    bias = moments.pop("conv_in.bias.exp_avg")
    moments["conv_in.bias.exp_mean"] = bias
    moments["conv_out.bias.exp_avg"] = torch.zeros(3)
    save_file(moments, path)
    edit_info(path.parent, lambda content: None)
    with pytest.raises(UserError) as error:
        train(other)
    for words in (
        "1 missing: conv_in.bias.exp_avg;",
        "1 unexpected: conv_in.bias.exp_mean;",
        "1 of another shape: conv_out.bias.exp_avg is (3,), expected (4,)",
    ):
        assert words in str(error.value)
