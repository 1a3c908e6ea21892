"""Edits from files to files: a video of any length and size, and its edits."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gen1_train.diffusion.editing import frames_per_step
from gen1_train.diffusion.sampler import timesteps
from gen1_train.diffusion.sampling import SamplingConfig
from gen1_train.editing.clip_structure import CHUNK, ClipStructure
from gen1_train.editing.config import EditConfig
from gen1_train.editing.content import content_of_images
from gen1_train.editing.counting import OnProgress, frame_counter, step_counter
from gen1_train.editing.editor import Gen1Editor
from gen1_train.editing.inputs import PictureLike
from gen1_train.editing.masks import BY_DEPTH, mask_by_depth
from gen1_train.editing.outputs import check_folder, output_paths, refuse_existing
from gen1_train.editing.sizes import EditSize, choose_size
from gen1_train.editing.spool import Spool
from gen1_train.editing.variants import Variant, variants
from gen1_train.errors import UserError
from gen1_train.frozen.autoencoder import as_pictures
from gen1_train.frozen.structure.combined import parts_of
from gen1_train.video.audio import AudioSource, usable_audio
from gen1_train.video.contact_sheet import contact_sheet
from gen1_train.video.decoding.probe import VideoInfo
from gen1_train.video.encode import VideoWriter
from gen1_train.video.errors import VideoError
from gen1_train.video.image import read_image
from gen1_train.video.mask import read_mask
from gen1_train.video.stream import Selection, expected_frames, output_fps, probe_input, read_selected

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """The input file, and which of its frames are edited."""

    path: str
    info: VideoInfo
    selection: Selection


@dataclass(frozen=True)
class Footage:
    """The frames that are edited."""

    source: Source
    size: EditSize
    frames: Spool  # uint8 (n, h, w, 3), padded to sides that the autoencoder takes
    seconds: list[float]  # when each is shown, since the first
    fps: float  # of the output, if the seconds are even
    audio: AudioSource | None  # the input's sound, if the output keeps it

    def pictures(self) -> Iterator[np.ndarray]:
        """Yields the frames, uint8 (h, w, 3) of the output's size; they are read in chunks."""
        for start in range(0, len(self.frames), CHUNK):
            yield from map(self.size.cropped, self.frames[start : start + CHUNK])


def edit_files(
    config: EditConfig,
    editor: Gen1Editor | None = None,
    on_progress: OnProgress | None = None,
    input_output: Path | None = None,
) -> None:
    """Edits `config.input` into `config.output`. Raises UserError; each output is whole or does not exist.

    Settings are checked before anything is loaded, and the folders of the outputs before anything is computed. The
    page gives an `editor` that is already loaded; `on_progress`, which replaces lines and bars on the console and may
    raise to end the edit; and `input_output`, an .mp4 to write the input to as the model sees it.
    """
    config.check()
    edits = variants(config)
    outputs = output_paths(config, edits)
    refuse_existing(config, outputs)
    pictures, weights = read_examples(config)
    source = open_source(config)
    for path in (*outputs, Path(config.structure_output or outputs[0])):
        check_folder(path.parent)
    if editor is None:
        editor = Gen1Editor.of(config)
    paced = config.at_pace(editor.fps, source.info.fps)
    if paced.selection != source.selection and not source.info.is_image:
        learned = f"the model learned about {editor.fps:g} frames a second"
        logger.info(f"{learned}: every {paced.stride} frames of {config.input} are edited; stride=1 edits all")
        source = replace(source, selection=paced.selection)
    edits = [edit.with_recommended(editor.recommended) for edit in edits]
    for edit in edits:
        editor.check(edit.sampling)
    example = content_of_images(editor.clip, pictures, weights) if pictures else None
    contents = [editor.content_with(edit.prompt, example, edit.image_share, edit.sampling.seed) for edit in edits]
    seeds = {edit.sampling.seed for edit in edits} if config.negative_prompt is not None else set()
    negatives = {seed: editor.content(config.negative_prompt, seed=seed) for seed in seeds}
    size = choose_size(config, editor.buckets, editor.autoencoder.factor, source.info)
    with ExitStack() as stack:
        frames = stack.enter_context(Spool())
        footage = read_footage(source, size, frames, config.audio, on_progress)
        if input_output is not None:
            write(input_output, footage.pictures(), footage, on_progress)
        with frame_counter("estimating structure", len(frames), on_progress, keep=False) as count:
            structure = stack.enter_context(editor.structure(frames, count, size.area))
        if structure.empty_frames:
            empty = f"{structure.empty_frames} of {len(frames)} frames have no {structure.estimator.subject}"
            lost = "no structure" if len(parts_of(structure.estimator)) == 1 else "nothing in its plane"
            logger.warning(f"input={config.input}: {empty}: the model sees {lost} there")
        mask = None
        if config.mask is not None:
            mask = stack.enter_context(Spool())
            fill_mask(mask, config.mask, structure, footage)
        run = Run(editor, footage, structure, mask)
        latents = run.sample(edits, contents, negatives, outputs[0].name, on_progress)
        if config.structure_output is not None:
            seen = map(size.cropped, structure_pictures(structure, edits[0].sampling))
            write(Path(config.structure_output), seen, footage, on_progress)
        if config.sweep is None:
            for path, video in zip(outputs, latents):
                write(path, run.pictures(video), footage, on_progress)
        else:
            write(outputs[0], run.comparison(edits, latents), footage, on_progress, keep_odd=False)


