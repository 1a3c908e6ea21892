"""The page's form as settings of an edit, its limits, and the command that makes the same edit."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gen1_train.cli.arguments import quoted
from gen1_train.diffusion.recommended import Recommended
from gen1_train.editing.config import EditConfig
from gen1_train.editing.ui.form import WHOLE, Limits, command_line, read_form, with_values
from gen1_train.errors import UserError
from gen1_train.video.encode import write_video
from miniature.world.render import render_clip

RECOMMENDED = Recommended({"omega": 3.0, "steps": 12})
FORM: dict[str, Any] = {
    "input": "/up/clip.mp4",
    "prompt": "  ",
    "image": "/up/a b.png",
    "negative_prompt": None,
    "mask": None,
    "image_share": 0.5,
    "omega": 7.5,
    "omega_t": 1.25,
    "t_s": 3,
    "init_strength": 1,
    "rescale": 0.5,
    "temporal": True,
    "steps": 2,
    "solver": "dpm++",
    "seed": 7,
    "start": 0,
    "frames": None,
    "fps": None,
    "region": WHOLE,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 12 frames and one second, one of 120 frames and ten seconds, and a file that is no video."""
    folder = tmp_path_factory.mktemp("form")
    write_video(folder / "clip.mp4", render_clip(3, 12, 96, 128).frames, 12)
    write_video(folder / "long.mp4", np.repeat(render_clip(3, 12, 64, 64).frames, 10, axis=0), 12)
    (folder / "text.mp4").write_text("not a video")
    return folder


def test_a_form_becomes_an_edit_and_empty_fields_are_null() -> None:
    base = EditConfig(checkpoint="runs/stage5", prompt="from the command line", batch=2, size="input")
    config = read_form(FORM, base, Path("/run/edit.mp4"))
    assert config.size == "input" and " size=input" in command_line(config)
    assert (config.input, config.prompt, config.image, config.mask) == ("/up/clip.mp4", None, "/up/a b.png", None)
    assert (config.omega_t, config.t_s, config.solver, config.output) == (1.25, 3, "dpm++", "/run/edit.mp4")
    assert (config.checkpoint, config.batch) == ("runs/stage5", 2)


def test_the_mask_is_a_region_or_a_file_and_not_both() -> None:
    base, output = EditConfig(checkpoint="c"), Path("edit.mp4")
    assert read_form(FORM | {"region": "foreground"}, base, output).mask == "foreground"
    assert read_form(FORM | {"mask": "/up/m.png"}, base, output).mask == "/up/m.png"
    with pytest.raises(UserError, match="given twice"):
        read_form(FORM | {"region": "foreground", "mask": "/up/m.png"}, base, output)
    with pytest.raises(UserError, match="upload a video"):
        read_form(FORM | {"input": None}, base, output)
    with pytest.raises(UserError, match="write a prompt, or upload an example image"):
        read_form(FORM | {"image": None}, base, output)
    with pytest.raises(UserError, match="missing: upload an example image"):
        read_form(FORM | {"image": None}, base, output, has_prior=False)


def test_the_command_line_makes_the_same_edit_with_files_by_name() -> None:
    form = FORM | {"prompt": 'it\'s a fox, "red" & 100 %', "temporal": False, "frames": "8", "fps": " "}
    config = read_form(form, EditConfig(checkpoint="runs/stage5", ui=True, ui_port=80), Path("/run/edit.mp4"))
    name, *arguments = shlex.split(command_line(config))
    assert name == "gen1-edit"
    assert dict(argument.split("=", 1) for argument in arguments) == {
        "checkpoint": "runs/stage5",
        "input": "clip.mp4",
        "image": "a b.png",
        "output": "edit.mp4",
        "prompt": form["prompt"],
        "omega_t": "1.25",
        "rescale": "0.5",
        "t_s": "3",
        "solver": "dpm++",
        "steps": "2",
        "seed": "7",
        "temporal": "false",
        "frames": "8",
    }
    assert all(quoted(argument, EditConfig) for argument in arguments)


def test_the_command_line_names_a_precision_that_is_not_auto() -> None:
    form = FORM | {"prompt": "a fox"}
    base = EditConfig(checkpoint="runs/stage5")
    output = Path("/run/edit.mp4")
    assert not {"precision", "compile", "tf32"} & {word.split("=")[0] for word in command(form, base, output)}
    given = command(form, replace(base, precision="fp32", compile=True, tf32=False), output)
    assert {"precision=fp32", "compile=true", "tf32=false"} <= set(given)


