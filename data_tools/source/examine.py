"""Examines one file of the source by its header: whether it can be used, and in which bucket."""

from dataclasses import dataclass, replace

from data_tools.failures import Failure
from data_tools.recipe import RecipeConfig, choose_bucket
from data_tools.source.locations import Source, SourceFile
from gen1_train.system.names import plain_name, shown
from gen1_train.system.records import require
from gen1_train.video.decode import VideoError, probe
from gen1_train.video.geometry import parse_bucket

IMAGE_SECONDS = 0.15  # what an image counts in a task: 0.15 s of video hold about one frame of a clip
BYTES_PER_SECOND = 500_000  # assumed for a video whose header does not give its length


@dataclass(frozen=True)
class MediaFile:
    """A file that can be used, as its header describes it; all zero if the header could not be read yet."""

    path: str  # as the source names it
    kind: str  # "video" or "image"
    bytes: int
    caption: str | None
    id: str | None  # from the source's list; the keys of its samples begin with it
    width: int = 0  # pixels as displayed: upright, and with the pixel aspect applied
    height: int = 0  # pixels as displayed
    frames: int = 0  # from the header, or from duration and rate; 0: unknown
    fps: float = 0.0  # mean; 0 for an image
    pixel_aspect: float = 1.0  # width of a pixel divided by its height
    bucket: str = ""  # the bucket of its clips, or of the image

    @property
    def seconds(self) -> float:
        """How much the file counts in a task, in seconds of video."""
        if self.kind == "image":
            return IMAGE_SECONDS
        return self.frames / self.fps if self.frames and self.fps else self.bytes / BYTES_PER_SECOND

    def check(self) -> None:
        """Raises ValueError for what no plan holds. The path is checked by the source, when it locates the file."""
        require(self.kind in ("video", "image"), f"the kind of {shown(self.path)} is {shown(self.kind)}")
        require(self.id is None or bool(plain_name(self.id)), "the id is empty")
        sizes = (self.bytes, self.width, self.height, self.frames, self.fps)
        require(min(sizes) >= 0 and self.pixel_aspect > 0, f"a fact about {shown(self.path)} is below 0")
        require(not self.bucket or min(parse_bucket(self.bucket)) > 0, "the bucket has no pixels")


def examine(source: Source, recipe: RecipeConfig, file: SourceFile) -> MediaFile | Failure:
    """Returns what a task needs to know about a file, or the reason why no task will use it.

    A file that cannot be reached now stays in a task, with nothing known about it: the task tries again.
    """
    media = MediaFile(file.path, file.kind, file.bytes, file.caption, file.id)
    try:
        return describe(source, recipe, media)
    except VideoError as error:
        return media if error.transient else Failure(file.path, "unreadable", str(error))


def describe(source: Source, recipe: RecipeConfig, media: MediaFile) -> MediaFile | Failure:
    """Returns the same file with the facts of its header, and its kind by the content. Raises VideoError."""
    info = probe(source.locate(media.path))
    if info.is_image:
        media = replace(media, kind="image", width=info.width, height=info.height, frames=1)
    else:
        span = recipe.cut.of_video(info.fps).span
        if info.frames is not None and info.frames < span:
            reason = f"it has {info.frames} of the {span} frames that a clip needs"
            return Failure(media.path, "too short", reason, failed=False)
        media = replace(
            media,
            kind="video",
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