def read_examples(config: EditConfig) -> tuple[list[PictureLike], list[float]]:
    """Returns the example images and their weights. Raises UserError."""
    setting = "images" if config.images else "image"
    pictures: list[PictureLike] = []
    weights = []
    for path, weight in config.examples:
        try:
            pictures.append(read_image(path))
        except VideoError as error:
            raise UserError(f"{setting}={path} cannot be read: {error}") from error
        weights.append(weight)
    return pictures, weights


def open_source(config: EditConfig) -> Source:
    """Reads the header of the input. Raises UserError."""
    path = str(config.input)
    selection = config.selection
    if not Path(path).is_file():
        raise UserError(f"input={path} does not exist: give a video file")
    try:
        info = probe_input(path)
    except VideoError as error:
        raise UserError(f"input={path} cannot be decoded: {error}") from error
    if info.frames is not None and selection.start >= info.frames:
        raise UserError(f"input={path} has {info.frames} frames: start={selection.start} is beyond its end")
    return Source(path, info, selection)


def read_footage(
    source: Source, size: EditSize, frames: Spool, audio: bool, on_progress: OnProgress | None = None
) -> Footage:
    """Reads the selected frames at the size of the output, padded, into a spool. Raises UserError."""
    seconds: list[float] = []
    first_source_seconds = 0.0
    last_source_seconds = 0.0
    total = expected_frames(source.info, source.selection)
    try:
        with frame_counter("reading", total, on_progress, keep=False) as count:
            for frame in read_selected(source.path, source.selection, *size.output):
                frames.append(size.padded(frame.pixels))
                if not seconds:
                    first_source_seconds = frame.source_seconds
                last_source_seconds = frame.source_seconds
                seconds.append(frame.seconds)
                count(1)
    except VideoError as error:
        raise UserError(f"input={source.path} cannot be decoded: {error}") from error
    fps = output_fps(source.info, source.selection)
    sound = None
    if audio and not source.info.is_image:
        sound = read_sound(AudioSource(source.path, first_source_seconds, last_source_seconds + 1 / fps))
    return Footage(source, size, frames, seconds, fps, sound)


def read_sound(sound: AudioSource) -> AudioSource | None:
    """Returns what of the input's sound can be used; a line tells if it is not all."""
    usable, error = usable_audio(sound)
    if error is not None:
        kept = "the output is silent"
        if usable is not None and usable.end is not None:
            kept = f"the output has its first {usable.end - usable.start:.1f} s"
        logger.warning("input=%s: its sound cannot be read: %s; %s", sound.path, error, kept)
    return usable


def fill_mask(mask: Spool, setting: str, structure: ClipStructure, footage: Footage) -> None:
    """Fills `mask` with float32 (n, h, w), from a file or by depth, as the setting says. Raises UserError."""
    if setting in BY_DEPTH:
        for frame in mask_by_depth(structure, setting):
            mask.append(frame)
        return
    source = footage.source
    input_size = source.info.width, source.info.height
    try:
        for frame in read_mask(setting, source.selection, len(footage.frames), *footage.size.output, input_size):
            mask.append(footage.size.padded(frame))
    except VideoError as error:
        raise UserError(f"mask={setting} cannot be used: {error}") from error


