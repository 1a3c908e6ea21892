"""Edits from files to files: a video, of any length and size, and its edits."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from gen1_train.diffusion.editing import frames_per_step
from gen1_train.diffusion.sampler import timesteps
from gen1_train.edit_variants import Variant, variants
from gen1_train.editor import CHUNK, ClipStructure, Gen1Editor
from gen1_train.errors import UserError
from gen1_train.masks import BY_DEPTH, mask_by_depth
from gen1_train.sheet import sheet
from gen1_train.spool import Spool
from gen1_train.video.audio import AudioSource
from gen1_train.video.encode import VideoWriter
from gen1_train.video.geometry import nearest_bucket, parse_bucket
from gen1_train.video.image import read_image
from gen1_train.video.mask import read_mask
from gen1_train.video.probe import VideoError, VideoInfo
from gen1_train.video.stream import Selection, expected_frames, output_fps, probe_input, read_selected

if TYPE_CHECKING:
    from gen1_train.edit import EditConfig

Watch = Callable[[str, int, int | None], object]  # is told what is done, how many frames of it, and of how many


@dataclass
class Footage:
    """The part of the input that is edited."""

    frames: Spool  # uint8 (n, h, w, 3), at the bucket's size
    seconds: list[float]  # when each is shown, since the first
    fps: float  # of the output, where the seconds are even
    audio: AudioSource | None  # the input's sound, if it has any


def edit_files(
    config: "EditConfig",
    editor: Gen1Editor | None = None,
    watch: Watch | None = None,
    input_output: Path | None = None,
) -> None:
    """Edits `config.input` into `config.output`. Raises UserError; each output is whole or not there.

    What can be checked is checked before anything is loaded, and the folder of the output before anything is computed.
    For the page: an `editor` that is loaded already; `watch` instead of lines on the console, it may raise to end the
    edit; `input_output`, an .mp4 to write the input into as the model sees it.
    """
    check_given(config)
    wanted = variants(config)
    selection = Selection(config.start, config.frames, config.stride, config.fps)
    example, info = read_example(config), probe_source(config, selection)
    outputs = output_paths(config, wanted)
    for path in (*outputs, Path(config.structure_output or outputs[0])):
        check_folder(path.parent)
    if editor is None:
        editor = Gen1Editor.from_pretrained(str(config.checkpoint), config.device, config.weights, config.prior)
    contents = [editor.content(v.prompt, example, v.image_share, v.sampling.seed) for v in wanted]
    negative = editor.content(config.negative_prompt) if config.negative_prompt is not None else None
    width, height = choose_bucket(config, editor, info)
    with ExitStack() as stack:
        frames = stack.enter_context(Spool())
        footage = read_footage(config, info, selection, (width, height), frames, watch)
        if input_output is not None:
            write(input_output, chunked(frames), footage, watch)
        structure = stack.enter_context(editor.structure(footage.frames))
        mask = read_masks(config, editor, structure, footage, info, selection, (width, height), stack)
        run = Run(editor, footage, structure, mask)
        latents = run.sample(wanted, contents, negative, outputs[0].name, watch)
        if config.structure_output is not None:
            write(Path(config.structure_output), grey(structure, wanted[0].sampling.t_s), footage, watch)
        if config.sweep is None:
            for path, video in zip(outputs, latents):
                write(path, run.pictures(video), footage, watch)
        else:
            write(outputs[0], run.compared(wanted, latents), footage, watch)


def check_given(config: "EditConfig") -> None:
    """Raises UserError for a setting that is missing or cannot be, by itself."""
    for name in ("checkpoint", "input", "output"):
        if getattr(config, name) is None:
            raise UserError(f"{name} is not given: add {name}=…")
    for name in ("output", "structure_output"):
        path = getattr(config, name)
        if path is not None and Path(path).suffix != ".mp4":
            raise UserError(f"{name}={path} must end with .mp4")
    if config.start < 0 or config.stride < 1 or (config.frames is not None and config.frames < 1):
        raise UserError(f"start={config.start}, frames={config.frames}, stride={config.stride}: need 0, 1, 1 or more")
    if config.fps is not None and not 0 < config.fps <= 1000:
        raise UserError(f"fps={config.fps:g} is out of range: give frames a second above 0")
    if config.fps is not None and config.stride > 1:
        raise UserError("fps= and stride= both say which frames are edited: give one of them")


def read_example(config: "EditConfig") -> np.ndarray | None:
    if config.image is None:
        return None
    try:
        return read_image(config.image)
    except VideoError as error:
        raise UserError(f"image={config.image} cannot be read: {error}") from error


def probe_source(config: "EditConfig", selection: Selection) -> VideoInfo:
    path = Path(str(config.input))
    if not path.is_file():
        raise UserError(f"input={path} is not there: give a video file")
    try:
        info = probe_input(path)
    except VideoError as error:
        raise UserError(f"input={path} cannot be decoded: {error}") from error
    if info.frames is not None and selection.start >= info.frames:
        raise UserError(f"input={path} has {info.frames} frames: start={selection.start} is beyond its end")
    return info


def output_paths(config: "EditConfig", wanted: list[Variant]) -> list[Path]:
    output = Path(str(config.output))
    if config.prompts is None:
        return [output]
    return [output.with_stem(f"{output.stem}-{number}") for number in range(1, len(wanted) + 1)]


def check_folder(folder: Path) -> None:
    """Makes the folder of an output and sees whether it can be written to. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror or error}") from error


