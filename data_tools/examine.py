"""One file of the source by its header: can it be used, and in which bucket."""

from dataclasses import dataclass, replace

from data_tools.failures import Failure
from data_tools.places import Source, SourceFile
from data_tools.recipe import RecipeConfig, choose_bucket
from gen1_train.video.decode import VideoError, probe
from gen1_train.video.image import image_size

IMAGE_SECONDS = 0.15  # of a task: an image is one frame, and 0.15 s of video hold about one frame of a clip
BYTES_PER_SECOND = 500_000  # of a video whose header does not tell how long it is


@dataclass(frozen=True)
class MediaFile:
    """A file that can be used, as its header describes it; all zero if the header could not be reached yet."""

    path: str  # as the source names it
    kind: str  # "video" or "image"
    bytes: int
    caption: str | None
    id: str | None  # of the source's list: what the keys of its samples begin with
    width: int = 0  # pixels as displayed: upright, and with the pixels' aspect
    height: int = 0  # pixels as displayed
    frames: int = 0  # as the header says, or as duration and rate tell; 0: unknown
    fps: float = 0.0  # mean; 0 for an image
    pixel_aspect: float = 1.0  # width of a pixel to its height
    bucket: str = ""  # of its clips, or of the image

    @property
    def seconds(self) -> float:
        """What the file counts in a task, in seconds of video."""
        if self.kind == "image":
            return IMAGE_SECONDS
        return self.frames / self.fps if self.frames and self.fps else self.bytes / BYTES_PER_SECOND


def examine(source: Source, recipe: RecipeConfig, file: SourceFile) -> MediaFile | Failure:
    """What a task needs to know of a file, or why no task will touch it.

    A file that cannot be reached now keeps its place in a task, with nothing known: the task tries again.
    """
    media = MediaFile(file.path, file.kind, file.bytes, file.caption, file.id)
    try:
        return describe(source, recipe, media)
    except VideoError as error:
        return media if error.transient else Failure(file.path, "unreadable", str(error))


def describe(source: Source, recipe: RecipeConfig, media: MediaFile) -> MediaFile | Failure:
    """The same file with what its header tells. Raises VideoError."""
    place = source.locate(media.path)
    if media.kind == "image":
        width, height = image_size(place)
        media = replace(media, width=width, height=height, frames=1)
    else:
        info = probe(place)
        span = recipe.cut.span
        if info.frames is not None and info.frames < span:
            reason = f"it has {info.frames} of the {span} frames that a clip takes"
            return Failure(media.path, "too short", reason, failed=False)
        media = replace(
            media,
            width=info.width,
            height=info.height,
            frames=info.expected_frames,
            fps=info.fps,
            pixel_aspect=info.pixel_aspect,
        )
    bucket, factor = choose_bucket(recipe, media.kind, media.width, media.height)
    if factor > recipe.max_enlargement:
        reason = f"{media.width}x{media.height} would be enlarged {factor:.2g} times to {bucket}"
        return Failure(media.path, "too small", reason, failed=False)
    return replace(media, bucket=bucket)
