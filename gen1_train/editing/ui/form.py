"""The page's form as settings of an edit, within the page's limits."""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from gen1_train.diffusion.recommended import DIALS, Recommended
from gen1_train.editing.config import EditConfig
from gen1_train.errors import UserError
from gen1_train.video.decoding.probe import VideoInfo
from gen1_train.video.errors import VideoError
from gen1_train.video.stream import expected_frames, output_fps, probe_input

# numbers and choices; an empty field has its value on the command line
NUMBERS = ("image_share", *DIALS, "temporal", "seed", "start")
TEXTS = ("input", "prompt", "image", "negative_prompt", "mask")  # and paths of files; empty is null
OPTIONAL = {"frames": int, "fps": float}  # numbers as texts, since a number field cannot stay empty; empty is null
WHOLE = "whole frame"  # the choice without a mask
MAX_STEPS = 200  # bounds the time of one edit; ours
MAX_FPS = 60.0  # with ui_seconds, bounds the frames of one edit; ours
REACH = 20  # times ui_seconds: the part of a video that frames are taken from, since all before them is decoded; ours
NONE = Recommended()  # of a checkpoint that recommends nothing
# settings that are not part of the command line of an edit
PAGE_ONLY = ("ui", "ui_host", "ui_names", "ui_port", "ui_megabytes", "ui_seconds", "structure_output", "log")


@dataclass(frozen=True)
class Limits:
    """What the page accepts from a visitor."""

    megabytes: int  # of one upload
    seconds: float  # of the part of a video that is edited

    @classmethod
    def of(cls, config: EditConfig) -> "Limits":
        """Raises UserError for a limit that is not above 0."""
        if config.ui_megabytes < 1 or not 0 < config.ui_seconds < float("inf"):
            settings = f"ui_megabytes={config.ui_megabytes}, ui_seconds={config.ui_seconds:g}"
            raise UserError(f"{settings}: the limits of an upload must be above 0")
        return cls(config.ui_megabytes, config.ui_seconds)

    @property
    def frames(self) -> int:
        """The most frames of one edit."""
        return max(1, int(self.seconds * MAX_FPS))

    @property
    def reach(self) -> float:
        """The seconds of a video that frames are taken from."""
        return self.seconds * REACH

    def check_upload(self, path: str) -> VideoInfo:
        """Returns the header. Raises UserError for a file that is too large, or is not a video or an image."""
        name = Path(path).name
        try:
            megabytes = Path(path).stat().st_size / 1e6
        except OSError as error:
            raise UserError(f"{name} is no longer on the server: upload it again") from error
        if megabytes > self.megabytes:
            raise UserError(f"{name} has {megabytes:.1f} MB: upload at most {self.megabytes} MB")
        try:
            return probe_input(path)
        except VideoError as error:
            raise UserError(f"{name} cannot be decoded: {error}") from error

    def bounded(self, config: EditConfig, learned: float | None = None) -> EditConfig:
        """Returns the settings with a bound on the frames, since a header may be wrong. Raises UserError.

        `learned`: see `EditConfig.at_pace`.
        """
        steps = config.sampling.steps
        if steps > MAX_STEPS:
            raise UserError(f"steps={steps}: give {MAX_STEPS} or less")
        info = self.check_upload(str(config.input))
        if info.expected_frames == 0 and config.frames is None:
            name = Path(str(config.input)).name
            raise UserError(
                f"{name} does not tell its length: set frames={self.frames} or less, under Region and length"
            )
        config = config.at_pace(learned, info.fps)
        selection = config.selection
        fps = output_fps(info, selection)
        expected = expected_frames(info, selection) or config.frames or 0
        self._check_part(Path(str(config.input)).name, config.start, info.fps, expected, fps)
        # by time, a frame may take long to reach; by number, the frames of a video with a wrong rate are enough
        most = self.frames if config.fps is None else min(self.frames, max(1, math.ceil(self.seconds * config.fps)))
        return replace(config, frames=min(config.frames or most, most))

    def _check_part(self, name: str, start: int, source_fps: float, frames: int, fps: float) -> None:
        """Raises UserError for a part of a video that is too long, or too far from its beginning.

        `source_fps`, `fps`: of the file and of the edit. `frames`: of the edit.
        """
        if frames / fps > self.seconds + 0.5 / fps and frames > 1:
            most = max(1, int(min(self.seconds * fps, self.frames)))
            raise UserError(
                f"{frames / fps:.1f} s of {name} are selected, and this page edits up to {self.seconds:g} s: "
                f"set frames={most} or less, under Region and length"
            )
        if frames > self.frames:
            raise UserError(f"{frames} frames are more than this page edits ({self.frames}): lower fps or frames")
        if start / source_fps > self.reach or start > self.reach * MAX_FPS:
            seconds = start / source_fps
            raise UserError(
                f"start={start} is at {seconds:.1f} s of {name}, and this page reads the first {self.reach:g} s, since "
                f"all frames before the start are decoded: cut the video, or set start={int(self.reach * source_fps)} "
                "or less"
            )