def command(form: dict[str, Any], base: EditConfig, output: Path) -> list[str]:
    return shlex.split(command_line(read_form(form, base, output)))


def test_an_upload_beyond_the_limits_is_refused_in_one_line(folder: Path) -> None:
    config = EditConfig(input=str(folder / "clip.mp4"), steps=2)
    limits = Limits(megabytes=1, seconds=2)
    assert limits.bounded(config).frames == 120  # the clip has 12: this bounds a file with a wrong header
    assert limits.bounded(replace(config, frames=5)).frames == 5
    for bounds, changes, message in (
        (
            replace(limits, seconds=0.5),
            {},
            r"1.0 s of clip.mp4 are selected, and this page edits up to 0.5 s: set frames=6",
        ),
        (limits, {"start": -1}, "start=-1: it must be 0 or more"),
        (replace(limits, megabytes=0), {}, r"clip.mp4 has .* MB: upload at most 0 MB"),
        (limits, {"steps": 1000}, "steps=1000: give 200 or less"),
        (limits, {"fps": 200.0}, r"200 frames are more than this page edits \(120\)"),
        (limits, {"input": str(folder / "text.mp4")}, "text.mp4 cannot be decoded"),
        (limits, {"input": str(folder / "gone.mp4")}, "gone.mp4 is no longer on the server"),
    ):
        with pytest.raises(UserError, match=message):
            bounds.bounded(replace(config, **changes))  # type: ignore[arg-type]


NUMBERS: list[tuple[str, Any, Any]] = [
    ("frames", "", None),
    ("frames", None, None),
    ("frames", " 12 ", 12),
    ("fps", "23.976", 23.976),
    ("seed", None, 0),
    ("start", None, 3),
    ("omega", None, 4.0),
    ("image_share", None, 0.5),
]


@pytest.mark.parametrize(("name", "field", "value"), NUMBERS)
def test_an_empty_field_has_the_value_of_the_command_line(name: str, field: Any, value: Any) -> None:
    config = read_form(FORM | {name: field}, EditConfig(start=3, omega=4.0), Path("edit.mp4"))
    assert getattr(config, name) == value


@pytest.mark.parametrize(("name", "text", "kind"), [("frames", "2.5", "whole number"), ("fps", "all", "number")])
def test_a_text_that_is_no_number_is_refused(name: str, text: str, kind: str) -> None:
    with pytest.raises(UserError, match=f"{name}={text} is not a {kind}"):
        read_form(FORM | {name: text}, EditConfig(), Path("edit.mp4"))


def test_a_part_of_a_long_video_is_accepted_within_reach(folder: Path) -> None:
    limits = Limits(megabytes=1, seconds=2)
    config = EditConfig(input=str(folder / "long.mp4"), steps=2)
    for accepted in ({"frames": 24}, {"start": 96}, {"start": 100, "frames": 5}, {"fps": 3.0, "frames": 6}):
        bounded = limits.bounded(replace(config, **accepted))  # type: ignore[arg-type]
        assert bounded.frames == accepted.get("frames", 120)
    for refused, message in (
        ({}, "10.0 s of long.mp4 are selected, and this page edits up to 2 s: set frames=24 or less"),
        ({"frames": 30}, "2.5 s of long.mp4 are selected"),
        ({"fps": 1.0, "frames": 5}, "5.0 s of long.mp4 are selected, and this page edits up to 2 s: set frames=2"),
    ):
        with pytest.raises(UserError, match=message):
            limits.bounded(replace(config, **refused))  # type: ignore[arg-type]
    near = Limits(megabytes=1, seconds=0.25)  # reads 5 s
    with pytest.raises(
        UserError, match=r"start=72 is at 6.0 s of long.mp4, and this page reads the first 5 s.*start=60"
    ):
        near.bounded(replace(config, start=72, frames=2))


def test_the_initial_dials_are_given_recommended_or_the_usual_ones() -> None:
    config = with_values(EditConfig(omega=5.0), RECOMMENDED)
    assert (config.omega, config.steps, config.solver, config.omega_t) == (5.0, 12, "ddim", 1.0)


def test_the_command_leaves_out_what_the_checkpoint_recommends() -> None:
    config = with_values(EditConfig(omega=7.5, fps=30000 / 1001), RECOMMENDED)
    assert command_line(config, RECOMMENDED) == "gen1-edit fps=29.97002997 omega=7.5"
    assert command_line(config) == "gen1-edit fps=29.97002997 steps=12"
