"""The settings of a sweep, and the sampler's settings for each."""

from dataclasses import replace
from typing import Any

import pytest

from gen1_train.diffusion.guidance import GuidanceConfig
from gen1_train.diffusion.sampling import SamplingConfig
from gen1_train.errors import UserError
from gen1_train.evaluation.methods import INPUT, SweepConfig, sampling_of, settings_of

SWEEP = SweepConfig()


def test_each_dial_is_swept_while_the_other_is_fixed() -> None:
    names = [setting.name for setting in settings_of(SWEEP)]
    assert names[0] == INPUT and len(set(names)) == len(names) == 1 + 6 + 4 + 3
    assert [name for name in names if name.startswith("gen1")] == [
        "gen1_omega_t=0.5_t_s=0",
        "gen1_omega_t=1_t_s=0",
        "gen1_omega_t=1.5_t_s=0",
        "gen1_omega_t=1_t_s=2",
        "gen1_omega_t=1_t_s=4",
        "gen1_omega_t=1_t_s=7",
    ]


def test_a_grid_has_every_pair_of_values() -> None:
    grid = [setting for setting in settings_of(replace(SWEEP, grid=True)) if setting.method == "gen1"]
    assert {(setting.omega_t, setting.t_s) for setting in grid} == {
        (omega_t, t_s) for omega_t in (0.5, 1.0, 1.5) for t_s in (0, 2, 4, 7)
    }


def test_a_dial_is_fixed_at_its_first_value_if_the_default_is_not_listed() -> None:
    sweep = SweepConfig(methods=["gen1"], omega_t=[0.8, 1.2], t_s=[3, 5])
    assert [setting.name for setting in settings_of(sweep)[1:]] == [
        "gen1_omega_t=0.8_t_s=3",
        "gen1_omega_t=1.2_t_s=3",
        "gen1_omega_t=0.8_t_s=5",
    ]


def test_each_method_has_its_own_sampling() -> None:
    sweep = SweepConfig(omega_t=[1.5], t_s=[2], init_strength=[0.6], omega=3.0, steps=9, solver="dpm++")
    common = SamplingConfig(steps=9, solver="dpm++", seed=3, guidance=GuidanceConfig(omega=3.0))
    assert [
        sampling_of(setting, sweep, 3, highest_level=7) for setting in settings_of(sweep) if setting.method != INPUT
    ] == [
        replace(common, t_s=2, guidance=GuidanceConfig(omega=3.0, omega_t=1.5)),
        replace(common, t_s=2, temporal=False),
        replace(common, t_s=7, temporal=False, init_strength=0.6),
    ]


def test_sdedit_has_the_freest_structure_that_the_checkpoint_has_learned() -> None:
    sweep = SweepConfig(methods=["sdedit"], init_strength=[0.6])
    sdedit = settings_of(sweep)[1]
    assert [sampling_of(sdedit, sweep, 0, level).t_s for level in (7, 3, 0)] == [7, 3, 0]
    sweep.check_levels(0)


def test_levels_that_the_checkpoint_has_not_learned_are_refused() -> None:
    SWEEP.check_levels(7)
    with pytest.raises(UserError, match=r"^t_s=7: this checkpoint has learned t_s=0 to 4: give 4 or less, or a "):
        SWEEP.check_levels(4)
    with pytest.raises(UserError, match=r"^t_s=2: this checkpoint has learned only t_s=0: give 0, or a checkpoint of"):
        SWEEP.check_levels(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["gen1", "text2live"]}, "no method 'text2live'"),
        ({"methods": []}, "methods=[]"),
        ({"omega_t": []}, "omega_t=[]"),
        ({"omega_t": [1.0, 1.0]}, "twice"),
        ({"t_s": [0, 8]}, "t_s=8 is out of range"),
    ],
)
def test_a_mistake_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        replace(SWEEP, **change).check()
    assert message in str(error.value) and "\n" not in str(error.value)
