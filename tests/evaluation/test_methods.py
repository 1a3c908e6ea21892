"""Which settings there are, and what each asks the editor for."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gen1_train.errors import UserError
from gen1_train.evaluation.methods import INPUT, Setting, SweepConfig, edit, settings_of
from tests.evaluation.fake import FakeEditor, moving

SWEEP = SweepConfig()


class Recorder(FakeEditor):
    def __init__(self) -> None:
        super().__init__()
        self.asked: list[dict[str, Any]] = []

    def __call__(self, frames: np.ndarray, **dials: Any) -> np.ndarray:
        self.asked.append(dials)
        return frames


def test_each_dial_is_swept_while_the_other_is_held() -> None:
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


def test_a_grid_has_all_of_both() -> None:
    grid = [setting for setting in settings_of(replace(SWEEP, grid=True)) if setting.method == "gen1"]
    assert {(setting.omega_t, setting.t_s) for setting in grid} == {
        (time, level) for time in (0.5, 1.0, 1.5) for level in (0, 2, 4, 7)
    }


def test_where_the_usual_value_is_not_listed_the_first_is_held() -> None:
    sweep = SweepConfig(methods=["gen1"], omega_t=[0.8, 1.2], t_s=[3, 5])
    assert [setting.name for setting in settings_of(sweep)[1:]] == [
        "gen1_omega_t=0.8_t_s=3",
        "gen1_omega_t=1.2_t_s=3",
        "gen1_omega_t=0.8_t_s=5",
    ]


def test_each_method_asks_for_what_it_is() -> None:
    editor, frames = Recorder(), moving(2)
    sweep = SweepConfig(methods=["gen1", "per_frame", "sdedit"], omega_t=[1.5], t_s=[2], init_strength=[0.6])
    for setting in settings_of(sweep):
        edit(editor, setting, sweep, frames, {"prompt": "fog"}, seed=3)
    common = {"prompt": "fog", "omega": 7.5, "steps": 50, "solver": "ddim", "seed": 3}
    assert editor.asked == [  # nothing for the input
        common | {"omega_t": 1.5, "t_s": 2},
        common | {"temporal": False, "t_s": 2},
        common | {"temporal": False, "t_s": 7, "init_strength": 0.6},
    ]
    assert edit(editor, Setting(INPUT), sweep, frames, {}, seed=3) is frames


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"methods": ["gen1", "text2live"]}, "no method 'text2live'"),
        ({"methods": []}, "methods=[]"),
        ({"omega_t": []}, "omega_t=[]"),
        ({"omega_t": [1.0, 1.0]}, "twice"),
    ],
)
def test_a_list_that_cannot_be_meant_is_one_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        settings_of(replace(SWEEP, **change))
    assert said in str(error.value) and "\n" not in str(error.value)
