"""The recipe: everything that decides what a sample is. It is part of the plan and of the frozen manifest."""

from dataclasses import dataclass, field
from typing import Any

from data_tools.cut import CutConfig
from data_tools.cut import check as check_cut
from gen1_train.errors import UserError
from gen1_train.estimators.clip import ClipConfig
from gen1_train.estimators.depth import DepthConfig
from gen1_train.estimators.edges import EdgesConfig
from gen1_train.estimators.structure import STRUCTURES
from gen1_train.model.autoencoder import AutoencoderConfig
from gen1_train.video.frames import DECODERS
from gen1_train.video.geometry import enlargement, nearest_bucket, parse_bucket

STILLS = ("auto", "always", "never")


@dataclass
class RecipeConfig:
    cut: CutConfig = field(default_factory=CutConfig)  # how clips are cut out of videos
    video_buckets: list[str] = field(default_factory=lambda: ["448x256"])  # width x height in pixels
    image_buckets: list[str] = field(default_factory=lambda: ["448x256"])  # width x height in pixels
    stills: str = "auto"  # images out of clips' middle frames: always, never, auto (only if the source has no images)
    max_enlargement: float = 2.0  # a file that would have to be enlarged more than this is dropped
    # decord takes damaged frames for good ones, PyAV sees most of them; their good frames are equal
    decoders: list[str] = field(default_factory=lambda: list(DECODERS))  # in this order, the next if one cannot read it
    structure: str = "depth"  # what the model is shown of a clip: depth or edges
    latents: bool = True  # store the autoencoder's latents; without them training encodes in every step
    jpeg_quality: int = 95  # of the stored frames, 1..100
    shard_megabytes: int = 512  # a shard is closed once it has this size
    task_seconds: float = 600.0  # video in one task: what is lost when a task is killed
    seed: int = 0  # of the order in which samples stand in the shards
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    depth: DepthConfig = field(default_factory=DepthConfig)
    edges: EdgesConfig = field(default_factory=EdgesConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)

    @property
    def structure_config(self) -> Any:
        """The section of the structure estimator that was chosen."""
        return getattr(self, self.structure)


def check(recipe: RecipeConfig) -> None:
    """What the types cannot say. Raises UserError that names the setting."""
    check_cut(recipe.cut, "recipe.cut")
    for name, choices in (("stills", STILLS), ("structure", STRUCTURES)):
        if getattr(recipe, name) not in choices:
            raise UserError(f"recipe.{name}={getattr(recipe, name)} is not one of {', '.join(choices)}")
    if not recipe.decoders or not set(recipe.decoders) <= set(DECODERS):
        raise UserError(f"recipe.decoders={recipe.decoders} is not a list of {', '.join(DECODERS)}")
    if not 1 <= recipe.jpeg_quality <= 100:
        raise UserError(f"recipe.jpeg_quality={recipe.jpeg_quality} is not in 1..100")
    for name in ("max_enlargement", "shard_megabytes", "task_seconds"):
        if getattr(recipe, name) <= 0:
            raise UserError(f"recipe.{name}={getattr(recipe, name)} is not above 0")
    for name in ("video_buckets", "image_buckets"):
        check_buckets(name, getattr(recipe, name))


def check_buckets(name: str, buckets: list[str]) -> None:
    """Raises UserError for an empty list, a text that is no size, or a size that comes twice."""
    if not buckets:
        raise UserError(f"recipe.{name} is empty; name at least one bucket, for example 448x256")
    try:
        sizes = [parse_bucket(bucket) for bucket in buckets]
    except ValueError as error:
        raise UserError(f"recipe.{name}: {error}") from error
    if len(set(sizes)) < len(sizes):
        raise UserError(f"recipe.{name} names a bucket twice")


def recorded(content: dict[str, Any], where: str) -> RecipeConfig:
    """The recipe that a plan or manifest holds. Raises UserError when it is of another version."""
    sections = {"cut": CutConfig, "autoencoder": AutoencoderConfig, "depth": DepthConfig, "edges": EdgesConfig}
    sections["clip"] = ClipConfig
    try:
        values = {name: sections[name](**value) if name in sections else value for name, value in content.items()}
        return RecipeConfig(**values)
    except TypeError as error:
        raise UserError(f"{where} was made by another version of gen1-data ({error}): make it again") from error


def choose_bucket(recipe: RecipeConfig, kind: str, width: int, height: int) -> tuple[str, float]:
    """The bucket that a picture of that size goes into, and how much it is enlarged by that (below 1: shrunk)."""
    bucket = nearest_bucket(width, height, recipe.video_buckets if kind == "video" else recipe.image_buckets)
    return bucket, enlargement(width, height, *parse_bucket(bucket))
