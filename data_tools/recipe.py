"""The recipe: everything that decides what a sample is. It is part of the plan and of the frozen manifest."""

from dataclasses import asdict, dataclass, field
from typing import Any

from data_tools.clips.cut import CutConfig
from gen1_train.diffusion.planes import kinds_of
from gen1_train.diffusion.structure import DEGRADATIONS, MAX_LEVEL, PIXELS
from gen1_train.errors import UserError, check_choice, check_positive
from gen1_train.frozen.autoencoder import AutoencoderConfig
from gen1_train.frozen.captions.blip import BlipConfig
from gen1_train.frozen.captions.captioner import CAPTIONERS, NONE
from gen1_train.frozen.captions.coca import CocaConfig
from gen1_train.frozen.clip import ClipConfig
from gen1_train.frozen.structure.depth import DepthConfig
from gen1_train.frozen.structure.edges import EdgesConfig
from gen1_train.frozen.structure.face import FaceConfig
from gen1_train.frozen.structure.kinds import STRUCTURES, check_kind
from gen1_train.frozen.structure.soft_edges import SoftEdgesConfig
from gen1_train.system.records import make_record
from gen1_train.video.decoding.frames import DECODERS
from gen1_train.video.geometry import enlargement, nearest_bucket, parse_bucket

STILLS = ("auto", "always", "never")
ABSENT = {"structure_levels": 0}  # settings that recipes of older versions lack, and what these versions did


@dataclass
class RecipeConfig:
    cut: CutConfig = field(default_factory=CutConfig)  # how clips are cut out of videos
    video_buckets: list[str] = field(default_factory=lambda: ["448x256"])  # width x height in pixels
    image_buckets: list[str] = field(default_factory=lambda: ["448x256"])  # width x height in pixels
    stills: str = "auto"  # images from the middle frames of clips: always, never, auto (if the source has no images)
    max_enlargement: float = 2.0  # a file that would have to be enlarged more than this is dropped
    # decord takes damaged frames for good ones, PyAV notices most of them; their good frames are equal
    decoders: list[str] = field(default_factory=lambda: list(DECODERS))  # tried in this order until one can read it
    structure: str = "depth"  # what the model is conditioned on: depth, edges, soft_edges, face, or depth+edges, …
    caption: str = NONE  # network that captions samples without a caption: coca, blip, or none
    latents: bool = True  # store the autoencoder's latents; without them training encodes in every step
    structure_levels: int = MAX_LEVEL  # highest t_s of stored structure latents; 0: stage 5 encodes in every step
    degradation: str = PIXELS  # what t_s above 0 does: the same blur in pixels at every size, or relative to the frame
    jpeg_quality: int = 95  # of the stored frames, 1..100
    shard_megabytes: int = 512  # a shard is closed once it has this size
    task_seconds: float = 600.0  # video in one task: what is lost when a task is killed
    seed: int = 0  # of the order of samples in the shards
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)  # the network that encodes latents
    depth: DepthConfig = field(default_factory=DepthConfig)  # the network that estimates depth
    edges: EdgesConfig = field(default_factory=EdgesConfig)  # thresholds of Canny edges, for recipe.structure=edges
    soft_edges: SoftEdgesConfig = field(default_factory=SoftEdgesConfig)  # for recipe.structure=soft_edges
    face: FaceConfig = field(default_factory=FaceConfig)  # contours of faces, for recipe.structure=face
    clip: ClipConfig = field(default_factory=ClipConfig)  # the network of the content's embeddings
    coca: CocaConfig = field(default_factory=CocaConfig)  # the network of captions, for recipe.caption=coca
    blip: BlipConfig = field(default_factory=BlipConfig)  # the network of captions, for recipe.caption=blip

    @property
    def stored_level(self) -> int:
        """The highest t_s of stored structure latents; 0 also without any latents."""
        return self.structure_levels if self.latents else 0

    @property
    def structure_config(self) -> Any:
        """The section of the chosen structure estimator; for several, a dict with that of each."""
        kinds = kinds_of(self.structure)
        return {kind: getattr(self, kind) for kind in kinds} if len(kinds) > 1 else getattr(self, self.structure)

    @property
    def caption_config(self) -> Any:
        """The section of the network that captions; None without one."""
        return None if self.caption == NONE else getattr(self, self.caption)

    def record(self) -> dict[str, Any]:
        """Returns the recipe for plans and manifests, without what sets of one length of clips never recorded."""
        content = asdict(self)
        if not self.cut.more_frames:
            del content["cut"]["more_frames"]
        return content

    def check(self) -> None:
        """Raises UserError for a setting that cannot be; the message names it and the remedy."""
        for section in (self.cut, self.autoencoder, self.clip, *(getattr(self, kind) for kind in STRUCTURES)):
            section.check()
        check_choice("recipe.stills", self.stills, STILLS)
        check_kind("recipe.structure", self.structure)
        check_choice("recipe.caption", self.caption, (NONE, *CAPTIONERS))
        if not self.decoders or not set(self.decoders) <= set(DECODERS):
            raise UserError(f"recipe.decoders={self.decoders} must be a list of some of: {', '.join(DECODERS)}")
        if not 0 <= self.structure_levels <= MAX_LEVEL:
            raise UserError(f"recipe.structure_levels={self.structure_levels} is not in 0..{MAX_LEVEL}")
        check_choice("recipe.degradation", self.degradation, tuple(DEGRADATIONS))
        if not 1 <= self.jpeg_quality <= 100:
            raise UserError(f"recipe.jpeg_quality={self.jpeg_quality} is not in 1..100")
        check_positive(
            recipe__max_enlargement=self.max_enlargement,
            recipe__shard_megabytes=self.shard_megabytes,
            recipe__task_seconds=self.task_seconds,
        )
        _check_buckets("recipe.video_buckets", self.video_buckets)
        _check_buckets("recipe.image_buckets", self.image_buckets)


def _check_buckets(setting: str, buckets: list[str]) -> None:
    """Raises UserError for an empty list, an entry that is not a size, or a size that occurs twice."""
    if not buckets:
        raise UserError(f"{setting} is empty: name at least one bucket, such as 448x256")
    try:
        sizes = [parse_bucket(bucket) for bucket in buckets]
    except ValueError as error:
        raise UserError(f"{setting}: {error}") from error
    if len(set(sizes)) < len(sizes):
        raise UserError(f"{setting} names a bucket twice: keep one of them")


def recipe_from_dict(content: dict[str, Any], file: str) -> RecipeConfig:
    """Returns the recipe stored in a plan or manifest. Raises UserError if another version of gen1-data wrote it."""
    try:
        return make_record(RecipeConfig, {**ABSENT, **content})
    except ValueError as error:
        raise UserError(f"{file} was made by another version of gen1-data ({error}): make it again") from error


def choose_bucket(recipe: RecipeConfig, kind: str, width: int, height: int) -> tuple[str, float]:
    """Returns the bucket for a picture of that size, and the factor by which it is enlarged (below 1: shrunk)."""
    bucket = nearest_bucket(width, height, recipe.video_buckets if kind == "video" else recipe.image_buckets)
    return bucket, enlargement(width, height, *parse_bucket(bucket))
