"""One idempotent unit of work: some files of the plan -> one tar a pool, in a folder that appears when all is done.

OUTPUT/.staging/task-00012/video-448x256.tar
OUTPUT/.staging/task-00012/video-448x256.index   a line a sample: where it lies in the tar, and its members' checksums
OUTPUT/.staging/task-00012/done.json             failures, numbers, and the networks that made the samples
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data_tools.estimate import Estimators
from data_tools.failures import Failure
from data_tools.pipeline import Made, Pipeline
from data_tools.plan import Plan
from data_tools.read import FileEnd, Progress, ReaderPool
from data_tools.stats import Stats
from gen1_train.data.index import Entry, index_path
from gen1_train.data.pack import TarPacker, open_tar, sample_range
from gen1_train.errors import UserError
from gen1_train.files import sync, write_atomically

STAGING = ".staging"
DONE = "done.json"


@dataclass
class TaskResult:
    plan: str  # hash of the plan
    estimators: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    stats: Stats = field(default_factory=Stats)

    @property
    def transient(self) -> bool:
        """Whether something failed that another try may bring."""
        return any(failure.transient for failure in self.failures)


@dataclass
class Step:
    """What a task has done since the last word of it: for the progress line."""

    seconds: float = 0.0  # of video, as the plan counts them
    samples: int = 0
    lost: Counter[str] = field(default_factory=Counter)  # by category


def task_folder(output: Path, number: int) -> Path:
    return output / STAGING / f"task-{number:05d}"


def is_done(output: Path, number: int) -> bool:
    return (task_folder(output, number) / DONE).exists()


def load_result(output: Path, number: int, plan: str) -> TaskResult | None:
    """What a finished task left; None if it is not finished. Raises UserError if it belongs to another plan."""
    path = task_folder(output, number) / DONE
    try:
        content = json.loads(path.read_bytes())
        result = TaskResult(
            content["plan"],
            content["estimators"],
            [Failure(**failure) for failure in content["failures"]],
            Stats.from_json(content["stats"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove {path.parent} and do the task again") from error
    if result.plan != plan:
        raise UserError(f"{path.parent} was made by another plan: remove {output / STAGING}")
    return result


def forget(output: Path, number: int) -> None:
    """Undoes a task, so that it will be done again."""
    (task_folder(output, number) / DONE).unlink(missing_ok=True)  # first: a folder without it counts for nothing
    shutil.rmtree(task_folder(output, number), ignore_errors=True)


def run_task(
    plan: Plan,
    number: int,
    output: Path,
    readers: ReaderPool,
    estimators: Estimators,
    on_step: Callable[[Step], object] = lambda step: None,
) -> TaskResult:
    """Does one task, unless it is done. A killed run leaves nothing that a later one would take for finished.

    Raises UserError when the output cannot be written or the source has gone.
    """
    plan_hash = plan.hash
    if done := load_result(output, number, plan_hash):
        return done
    folder = task_folder(output, number)
    building = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        result = TaskResult(plan_hash, estimators.description)
        fill(building, plan, number, output, readers, estimators, result, on_step)
        content = {**asdict(result), "stats": result.stats.to_json()}
        write_atomically(building / DONE, json.dumps(content, indent=1).encode())
        if (done := give_name(building, folder, plan_hash)) is not None:
            return done
    except OSError as error:
        raise UserError(
            f"task {number} cannot write to output={output} ({error.strerror or error}); what is finished is kept"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return result


def give_name(building: Path, folder: Path, plan: str) -> TaskResult | None:
    """Makes a finished folder appear; or gives the result of another process that was quicker with the same task."""
    if folder.exists() and not (folder / DONE).exists():  # what a killed `forget` left
        shutil.rmtree(folder, ignore_errors=True)
    try:
        os.replace(building, folder)
    except OSError:
        number = int(folder.name.rpartition("-")[2])
        if (done := load_result(folder.parents[1], number, plan)) is None:
            raise
        return done
    sync(folder.parent)
    return None


def fill(
    building: Path,
    plan: Plan,
    number: int,
    output: Path,
    readers: ReaderPool,
    estimators: Estimators,
    result: TaskResult,
    on_step: Callable[[Step], object],
) -> None:
    """Makes all samples of the task's files."""
    files = plan.read_task(output, number)
    with ExitStack() as stack:
        pipeline = stack.enter_context(Pipeline(estimators, int(plan.recipe["jpeg_quality"])))
        tars = stack.enter_context(Tars(building))
        count = Count(on_step)
        items = stack.enter_context(closing(readers.read(files)))  # a full disk must stop the readers too
        for item in pipeline.run(items):
            match item:
                case Made(clip, members, None):
                    tars.write(clip.pool.name, clip.key, members)
                    sizes = {name: len(data) for name, data in members.items()}
                    result.stats.add_clip(clip.pool.name, clip.meta.get("motion"), sizes, clip.caption is not None)
                    count.sample(clip.pool.kind, clip.meta.get("decoder"))
                case Made(clip, _, error):
                    span = clip.meta.get("seconds", (None, None))
                    lost = Failure(
                        clip.meta["source"], "bad sample", f"{clip.key}: {error}", start=span[0], end=span[1]
                    )
                    note(result, lost, count)
                case Failure():
                    note(result, item, count)
                case Progress():
                    count.reach(item.seconds)
                case FileEnd():
                    end_of_file(result, item, count)


