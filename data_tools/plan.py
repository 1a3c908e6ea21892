"""The plan: which files, cut into which tasks. Written once; everything that follows is a function of it."""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_tools.recipe import RecipeConfig
from data_tools.scan import Failure, Scan, SourceFile, scan
from gen1_train.data.shards import write_atomically
from gen1_train.errors import UserError
from gen1_train.video.decode import PyAVReader, VideoError, probe
from gen1_train.video.geometry import enlargement, nearest_bucket, parse_bucket
from gen1_train.video.image import image_size

FORMAT = 1
PLAN = "plan.json"
IMAGE_SECONDS = 0.15  # of a task: an image is one frame, and 0.15 s of video hold about one frame of a clip


@dataclass(frozen=True)
class MediaFile:
    """A file that can be used, as its header describes it."""

    path: str  # relative to the source folder, with slashes
    kind: str  # "video" or "image"
    bytes: int
    caption: str | None
    width: int  # pixels, upright
    height: int  # pixels, upright
    frames: int  # as the header says; 1 for an image
    fps: float  # 0 for an image
    bucket: str  # of its clips, or of the image

    @property
    def seconds(self) -> float:
        return self.frames / self.fps if self.fps else IMAGE_SECONDS


@dataclass
class Plan:
    inputs: str  # sha256 over recipe, paths, sizes and captions: tells without probing whether the plan still fits
    recipe: dict[str, Any]
    stills: bool  # one frame of every clip becomes an image sample too
    files: list[MediaFile]
    tasks: list[list[int]]  # each a run of indices into files
    failures: list[Failure]  # files that no task will touch
    ignored: dict[str, int] = field(default_factory=dict)  # suffix -> number of files that are no media
    format: int = FORMAT

    @property
    def hash(self) -> str:
        """sha256 over the canonical JSON; the place of the source is not in it."""
        return _sha256(asdict(self))

    def save(self, output: Path) -> None:
        write_atomically(output / PLAN, json.dumps({**asdict(self), "hash": self.hash}, indent=1).encode())

    @classmethod
    def load(cls, output: Path) -> "Plan":
        """Reads and checks OUTPUT/plan.json. Raises UserError when it is missing, damaged or changed."""
        path = output / PLAN
        try:
            content = json.loads(path.read_bytes())
            stored = content.pop("hash")
            content["files"] = [MediaFile(**entry) for entry in content["files"]]
            content["failures"] = [Failure(**entry) for entry in content["failures"]]
            plan = cls(**content)
        except FileNotFoundError:
            raise UserError(f"there is no {PLAN} in output={output}; make one with step=plan") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error}); remove it and plan again") from error
        if plan.hash != stored:
            raise UserError(f"{path} was changed by hand (its hash does not fit); remove it and plan again")
        return plan


def make_plan(source: Path, output: Path, recipe: RecipeConfig, workers: int) -> Plan:
    """The plan of this source and recipe: the one in the output folder if it fits, else a new one, written there.

    Raises UserError when the output folder holds the plan of something else.
    """
    if source.resolve() == output.resolve():
        raise UserError("output and source are the same folder: name another output")
    found = scan(source, output)
    inputs = _sha256([asdict(recipe), [asdict(file) for file in found.files]])
    if (output / PLAN).exists():
        plan = Plan.load(output)
        if plan.inputs != inputs:
            raise UserError(
                f"output={output} was planned with another recipe or other files: name another output, or remove it"
            )
        return plan
    try:
        output.mkdir(parents=True, exist_ok=True)
        plan = _new_plan(source, recipe, found, inputs, workers)
        plan.save(output)
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error.strerror}") from error
    return plan


def _new_plan(source: Path, recipe: RecipeConfig, found: Scan, inputs: str, workers: int) -> Plan:
    with ThreadPoolExecutor(workers) as pool:  # decoders and PIL work outside the interpreter lock
        examined = pool.map(lambda file: examine(file, source, recipe), found.files)
        results = list(tqdm(examined, total=len(found.files), desc="plan", unit="file", leave=False))
    files = [result for result in results if isinstance(result, MediaFile)]
    failures = [result for result in results if isinstance(result, Failure)]
    has_images = any(file.kind == "image" for file in files)
    return Plan(
        inputs=inputs,
        recipe=asdict(recipe),
        stills=recipe.stills == "always" or (recipe.stills == "auto" and not has_images),
        files=files,
        tasks=cut(files, recipe.task_seconds),
        failures=found.failures + failures,
        ignored=found.ignored,
    )


def examine(file: SourceFile, source: Path, recipe: RecipeConfig) -> MediaFile | Failure:
    """Reads one file's header and says whether, and in which bucket, it can be used."""
    path = source / file.path
    frames, fps = 1, 0.0
    try:
        if file.kind == "video":
            info = probe(path)
            width, height, fps = info.width, info.height, info.fps
            frames = info.expected_frames or PyAVReader().count(path)
        else:
            width, height = image_size(path)
    except VideoError as error:
        return Failure(file.path, str(error), error.transient)
    if file.kind == "video" and frames < recipe.span:
        return Failure(file.path, f"{frames} frames, and a clip takes {recipe.span}")
    bucket = nearest_bucket(width, height, recipe.video_buckets if file.kind == "video" else recipe.image_buckets)
    factor = enlargement(width, height, *parse_bucket(bucket))
    if factor > recipe.max_enlargement:
        return Failure(file.path, f"{width}x{height} would be enlarged {factor:.2g} times to {bucket}")
    return MediaFile(file.path, file.kind, file.bytes, file.caption, width, height, frames, fps, bucket)


def cut(files: Iterable[MediaFile], task_seconds: float) -> list[list[int]]:
    """Runs of neighbouring files, each closed once it holds that many seconds."""
    tasks: list[list[int]] = []
    seconds = task_seconds
    for number, file in enumerate(files):
        if seconds >= task_seconds:
            tasks.append([])
            seconds = 0.0
        tasks[-1].append(number)
        seconds += file.seconds
    return tasks


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
