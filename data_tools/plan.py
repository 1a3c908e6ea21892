"""The plan: which files there are, divided into tasks. It is written once, and everything after it depends on it.

OUTPUT/plan.jsonl   a line for each file, task by task, and then a line for each file that no task uses
OUTPUT/plan.json    the recipe, and where the lines of each task are in plan.jsonl, with a checksum: a task reads only
                    its own lines
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from data_tools.failures import Failure
from data_tools.recipe import RecipeConfig, recipe_from_dict
from data_tools.source.examine import MediaFile, examine
from data_tools.source.locations import Scan, Source, SourceFile
from gen1_train.errors import UserError
from gen1_train.system.console import progress
from gen1_train.system.files import open_regular, remove_leftovers, write_atomically
from gen1_train.system.records import check_format, format_of, load_json, make_record, parse_json, require
from gen1_train.video import decode
from gen1_train.video.geometry import NAMED_CROP, kept_share, parse_bucket

logger = logging.getLogger(__name__)

FORMAT = 2
PLAN, LINES = "plan.json", "plan.jsonl"
MAX_BYTES = 1 << 40  # of the lines of a task; ours

Line = TypeVar("Line", MediaFile, Failure)


@dataclass(frozen=True)
class Part:
    """A run of lines in plan.jsonl."""

    offset: int
    bytes: int
    files: int
    seconds: float  # of video, as far as the headers give it
    sha256: str


@dataclass
class Plan:
    inputs: str  # sha256 over recipe, paths, sizes and captions: shows whether the plan still fits, without probing
    recipe: dict[str, Any]
    stills: bool  # whether one frame of every clip becomes an image sample too
    tasks: list[Part]
    failures: Part
    ignored: dict[str, int] = field(default_factory=dict)  # suffix -> number of files that are not media
    format: int = FORMAT

    @property
    def hash(self) -> str:
        """sha256 over the canonical JSON, and so over every file's line; the location of the source is not in it."""
        return _sha256(json.dumps(asdict(self), sort_keys=True).encode())

    @property
    def files(self) -> int:
        return sum(task.files for task in self.tasks)

    @classmethod
    def load(cls, output: Path) -> "Plan":
        """Reads and checks OUTPUT/plan.json. Raises UserError if it is missing, damaged or changed."""
        path = output / PLAN
        missing = f"there is no {PLAN} in output={output}: make one with step=plan"
        content = load_json(path, missing, "remove it and plan again")
        check_format(format_of(content), FORMAT, path, "plan again")
        stored = content.pop("hash", None)
        try:
            plan = make_record(cls, content)
            plan.check()
        except ValueError as error:
            raise UserError(f"{path} is not a plan ({error}): remove it and plan again") from error
        if plan.hash != stored:
            raise UserError(f"{path} was changed by hand (its hash does not match): remove it and plan again")
        return plan

    def check(self) -> None:
        """Raises ValueError unless the tasks and then the failures are the lines of plan.jsonl, without gaps."""
        end = 0
        for name, part in (
            *((f"tasks[{number}]", task) for number, task in enumerate(self.tasks)),
            ("failures", self.failures),
        ):
            require(part.offset == end, f"{name}.offset is {part.offset}, but the part before it ends at {end}")
            require(0 <= part.files <= part.bytes <= MAX_BYTES, f"{name} has {part.files} files in {part.bytes} bytes")
            require(part.seconds >= 0, f"{name}.seconds is below 0")
            end += part.bytes

    def read_task(self, output: Path, number: int) -> list[MediaFile]:
        """Returns the files of one task. Raises UserError."""
        files = _read_part(output, self.tasks[number], MediaFile)
        try:
            for file in files:
                file.check()
        except ValueError as error:
            raise UserError(
                f"{output / LINES} is not a list of files ({error}): plan again in another output"
            ) from error
        return files

    def read_failures(self, output: Path) -> list[Failure]:
        """Returns the files that no task uses, as failures. Raises UserError."""
        return _read_part(output, self.failures, Failure)


def make_plan(source: Source, output: Path, recipe: RecipeConfig, threads: int) -> Plan:
    """Returns the plan for this source and recipe: the one in the output folder if it fits, else a new saved one.

    Raises UserError if the output folder holds the plan of another source or recipe.
    """
    if Path(source.name).resolve() == output.resolve():
        raise UserError("output and source are the same folder: name another output")
    scan = source.scan(output)
    remove_leftovers(output)  # tasks, which may be running, write into folders of their own
    if (output / PLAN).exists():
        plan = load_fitting(output, recipe)
        if plan.inputs != hash_inputs(plan.recipe, scan):
            raise UserError(
                f"output={output} was planned with other files than source={source.name} holds now: name another "
                "output, or continue with the files of the plan by step=task and then step=freeze"
            )
        return plan
    try:
        output.mkdir(parents=True, exist_ok=True)
        plan = _new_plan(source, output, recipe, scan, threads)
        write_atomically(output / PLAN, json.dumps({**asdict(plan), "hash": plan.hash}, indent=1).encode())
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error.strerror}: name another output") from error
    return plan


