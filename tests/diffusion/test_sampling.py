"""Tests of the sampling settings: their ranges, and that reading the defaults does not import torch."""

import subprocess
import sys
from dataclasses import replace

import pytest

from gen1_train.diffusion.guidance import GuidanceConfig
from gen1_train.diffusion.sampling import SamplingConfig
from gen1_train.errors import UserError


def test_the_defaults_are_valid() -> None:
    SamplingConfig().check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t_s": 8}, r"t_s=8 is out of range: give 0 \(the input's structure\) to 7 \(freest\)"),
        ({"steps": 0}, "steps=0 is out of range: give 1 to 1000"),
        ({"solver": "euler"}, r"solver=euler is not one of ddim, dpm\+\+"),
        ({"init_strength": 0.0}, r"init_strength=0.0 is out of range: give a share above 0, up to 1"),
        ({"batch": 0}, "batch=0 must be 1 or more"),
        ({"overlap": -1}, "overlap=-1 must be 0 or above"),
        ({"guidance": GuidanceConfig(omega=-1.0)}, "omega=-1.0 is out of range: give 0 to 100"),
        ({"guidance": GuidanceConfig(omega_t=101.0)}, "omega_t=101.0 is out of range: give 0 to 100"),
    ],
)
def test_a_setting_out_of_range_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        replace(SamplingConfig(), **changes).check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t_s": 5}, "t_s=5: this checkpoint has learned t_s=0 to 4: give 4 or less, or a checkpoint of stage 5"),
        ({"steps": 101}, "steps=101: the noise schedule of this checkpoint has 100: give fewer"),
        ({"overlap": 8}, "overlap=8: this checkpoint takes 8 frames at once: give fewer"),
    ],
)
def test_what_a_model_has_not_learned_is_refused(changes: dict, message: str) -> None:
    SamplingConfig(t_s=4, steps=100, overlap=7).check_model(highest_level=4, window=8, timesteps=100)
    sampling = replace(SamplingConfig(), **changes)
    sampling.check()
    with pytest.raises(UserError, match=f"^{message}$"):
        sampling.check_model(highest_level=4, window=8, timesteps=100 if "steps" in changes else 1000)


def test_the_defaults_are_read_without_torch() -> None:
    """gen1-edit --help shows them and must stay fast."""
    code = (
        "import sys\n"
        "from gen1_train.diffusion.guidance import GuidanceConfig\n"
        "from gen1_train.diffusion.sampling import SamplingConfig\n"
        "print(SamplingConfig.steps, SamplingConfig.solver, GuidanceConfig.omega, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout == "50 ddim 7.5 False\n", result.stderr