def note(result: TaskResult, failure: Failure, count: "Count") -> None:
    result.failures.append(failure)
    result.stats.add_failure(failure)
    count.lose(failure.category)


def end_of_file(result: TaskResult, end: FileEnd, count: "Count") -> None:
    """Counts a file that has been read, as far as it could be."""
    made = count.made
    if end.failure is not None:
        note(result, replace(end.failure, clips=sum(made.values())), count)
    if end.file.kind == "image" and made:
        result.stats.add_image()
    elif end.file.kind == "video" and (made or end.failure is None):
        result.stats.add_video(end.file.seconds, made["video"], count.decoder)
    count.end_file(end.file.seconds)


class Tars:
    """The tars of a task, a pool each; opened when the first sample comes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._packers: dict[str, TarPacker] = {}

    def __enter__(self) -> "Tars":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        if error[0] is None:
            for pool, packer in self._packers.items():
                write_atomically(index_path(self.folder / f"{pool}.tar"), staged_lines(packer.entries))

    def write(self, pool: str, key: str, members: dict[str, bytes]) -> None:
        if pool not in self._packers:
            self._packers[pool] = self._stack.enter_context(open_tar(self.folder / f"{pool}.tar"))
        self._packers[pool].write(key, members)


def staged_lines(entries: list[Entry]) -> bytes:
    """A line a sample: (key, offset and size in the tar, members with offsets from the sample's start)."""
    lines = []
    before = None
    for entry in entries:
        start, size = sample_range(entry, before)
        members = {name: (offset - start, length, crc) for name, (offset, length, crc) in entry.members.items()}
        lines.append(json.dumps([entry.key, start, size, members]) + "\n")
        before = entry
    return "".join(lines).encode()


class Count:
    """What the file at hand has given, and how much of it has been told."""

    def __init__(self, on_step: Callable[[Step], object]) -> None:
        self.made: Counter[str] = Counter()  # samples of this file, by kind
        self.decoder: str | None = None  # that they came from
        self._told = 0.0
        self._on_step = on_step

    def sample(self, kind: str, decoder: str | None) -> None:
        self.made[kind] += 1
        self.decoder = decoder
        self._on_step(Step(samples=1))

    def lose(self, category: str) -> None:
        self._on_step(Step(lost=Counter([category])))

    def reach(self, seconds: float) -> None:
        """So many seconds of the file have been read."""
        if seconds > self._told:
            self._on_step(Step(seconds=seconds - self._told))
            self._told = seconds

    def end_file(self, seconds: float) -> None:
        """The file is done, whatever its header promised."""
        self._on_step(Step(seconds=seconds - self._told))
        self.made, self.decoder, self._told = Counter(), None, 0.0