def hash_inputs(recipe: dict[str, Any], scan: Scan) -> str:
    """Returns the hash of everything that a plan is made from."""
    return _sha256(json.dumps([recipe, [asdict(file) for file in scan.files]], sort_keys=True).encode())


def load_fitting(output: Path, recipe: RecipeConfig) -> Plan:
    """Returns the plan in the output folder. Raises UserError if it is missing, or was made by another recipe."""
    plan = Plan.load(output)
    planned, given = asdict(recipe_from_dict(plan.recipe, str(output / PLAN))), asdict(recipe)
    if planned != given:
        name, *values = first_difference("recipe", planned, given)
        before, now = (value if isinstance(value, str) else json.dumps(value) for value in values)  # as they are given
        raise UserError(
            f"output={output} was planned with another recipe ({name}={before} instead of {now}): give that, name "
            "another output, or remove this one"
        )
    return plan


def first_difference(name: str, one: Any, other: Any) -> tuple[str, Any, Any]:
    """Returns the first setting that differs between two recipes, by its name, and both values."""
    if isinstance(one, dict) and isinstance(other, dict):
        part = next(part for part in {**one, **other} if one.get(part) != other.get(part))
        return first_difference(f"{name}.{part}", one.get(part), other.get(part))
    return name, one, other


def _new_plan(source: Source, output: Path, recipe: RecipeConfig, scan: Scan, threads: int) -> Plan:
    """Examines every file and writes plan.jsonl."""
    files: list[MediaFile] = []
    # a folder or caption that cannot be read now is not in this plan: repeating a task would not add it
    failures = [replace(failure, transient=False) for failure in scan.failures]
    for result in _examined(source, recipe, scan.files, threads):
        if isinstance(result, MediaFile):
            files.append(result)
        else:
            failures.append(result)
    _log_crops(files)
    content = bytearray()
    tasks = []
    for run in cut(files, recipe.task_seconds):
        tasks.append(_append(content, run, sum(file.seconds for file in run)))
    rest = _append(content, sorted(failures, key=lambda failure: failure.file), 0.0)
    write_atomically(output / LINES, bytes(content))
    has_images = any(file.kind == "image" for file in files)
    stills = recipe.stills == "always" or (recipe.stills == "auto" and not has_images)
    return Plan(hash_inputs(recipe.record(), scan), recipe.record(), stills, tasks, rest, scan.ignored)


def lost_share(file: MediaFile) -> float:
    """The share of a file's picture that is cropped to fit its bucket."""
    return 1 - kept_share(file.width, file.height, *parse_bucket(file.bucket))


def _log_crops(files: list[MediaFile]) -> None:
    """Warns if many pictures are of another shape than all buckets."""
    cropped = [file for file in files if file.bucket and lost_share(file) > NAMED_CROP]
    if cropped:
        largest = max(cropped, key=lambda file: file.width * file.height)
        logger.warning(
            f"{len(cropped)} of {len(files)} files lose more than {NAMED_CROP:.0%} of the picture to the crop, such as "
            f"{largest.path} ({largest.width}x{largest.height} to {largest.bucket}): add a bucket of their shape to "
            "recipe.video_buckets or recipe.image_buckets"
        )


def _examined(
    source: Source, recipe: RecipeConfig, files: list[SourceFile], threads: int
) -> Iterator[MediaFile | Failure]:
    """Yields the facts of each file's header, in order, read by several threads with a child process each."""
    try:
        with ThreadPoolExecutor(threads) as pool:
            results = pool.map(lambda file: examine(source, recipe, file), files)
            yield from progress(results, title="plan", unit="file", total=len(files))
    finally:
        decode.close()


def cut(files: Iterable[MediaFile], task_seconds: float) -> list[list[MediaFile]]:
    """Divides the files into runs of neighbors; each run is closed once it holds that many seconds."""
    tasks: list[list[MediaFile]] = []
    seconds = task_seconds
    for file in files:
        if seconds >= task_seconds:
            tasks.append([])
            seconds = 0.0
        tasks[-1].append(file)
        seconds += file.seconds
    return tasks


def _append(content: bytearray, entries: list[MediaFile] | list[Failure], seconds: float) -> Part:
    lines = "".join(json.dumps(asdict(entry)) + "\n" for entry in entries).encode()
    part = Part(len(content), len(lines), len(entries), round(seconds, 3), _sha256(lines))
    content += lines
    return part


def _read_part(output: Path, part: Part, kind: type[Line]) -> list[Line]:
    """Returns the lines of a part as records. Raises UserError."""
    path = output / LINES
    try:
        with open_regular(path) as stream:
            stream.seek(part.offset)
            lines = stream.read(part.bytes)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): plan again in another output") from error
    if _sha256(lines) != part.sha256:
        raise UserError(f"{path} is not the one that was planned (its checksum differs): restore it, or plan again")
    try:
        return [make_record(kind, parse_json(line)) for line in lines.splitlines()]
    except ValueError as error:
        raise UserError(f"{path} does not hold the lines of a plan ({error}): plan again in another output") from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
