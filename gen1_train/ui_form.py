"""What is filled in on the page, as settings of an edit, within the page's limits."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from gen1_train.edit import EditConfig
from gen1_train.errors import UserError
from gen1_train.video.probe import VideoError
from gen1_train.video.stream import Selection, expected_frames, probe_input

NUMBERS = ("image_share", "omega", "omega_t", "t_s", "init_strength", "temporal", "steps", "solver", "seed", "start")
TEXTS = ("input", "prompt", "image", "negative_prompt", "mask")  # and files; empty is null
OPTIONAL = ("frames", "fps")  # numbers that may be left empty
WHOLE = "whole frame"  # the choice of no mask
MAX_STEPS = 200  # bounds the time of one edit; ours
MAX_FPS = 60.0  # with ui_seconds, bounds the frames of one edit; ours
PAGE_ALONE = ("ui", "ui_host", "ui_port", "ui_megabytes", "ui_seconds")


@dataclass(frozen=True)
class Limits:
    """Of what the page takes from a visitor."""

    megabytes: int  # of one upload
    seconds: float  # of a video

    @classmethod
    def of(cls, config: EditConfig) -> "Limits":
        """Raises UserError."""
        if config.ui_megabytes < 1 or not 0 < config.ui_seconds < float("inf"):
            given = f"ui_megabytes={config.ui_megabytes}, ui_seconds={config.ui_seconds:g}"
            raise UserError(f"{given}: the limits of an upload must be above 0")
        return cls(config.ui_megabytes, config.ui_seconds)

    @property
    def frames(self) -> int:
        """The most frames of one edit."""
        return max(1, int(self.seconds * MAX_FPS))

    def check_upload(self, path: str) -> None:
        """Raises UserError for a file that is too large, that is no video or image, or that lasts too long."""
        name = Path(path).name
        try:
            megabytes = Path(path).stat().st_size / 1e6
        except OSError as error:
            raise UserError(f"{name} is no longer here: upload it again") from error
        if megabytes > self.megabytes:
            raise UserError(f"{name} has {megabytes:.1f} MB: this page takes {self.megabytes} MB")
        try:
            info = probe_input(path)
        except VideoError as error:
            raise UserError(f"{name} cannot be decoded: {error}") from error
        seconds = info.seconds if info.seconds is not None else info.expected_frames / info.fps
        if seconds > self.seconds:
            raise UserError(f"{name} lasts {seconds:.1f} s: this page takes {self.seconds:g} s, cut it to a part")

    def bounded(self, config: EditConfig) -> EditConfig:
        """The settings, with as many frames as are allowed where a header cannot be trusted. Raises UserError."""
        if config.steps > MAX_STEPS:
            raise UserError(f"steps={config.steps}: this page takes {MAX_STEPS}")
        self.check_upload(str(config.input))
        info = probe_input(str(config.input))
        expected = expected_frames(info, Selection(config.start, config.frames, config.stride, config.fps)) or 0
        if expected > self.frames:
            raise UserError(f"{expected} frames are more than this page edits ({self.frames}): lower fps or frames")
        return replace(config, frames=min(config.frames or self.frames, self.frames))


def read_form(form: Mapping[str, Any], base: EditConfig, output: Path) -> EditConfig:
    """The edit that a form asks for; what it does not hold is as in `base`. Raises UserError for what is missing."""
    given = {name: form[name] for name in NUMBERS} | {name: form[name] for name in OPTIONAL}
    given |= {name: (form[name] or "").strip() or None for name in TEXTS}
    if form["region"] != WHOLE:
        if given["mask"] is not None:
            raise UserError(f"the mask is given twice: remove the file, or choose {WHOLE}")
        given["mask"] = form["region"]
    if given["input"] is None:
        raise UserError("there is nothing to edit: upload a video or an image")
    return replace(base, output=str(output), prompts=None, sweep=None, **given)


def command_line(config: EditConfig) -> str:
    """The call of gen1-edit that makes the same edit, with the files under their own names."""
    files = {"input": config.input, "image": config.image, "mask": config.mask, "output": config.output}
    names = {key: Path(path).name for key, path in files.items() if path}
    given = []
    for field in fields(EditConfig):
        value = names.get(field.name, getattr(config, field.name))
        if field.name in PAGE_ALONE or field.name == "structure_output" or value == field.default:
            continue
        text = f"{value:g}" if isinstance(value, float) else str(value).lower() if value is False else str(value)
        given.append(f"{field.name}={text}")
    return shlex.join(["gen1-edit", *given])