def read_form(form: Mapping[str, Any], base: EditConfig, output: Path, has_prior: bool = True) -> EditConfig:
    """Returns the edit that a form asks for, with all other settings from `base`.

    Raises UserError without an input or a content, and for a field that is not a number.
    """
    settings = {name: base_or(form[name], base, name) for name in NUMBERS}
    settings |= {name: read_number(form[name], name, kind) for name, kind in OPTIONAL.items()}
    settings |= {name: (form[name] or "").strip() or None for name in TEXTS}
    if form["region"] != WHOLE:
        if settings["mask"] is not None:
            raise UserError(f"the mask is given twice: remove the file, or choose {WHOLE}")
        settings["mask"] = form["region"]
    if settings["input"] is None:
        raise UserError("there is nothing to edit: upload a video or an image")
    if settings["prompt"] is None and settings["image"] is None:
        write = "write a prompt, or upload" if has_prior else "upload"
        raise UserError(f"the content is missing: {write} an example image")
    return replace(base, output=str(output), prompts=None, sweep=None, images=[], **settings)


def base_or(value: Any, base: EditConfig, name: str) -> Any:
    """Returns the value of a field; if it is empty, the one on the command line of the page."""
    return getattr(base, name) if value is None else value


def read_number(text: Any, name: str, kind: type) -> Any:
    """Returns the number in a text field, and None for an empty one. Raises UserError."""
    text = str("" if text is None else text).strip()
    try:
        return kind(text) if text else None
    except ValueError:
        raise UserError(f"{name}={text} is not a {'whole ' * (kind is int)}number") from None


def with_values(config: EditConfig, recommended: Recommended) -> EditConfig:
    """Returns the settings with a value for each dial: given, recommended or the usual one."""
    sampling = config.sampling_from(recommended)
    values = vars(sampling) | vars(sampling.guidance)
    return replace(config, **{name: values[name] for name in DIALS})


def command_line(config: EditConfig, recommended: Recommended = NONE) -> str:
    """Returns the call of gen1-edit that makes the same edit. Files are given by name, without their folder."""
    files = {"input": config.input, "image": config.image, "mask": config.mask, "output": config.output}
    names = {key: Path(path).name for key, path in files.items() if path}
    usual = with_values(EditConfig(), recommended)
    arguments = []
    for field in fields(EditConfig):
        value = names.get(field.name, getattr(config, field.name))
        if field.name in PAGE_ONLY or value == getattr(usual, field.name):
            continue
        arguments.append(f"{field.name}={text_of(value)}")
    return shlex.join(["gen1-edit", *arguments])


def text_of(value: Any) -> str:
    """Returns a value as it is written on a command line."""
    if isinstance(value, float):
        return f"{value:.10g}"
    return str(value).lower() if isinstance(value, bool) else str(value)
