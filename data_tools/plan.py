"""The plan: which files, cut into which tasks. Written once; everything that follows is a function of it.

OUTPUT/plan.jsonl   a line a file, task by task, and then a line for each file that no task will touch
OUTPUT/plan.json    the recipe, and where in plan.jsonl each task stands, with a checksum: a task reads only its lines
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_tools.examine import MediaFile, examine
from data_tools.failures import Failure
from data_tools.places import Scan, Source, SourceFile
from data_tools.progress import seconds_between
from data_tools.recipe import RecipeConfig
from gen1_train.errors import UserError
from gen1_train.files import clear_killed, write_atomically
from gen1_train.video import decode

FORMAT = 2
PLAN, LINES = "plan.json", "plan.jsonl"


@dataclass(frozen=True)
class Part:
    """A run of lines in plan.jsonl."""

    offset: int
    bytes: int
    files: int
    seconds: float  # of video, as far as the headers tell
    sha256: str


@dataclass
class Plan:
    inputs: str  # sha256 over recipe, paths, sizes and captions: tells without probing whether the plan still fits
    recipe: dict[str, Any]
    stills: bool  # one frame of every clip becomes an image sample too
    tasks: list[Part]
    failures: Part
    ignored: dict[str, int] = field(default_factory=dict)  # suffix -> number of files that are no media
    format: int = FORMAT

    @property
    def hash(self) -> str:
        """sha256 over the canonical JSON, and so over every file's line; where the source lies is not in it."""
        return _sha256(json.dumps(asdict(self), sort_keys=True).encode())

    @property
    def files(self) -> int:
        return sum(task.files for task in self.tasks)

    @classmethod
    def load(cls, output: Path) -> "Plan":
        """Reads and checks OUTPUT/plan.json. Raises UserError when it is missing, damaged or changed."""
        path = output / PLAN
        try:
            content = json.loads(path.read_bytes())
            stored = content.pop("hash")
            if content["format"] != FORMAT:
                raise UserError(f"{path} has format {content['format']}, this version reads {FORMAT}: plan again")
            content["tasks"] = [Part(**part) for part in content["tasks"]]
            content["failures"] = Part(**content["failures"])
            plan = cls(**content)
        except FileNotFoundError:
            raise UserError(f"there is no {PLAN} in output={output}; make one with step=plan") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error}); remove it and plan again") from error
        if plan.hash != stored:
            raise UserError(f"{path} was changed by hand (its hash does not fit); remove it and plan again")
        return plan

    def read_task(self, output: Path, number: int) -> list[MediaFile]:
        """The files of one task. Raises UserError."""
        return [MediaFile(**line) for line in _read_part(output, self.tasks[number])]

    def read_failures(self, output: Path) -> list[Failure]:
        """The files that no task will touch. Raises UserError."""
        return [Failure(**line) for line in _read_part(output, self.failures)]


def make_plan(source: Source, output: Path, recipe: RecipeConfig, threads: int) -> Plan:
    """The plan of this source and recipe: the one in the output folder if it fits, else a new one, written there.

    Raises UserError when the output folder holds the plan of something else.
    """
    if Path(source.name).resolve() == output.resolve():
        raise UserError("output and source are the same folder: name another output")
    found = source.scan(output)
    inputs = _sha256(json.dumps([asdict(recipe), [asdict(file) for file in found.files]], sort_keys=True).encode())
    clear_killed(output)  # tasks, which may be running, write into folders of their own
    if (output / PLAN).exists():
        plan = load_fitting(output, recipe)
        if plan.inputs != inputs:
            raise UserError(
                f"output={output} was planned with other files than source={source.name} holds now: name another "
                "output; or go on with the files of the plan by step=task and then step=freeze"
            )
        return plan
    try:
        output.mkdir(parents=True, exist_ok=True)
        plan = _new_plan(source, output, recipe, found, inputs, threads)
        write_atomically(output / PLAN, json.dumps({**asdict(plan), "hash": plan.hash}, indent=1).encode())
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error.strerror}") from error
    return plan


def load_fitting(output: Path, recipe: RecipeConfig) -> Plan:
    """The plan in the output folder. Raises UserError when there is none, or it was made by another recipe."""
    plan = Plan.load(output)
    if plan.recipe != asdict(recipe):
        raise UserError(f"output={output} was planned with another recipe: name another output, or remove it")
    return plan


def _new_plan(source: Source, output: Path, recipe: RecipeConfig, found: Scan, inputs: str, threads: int) -> Plan:
    """Examines every file and writes plan.jsonl."""
    files: list[MediaFile] = []
    # a folder or caption that cannot be read now is not in this plan: trying a task again will not bring it
    failures = [replace(failure, transient=False) for failure in found.failures]
    for result in _examined(source, recipe, found.files, threads):
        if isinstance(result, MediaFile):
            files.append(result)
        else:
            failures.append(result)
    content = bytearray()
    tasks = []
    for run in cut(files, recipe.task_seconds):
        tasks.append(_append(content, run, sum(file.seconds for file in run)))
    rest = _append(content, sorted(failures, key=lambda failure: failure.file), 0.0)
    write_atomically(output / LINES, bytes(content))
    has_images = any(file.kind == "image" for file in files)
    stills = recipe.stills == "always" or (recipe.stills == "auto" and not has_images)
    return Plan(inputs, asdict(recipe), stills, tasks, rest, found.ignored)


def _examined(
    source: Source, recipe: RecipeConfig, files: list[SourceFile], threads: int
) -> Iterator[MediaFile | Failure]:
    """What each file's header tells, in the order of the files, read by several threads with a child process each."""
    try:
        with ThreadPoolExecutor(threads) as pool:
            results = pool.map(lambda file: examine(source, recipe, file), files)
            yield from tqdm(results, "plan", len(files), unit="file", mininterval=seconds_between())
    finally:
        decode.close()


def cut(files: Iterable[MediaFile], task_seconds: float) -> list[list[MediaFile]]:
    """Runs of neighbouring files, each closed once it holds that many seconds."""
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


def _read_part(output: Path, part: Part) -> list[dict[str, Any]]:
    path = output / LINES
    try:
        with open(path, "rb") as stream:
            stream.seek(part.offset)
            lines = stream.read(part.bytes)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); plan again in another output") from error
    if _sha256(lines) != part.sha256:
        raise UserError(f"{path} is not the one that was planned (its checksum differs); restore it, or plan again")
    return [json.loads(line) for line in lines.splitlines()]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