class Run:
    """The edits of one input."""

    def __init__(self, editor: Gen1Editor, footage: Footage, structure: ClipStructure, mask: Spool | None) -> None:
        self.editor = editor
        self.footage = footage
        self.structure = structure
        self.mask = mask

    def sample(
        self,
        edits: list[Variant],
        contents: list[Tensor],
        negatives: Mapping[int, Tensor],
        title: str,
        on_progress: OnProgress | None = None,
    ) -> list[Tensor]:
        """Returns the latents of each edit, (n, c, h, w). Edits that differ only in content are sampled together.

        `negatives`: seed -> the content (d,) that edits of that seed lead away from; empty without a negative prompt.
        """
        size = self.footage.size
        n, height, width, _ = self.footage.frames.shape
        shape = n, height // size.factor, width // size.factor
        groups = [list(group) for _, group in groupby(zip(edits, contents), lambda pair: pair[0].sampling)]
        step_frames: list[int] = []  # that go through the network, in each step of each group
        for group in groups:
            sampling = group[0][0].sampling
            steps = len(timesteps(self.editor.schedule, sampling.steps, sampling.init_strength))
            each = frames_per_step(shape, len(group), sampling, self.editor.window, size.area, self.editor.shorter)
            step_frames += [each] * steps
        videos: list[Tensor] = []
        with step_counter(title, step_frames, on_progress) as count:
            for group in groups:
                sampling = group[0][0].sampling
                scene = self.editor.scene(self.footage.frames, self.structure, sampling, self.mask)
                together = torch.stack([content for _, content in group])
                negative = negatives.get(sampling.seed)
                videos += self.editor.sample(scene, together, sampling, negative, on_frames=count, area=size.area)
        return videos

    def pictures(self, latents: Tensor) -> Iterator[np.ndarray]:
        """Yields an edit's frames, uint8 (h, w, 3) of the output's size."""
        for part in self.editor.pictures(latents, self.footage.frames, self.mask):
            yield from map(self.footage.size.cropped, part)

    def comparison(self, edits: list[Variant], videos: list[Tensor]) -> Iterator[np.ndarray]:
        """Yields frames of the input and of all edits side by side, each under its label."""
        labels = ["input", *(edit.label for edit in edits)]
        for pictures in zip(self.footage.pictures(), *(self.pictures(video) for video in videos)):
            yield contact_sheet(pictures, labels)


def structure_pictures(structure: ClipStructure, sampling: SamplingConfig) -> Iterator[np.ndarray]:
    """Yields the structure as the model sees it, as uint8 frames (h, w, 3): gray, or its planes as red, green, blue."""
    for part in structure.at(sampling.t_s, sampling.structure):
        pictures = as_pictures(part, several=part.ndim == 4).movedim(1, -1)
        yield from (pictures.numpy() * 255).round().astype(np.uint8)


def write(
    path: Path,
    pictures: Iterator[np.ndarray],
    footage: Footage,
    on_progress: OnProgress | None = None,
    keep_odd: bool = True,
) -> None:
    """Writes a video at the input's pace, with its sound. Raises UserError; the file is whole or does not exist.

    `keep_odd`: see VideoWriter.
    """
    check_folder(path.parent)
    try:
        with (
            VideoWriter(path, footage.fps, audio_from=footage.audio, keep_odd=keep_odd) as writer,
            frame_counter(f"writing {path.name}", len(footage.seconds), on_progress, keep=False) as count,
        ):
            for picture, seconds in zip(pictures, footage.seconds):
                writer.write(picture, seconds)
                count(1)
    except (VideoError, OSError) as error:
        raise UserError(f"{path} cannot be written: {error}") from error
    if writer.audio_error is not None:
        logger.warning("%s lacks sound: input=%s: %s", path, footage.source.path, writer.audio_error)
    if on_progress is None:
        logger.info("%d frames written to %s", len(footage.seconds), path)
