"""The edits of a call of gen1-edit: dials, sweeps and lists of prompts, checked before anything is loaded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gen1_train.editing.config import EditConfig
from gen1_train.editing.variants import DIALS, read_sweep, variants
from gen1_train.errors import UserError

CONFIG = EditConfig(checkpoint="run", input="in.mp4", output="out.mp4", prompt="a fox")


def test_a_single_edit_takes_every_dial() -> None:
    dials: dict[str, Any] = {"omega": 3.0, "omega_t": 1.5, "t_s": 2, "steps": 7, "solver": "dpm++", "seed": 5}
    (variant,) = variants(replace(CONFIG, **dials, init_strength=0.5, temporal=False, batch=9, image_share=0.25))
    sampling = variant.sampling
    settings = {**vars(sampling), **vars(sampling.guidance)}
    assert {name: settings[name] for name in dials} == dials
    assert (sampling.init_strength, sampling.temporal, sampling.batch) == (0.5, False, 9)
    assert (variant.prompt, variant.image_share, variant.label) == ("a fox", 0.25, "")


@pytest.mark.parametrize(
    ("sweep", "labels"),
    [
        ("omega_t", ["omega_t=0", "omega_t=0.5", "omega_t=1", "omega_t=1.5"]),
        ("omega_t=0.5,1", ["omega_t=0.5", "omega_t=1"]),
        ("t_s = 0 | 7", ["t_s=0", "t_s=7"]),
        ("prompt=a fox, red|a cat", ["a fox, red", "a cat"]),
        ("solver", ["solver=ddim", "solver=dpm++"]),
    ],
)
def test_a_sweep_is_one_edit_for_each_value(sweep: str, labels: list[str]) -> None:
    edits = variants(replace(CONFIG, sweep=sweep))
    assert [edit.label for edit in edits] == labels
    assert len({(repr(edit.sampling), edit.prompt) for edit in edits}) == len(labels)


@pytest.mark.parametrize("dial", DIALS)
def test_every_dial_is_a_setting_that_a_sweep_changes(dial: str) -> None:
    values = DIALS[dial][1] or ("a", "b")
    sweep = f"{dial}={'|'.join(map(str, values))}"
    edits = variants(replace(CONFIG, image="i.png", sweep=sweep))
    assert len({(repr(edit.sampling), edit.prompt, edit.image_share) for edit in edits}) == len(values)
    assert read_sweep(sweep) == (dial, list(values))


def test_a_file_of_prompts_is_one_edit_for_each_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a fox\n\n  ein Kätzchen, grün \n")
    edits = variants(replace(CONFIG, prompt=None, prompts=str(path)))
    assert [edit.prompt for edit in edits] == ["a fox", "ein Kätzchen, grün"]


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"t_s": 8}, "t_s=8 is out of range"),
    ({"t_s": -1}, "t_s=-1 is out of range"),
    ({"omega": -0.1}, "omega=-0.1 is out of range"),
    ({"omega_t": 101.0}, "omega_t=101.0 is out of range"),
    ({"omega": float("nan")}, "omega=nan is out of range"),
    ({"steps": 0}, "steps=0 is out of range"),
    ({"steps": 1001}, "steps=1001 is out of range"),
    ({"solver": "euler"}, "solver=euler is not one of ddim, dpm"),
    ({"init_strength": 0.0}, "init_strength=0.0 is out of range"),
    ({"init_strength": 1.1}, "init_strength=1.1 is out of range"),
    ({"image_share": 1.5}, "image_share=1.5 is a share"),
    ({"batch": 0}, "batch=0 must be 1 or more"),
    ({"prompt": None}, "add prompt=TEXT or image=FILE"),
    ({"prompt": "  "}, "prompt= is empty"),
    ({"negative_prompt": ""}, "negative_prompt= is empty"),
    ({"sweep": "color"}, "'color' is not a dial; choose from omega"),
    ({"sweep": "t_s=1,x"}, "separate numbers with commas"),
    ({"sweep": "t_s=0,9"}, "t_s=9 is out of range"),
    ({"sweep": "prompt"}, "has no values"),
    ({"sweep": "omega_t="}, "has no values"),
    ({"sweep": "t_s", "prompts": "p.txt"}, "sweep= and prompts="),
    ({"prompts": "p.txt"}, "give prompt= or prompts="),
    ({"prompt": None, "prompts": "no such file"}, "prompts=no such file cannot be read"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_a_mistake_is_reported_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        variants(replace(CONFIG, **changes))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_file_without_prompts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.txt"
    path.write_text("\n \n")
    with pytest.raises(UserError, match="has no prompts"):
        variants(replace(CONFIG, prompt=None, prompts=str(path)))