def choose_bucket(config: "EditConfig", editor: Gen1Editor, info: VideoInfo) -> tuple[int, int]:
    """Width and height to edit at. Raises UserError for a bucket that is none, or that the UNet cannot halve."""
    buckets = [config.bucket] if config.bucket else editor.buckets
    try:
        width, height = parse_bucket(nearest_bucket(info.width, info.height, buckets))
    except ValueError as error:
        raise UserError(f"bucket={config.bucket}: {error}") from error
    factor = editor.autoencoder.factor
    if width % factor or height % factor:
        raise UserError(f"bucket={config.bucket}: both sides must be multiples of {factor} pixels")
    return width, height


def read_footage(
    config: "EditConfig",
    info: VideoInfo,
    selection: Selection,
    size: tuple[int, int],
    frames: Spool,
    watch: Watch | None = None,
) -> Footage:
    """Reads the chosen frames into a spool. Raises UserError."""
    seconds, first, last = list[float](), 0.0, 0.0
    total = expected_frames(info, selection)
    try:
        with counted("reading", total, watch, leave=False) as count:
            for frame in read_selected(str(config.input), selection, *size):
                frames.append(frame.pixels)
                first = first if seconds else frame.source_seconds
                seconds.append(frame.seconds)
                last = frame.source_seconds
                count(1)
    except VideoError as error:
        raise UserError(f"input={config.input} cannot be decoded: {error}") from error
    fps = output_fps(info, selection)
    audio = AudioSource(str(config.input), first, last + 1 / fps) if config.audio else None
    return Footage(frames, seconds, fps, audio)


def read_masks(
    config: "EditConfig",
    editor: Gen1Editor,
    structure: ClipStructure,
    footage: Footage,
    info: VideoInfo,
    selection: Selection,
    size: tuple[int, int],
    stack: ExitStack,
) -> Spool | None:
    """The mask, float32 (n, h, w), if there is one. Raises UserError."""
    if config.mask is None:
        return None
    mask = stack.enter_context(Spool())
    if config.mask in BY_DEPTH:
        mask_by_depth(editor, structure, config.mask, mask)
        return mask
    try:
        for part in read_mask(config.mask, selection, len(footage.frames), *size, (info.width, info.height)):
            mask.append(part)
    except VideoError as error:
        raise UserError(f"mask={config.mask} cannot be used: {error}") from error
    return mask


class Run:
    """The edits of one input."""

    def __init__(self, editor: Gen1Editor, footage: Footage, structure: ClipStructure, mask: Spool | None) -> None:
        self.editor, self.footage, self.structure, self.mask = editor, footage, structure, mask

    def sample(
        self,
        wanted: list[Variant],
        contents: list[Tensor],
        negative: Tensor | None,
        title: str,
        watch: Watch | None = None,
    ) -> list[Tensor]:
        """The latents of each edit, (n, c, h, w). Edits that differ in their content alone are sampled together."""
        n, window, made = len(self.footage.frames), self.editor.window, list[Tensor]()
        groups = [list(group) for _, group in groupby(zip(wanted, contents), lambda pair: pair[0].sampling)]
        total = 0
        for group in groups:
            config = group[0][0].sampling
            steps = len(timesteps(self.editor.schedule, config.steps, config.init_strength))
            total += steps * frames_per_step(n, len(group), config, window)
        with counted(title, total, watch) as count:
            for group in groups:
                config = group[0][0].sampling
                scene = self.editor.scene(self.footage.frames, self.structure, config, self.mask)
                together = torch.stack([content for _, content in group])
                made += self.editor.sample(scene, together, config, negative, on_frames=count)
        return made

    def pictures(self, latents: Tensor) -> Iterator[np.ndarray]:
        """uint8 frames (h, w, 3)."""
        for part in self.editor.pictures(latents, self.footage.frames, self.mask):
            yield from part

    def compared(self, wanted: list[Variant], videos: list[Tensor]) -> Iterator[np.ndarray]:
        """The input and all edits, each under its label, frame by frame."""
        labels = ["input", *(variant.label for variant in wanted)]
        for pictures in zip(chunked(self.footage.frames), *(self.pictures(video) for video in videos)):
            yield sheet(pictures, labels)


def chunked(frames: Spool) -> Iterator[np.ndarray]:
    """The frames one by one, read in chunks."""
    for start in range(0, len(frames), CHUNK):
        yield from frames[start : start + CHUNK]


@contextmanager
def counted(what: str, total: int | None, watch: Watch | None, leave: bool = True) -> Iterator[Callable[[int], object]]:
    """Counts frames, to `watch` or as a bar on the console: calls of the function that it gives add to them."""
    if watch is None:
        with tqdm(total=total, desc=what, unit="frame", mininterval=0.5, smoothing=0.05, leave=leave) as bar:
            yield bar.update
        return
    done = 0

    def count(frames: int) -> None:
        nonlocal done
        done += frames
        watch(what, done, total)

    watch(what, 0, total)
    yield count


def grey(structure: ClipStructure, t_s: int) -> Iterator[np.ndarray]:
    """What the model is shown of the structure, as uint8 pictures (h, w, 3)."""
    for part in structure.at(t_s):
        yield from (part.numpy() * 255).round().astype(np.uint8)[..., None].repeat(3, axis=-1)


def write(path: Path, pictures: Iterator[np.ndarray], footage: Footage, watch: Watch | None = None) -> None:
    """Writes a video at the input's pace, with its sound. Raises UserError; the file is whole or not there."""
    check_folder(path.parent)
    try:
        with VideoWriter(path, footage.fps, audio_from=footage.audio) as writer:
            for picture, seconds in zip(pictures, footage.seconds):
                writer.write(picture, seconds)
    except (VideoError, OSError) as error:
        raise UserError(f"{path} cannot be written: {error}") from error
    if watch is None:
        print(f"gen1-edit: {len(footage.seconds)} frames in {path}", flush=True)
