"""The recipe: everything that decides what a sample is. It is part of the plan and of the frozen manifest."""

from dataclasses import dataclass, field

from gen1_train.errors import UserError
from gen1_train.estimators.clip import ClipConfig
from gen1_train.estimators.depth import DepthConfig
from gen1_train.model.autoencoder import AutoencoderConfig
from gen1_train.video.geometry import parse_bucket

STILLS = ("auto", "always", "never")


@dataclass
class RecipeConfig:
    frames: int = 8  # in a clip
    stride: int = 4  # frames of the video from one frame of the clip to the next
    clips_per_video: int | None = None  # at most this many, spread over the video; null: all that do not overlap
    video_buckets: list[str] = field(default_factory=lambda: ["448x256"])  # width x height in pixels
    image_buckets: list[str] = field(default_factory=lambda: ["448x256"])  # width x height in pixels
    # Image steps need images. "always": the middle frame of each clip is stored as an image too; "never"; "auto": only
    # when the source has no usable image of its own.
    stills: str = "auto"
    max_enlargement: float = 2.0  # a file that would have to be enlarged more than this is dropped
    jpeg_quality: int = 95  # of the stored frames, 1..100
    shard_megabytes: int = 512  # a shard is closed once it has this size
    task_seconds: float = 600.0  # video in one task: what is lost when a task is killed
    seed: int = 0  # of the order in which samples stand in the shards
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    depth: DepthConfig = field(default_factory=DepthConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)

    @property
    def span(self) -> int:
        """Frames of a video from the first to the last frame of a clip, both counted."""
        return (self.frames - 1) * self.stride + 1


def check(recipe: RecipeConfig) -> None:
    """What the types cannot say. Raises UserError that names the setting."""
    low, high = 1, 99  # the members of a sample are numbered with two digits
    if not low <= recipe.frames <= high:
        raise UserError(f"recipe.frames={recipe.frames} is not in {low}..{high}")
    if recipe.stills not in STILLS:
        raise UserError(f"recipe.stills={recipe.stills} is not one of {', '.join(STILLS)}")
    if not 1 <= recipe.jpeg_quality <= 100:
        raise UserError(f"recipe.jpeg_quality={recipe.jpeg_quality} is not in 1..100")
    for name in ("stride", "clips_per_video", "max_enlargement", "shard_megabytes", "task_seconds"):
        value = getattr(recipe, name)
        if value is not None and value <= 0:
            raise UserError(f"recipe.{name}={value} is not above 0")
    for name in ("video_buckets", "image_buckets"):
        buckets = getattr(recipe, name)
        if not buckets:
            raise UserError(f"recipe.{name} is empty; name at least one bucket, for example 448x256")
        try:
            sizes = [parse_bucket(bucket) for bucket in buckets]
        except ValueError as error:
            raise UserError(f"recipe.{name}: {error}") from error
        if len(set(sizes)) < len(sizes):
            raise UserError(f"recipe.{name} names a bucket twice")


def windows(recipe: RecipeConfig, frames: int) -> list[list[int]]:
    """The frame indices of the clips of a video with that many frames: none overlap, none go beyond the end."""
    starts = list(range(0, frames - recipe.span + 1, recipe.frames * recipe.stride))
    cap = recipe.clips_per_video
    if cap is not None and cap < len(starts):
        starts = [starts[i * len(starts) // cap] for i in range(cap)]
    return [list(range(start, start + recipe.span, recipe.stride)) for start in starts]
