"""`gen1-edit`: the content of a prompt in the structure of a video."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gen1_train.cli import run_app
from gen1_train.errors import UserError

if TYPE_CHECKING:
    import numpy as np


@dataclass
class EditConfig:
    checkpoint: str | None = None  # a checkpoint folder, or a run folder (its newest)
    weights: str = "ema"  # which of its weights: ema (the first average, if there is one), raw, or an average's decay
    input: str | None = None  # the video whose structure is kept
    image: str | None = None  # the content, by an example image
    prompt: str | None = None  # the content, by a text
    output: str | None = None  # the edited video, .mp4
    structure_output: str | None = None  # also write what the model saw of the structure, as a grey video
    bucket: str | None = None  # WIDTHxHEIGHT to edit at; null: of those trained, the nearest in aspect
    start: int = 0  # first frame of the input
    frames: int | None = None  # how many frames to edit; null: to the end
    stride: int = 1  # frames of the input from one edited frame to the next; the output keeps the input's pace
    omega: float = 7.5  # content: higher follows the prompt harder
    omega_t: float = 1.0  # time: below 1 flickers like hand-drawn, above 1 is smoother
    t_s: int = 0  # structure: 0 keeps all of it, 7 is freest
    steps: int = 50  # of the sampler
    seed: int = 0  # of the noise: same seed, same frames
    device: str = "auto"  # cpu, cuda, or auto: a GPU if there is one


def edit(config: EditConfig) -> None:
    """Runs one edit from files to a file. Raises UserError; the output is whole or not there."""
    for name in ("checkpoint", "input", "output"):
        if getattr(config, name) is None:
            raise UserError(f"{name} is not given: add {name}=…")
    output = Path(str(config.output))
    if output.suffix != ".mp4":
        raise UserError(f"output={output} must end with .mp4")
    if config.prompt is not None:
        raise UserError("prompt= needs a prior from text to image embeddings, which is not there yet: use image=FILE")
    if config.image is None:
        raise UserError("the content is not given: add image=FILE")

    from tqdm import tqdm

    from gen1_train.diffusion.guidance import GuidanceConfig
    from gen1_train.editor import Editor, SamplingConfig, check, window_starts
    from gen1_train.video.decode import VideoError
    from gen1_train.video.encode import write_video
    from gen1_train.video.image import read_image

    sampling = SamplingConfig(config.steps, config.t_s, config.seed, GuidanceConfig(config.omega, config.omega_t))
    check(sampling)
    try:
        example = read_image(config.image)
    except VideoError as error:
        raise UserError(f"image={config.image} cannot be read: {error}") from error
    frames, fps = read_input(config)
    editor = Editor.from_checkpoint(str(config.checkpoint), config.device, config.weights)
    structure = editor.structure(frames, config.t_s)
    total = config.steps * len(window_starts(len(frames), editor.window))
    with tqdm(total=total, desc=output.name, unit="step", mininterval=0.5) as bar:
        edited = editor.edit(structure, editor.content_of_image(example), sampling, bar.update)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if config.structure_output is not None:
            grey = (structure.numpy() * 255).round().astype("uint8")[..., None].repeat(3, axis=-1)
            write_video(config.structure_output, grey, fps)
        write_video(output, edited, fps)
    except (VideoError, OSError) as error:
        raise UserError(f"{output} cannot be written: {error}") from error
    print(f"gen1-edit: {len(edited)} frames in {output}", flush=True)


def read_input(config: EditConfig) -> "tuple[np.ndarray, float]":
    """The frames to edit, uint8 (n, h, w, 3) at the bucket's size, and the frames per second of the output."""
    import numpy as np

    from gen1_train.training.checkpoint import find_checkpoint
    from gen1_train.video.decode import VideoError, probe, read_clips
    from gen1_train.video.decode import count as count_frames
    from gen1_train.video.geometry import nearest_bucket, parse_bucket, resize_and_crop

    if config.start < 0 or config.stride < 1 or (config.frames is not None and config.frames < 1):
        raise UserError(f"start={config.start}, frames={config.frames}, stride={config.stride}: need 0, 1, 1 or more")
    path = Path(str(config.input))
    if not path.is_file():
        raise UserError(f"input={path} is not there: give a video file")
    buckets = [config.bucket] if config.bucket else find_checkpoint(Path(str(config.checkpoint))).info.buckets
    try:
        info = probe(path)
        bucket = nearest_bucket(info.width, info.height, buckets)
        width, height = parse_bucket(bucket)
        count = info.frames or count_frames(path)
        indices = list(range(config.start, count, config.stride))[: config.frames]
        if not indices:
            raise UserError(f"input={path} has {count} frames: start={config.start} is beyond its end")
        # a window a frame: only the resized frame is kept
        clips = read_clips(path, [[index] for index in indices])
        frames = np.concatenate([resize_and_crop(clip, width, height, info.pixel_aspect) for _, clip in clips])
    except VideoError as error:
        raise UserError(f"input={path} cannot be decoded: {error}") from error
    except ValueError as error:
        raise UserError(f"bucket={config.bucket}: {error}") from error
    return frames, info.fps / config.stride


def main() -> None:
    run_app("gen1-edit", "edit", EditConfig, edit)


if __name__ == "__main__":
    main()
