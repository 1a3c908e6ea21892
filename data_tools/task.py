"""A task, one idempotent unit of work: some files of the plan -> one tar per pool, in a folder that appears when done.

OUTPUT/.staging/task-00012/video-448x256.tar
OUTPUT/.staging/task-00012/video-448x256.index   a line per sample: its position in the tar, its members' checksums
OUTPUT/.staging/task-00012/done.json             failures, statistics, networks; checksums of the indices and of itself
"""

import hashlib
import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data_tools.clips.read import FileEnd, Progress, ReaderPool
from data_tools.estimate import Estimators
from data_tools.failures import Failure
from data_tools.pipeline import Pipeline, ProcessedClip
from data_tools.plan import Plan
from data_tools.stats import Stats
from gen1_train.batch import Pool
from gen1_train.data.index import Entry, index_path
from gen1_train.data.pack import TarPacker, open_tar, sample_range
from gen1_train.errors import UserError
from gen1_train.system.files import open_regular, sync, write_atomically
from gen1_train.system.names import plain_name, shown
from gen1_train.system.records import check_format, make_record, parse_json, read_json, require

STAGING = ".staging"
DONE = "done.json"
FORMAT = 1  # of done.json; older ones have no format and no hash


@dataclass
class TaskResult:
    plan: str  # hash of the plan
    estimators: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    stats: Stats = field(default_factory=Stats)
    indices: dict[str, str] | None = None  # pool -> sha256 of its index in the task's folder; None: made before these

    @property
    def transient(self) -> bool:
        """Whether there is a failure that another try may fix."""
        return any(failure.transient for failure in self.failures)

    def to_json(self) -> dict[str, Any]:
        """Returns the content of done.json, with a hash of all of it."""
        content = {**asdict(self), "stats": self.stats.to_json(), "format": FORMAT}
        return {**content, "hash": content_hash(content)}

    @classmethod
    def from_json(cls, content: Any, path: Path) -> "TaskResult":
        """Restores what `to_json` returned. Raises ValueError for anything else, UserError for a newer format."""
        if isinstance(content, dict) and "format" in content:
            check_format(content["format"], FORMAT, path, f"remove {path.parent} and run the task again")
        stored = make_record(_StoredResult, content)
        if stored.hash is None:
            require(stored.indices is None and stored.format is None, "its hash is missing")
        else:
            rest = {name: value for name, value in content.items() if name != "hash"}
            require(content_hash(rest) == stored.hash, "its hash does not match")
        stats = Stats.from_json(stored.stats)
        return cls(stored.plan, stored.estimators, stored.failures, stats, stored.indices)


@dataclass(frozen=True)
class _StoredResult:
    """The content of done.json; what is optional is not in older ones."""

    plan: str
    estimators: dict[str, dict[str, Any]]
    failures: list[Failure]
    stats: dict[str, Any]
    indices: dict[str, str] | None = None
    format: int | None = None
    hash: str | None = None


def content_hash(content: dict[str, Any]) -> str:
    """sha256 over the canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass
class TaskProgress:
    """What a task has done since its last report, for the progress bar."""

    seconds: float = 0.0  # of video, as the plan counts them
    samples: int = 0
    lost: Counter[str] = field(default_factory=Counter)  # by category


def task_folder(output: Path, number: int) -> Path:
    return output / STAGING / f"task-{number:05d}"


def read_staged(output: Path, number: int, result: TaskResult) -> Iterator[tuple[str, bytes, int]]:
    """Yields each pool of a finished task, with the lines of its index and the bytes of its tar.

    Raises UserError if a file is not as the task wrote it.
    """
    folder = task_folder(output, number)
    paths = {path.stem: path for path in sorted(folder.glob("*.index"))}
    remedy = f"remove {folder} and run the task again"
    if result.indices is not None and set(result.indices) != set(paths):
        raise UserError(f"{folder} does not hold the indices that its task wrote: {remedy}")
    for pool, path in paths.items():
        try:
            Pool.named(pool, 1)
            with open_regular(path) as stream:
                lines = stream.read()
            digest = hashlib.sha256(lines).hexdigest()
            require(result.indices is None or digest == result.indices[pool], "its checksum differs")
            size = path.with_suffix(".tar").stat().st_size
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not as its task wrote it ({error}): {remedy}") from error
        yield pool, lines, size


def parse_staged(line: bytes, limit: int) -> tuple[str, int, int, dict[str, Any]]:
    """Returns key, offset, size and members of one line, for a tar of `limit` bytes. Raises ValueError."""
    match parse_json(line):
        case [key, int(start), int(size), dict(members)] if 0 <= start <= start + size <= limit:
            return plain_name(key), start, size, members
    raise ValueError(f"{shown(line)} does not describe a sample of its tar")


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_done(output: Path, number: int) -> bool:
    return (task_folder(output, number) / DONE).exists()


def load_result(output: Path, number: int, plan: str) -> TaskResult | None:
    """Returns the result of a finished task; None if it is not finished. Raises UserError if its plan differs."""
    path = task_folder(output, number) / DONE
    try:
        result = TaskResult.from_json(read_json(path), path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove {path.parent} and run the task again") from error
    if result.plan != plan:
        raise UserError(f"{path.parent} was made by another plan: remove {output / STAGING}")
    return result


def discard_task(output: Path, number: int) -> None:
    """Removes a task's results, so that it will be done again."""
    (task_folder(output, number) / DONE).unlink(missing_ok=True)  # first: a folder without it is not a result
    shutil.rmtree(task_folder(output, number), ignore_errors=True)


def run_task(
    plan: Plan,
    number: int,
    output: Path,
    readers: ReaderPool,
    estimators: Estimators,
    on_progress: Callable[[TaskProgress], object] = lambda progress: None,
) -> TaskResult:
    """Does one task, unless it is done. A killed run leaves nothing that a later run would take for finished.

    Raises UserError if the output cannot be written or the source is gone.
    """
    plan_hash = plan.hash
    if done := load_result(output, number, plan_hash):
        return done
    folder = task_folder(output, number)
    # containers and hosts may give several processes one process id
    building = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(8)}.tmp")
    try:
        building.mkdir(parents=True)
        result = TaskResult(plan_hash, estimators.description)
        make_samples(building, plan, number, output, readers, estimators, result, on_progress)
        result.indices = {index.stem: sha256_of(index) for index in sorted(building.glob("*.index"))}
        write_atomically(building / DONE, json.dumps(result.to_json(), indent=1).encode())
        if (done := publish(building, folder, plan_hash)) is not None:
            return done
    except OSError as error:
        raise UserError(
            f"task {number} cannot write to output={output} ({error.strerror or error}): run it again, finished tasks "
            "are kept"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return result


def publish(building: Path, folder: Path, plan: str) -> TaskResult | None:
    """Makes a finished folder appear; or returns the result of another process that finished the same task first."""
    if folder.exists() and not (folder / DONE).exists():  # left by a killed `discard_task`
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


def make_samples(
    building: Path,
    plan: Plan,
    number: int,
    output: Path,
    readers: ReaderPool,
    estimators: Estimators,
    result: TaskResult,
    on_progress: Callable[[TaskProgress], object],
) -> None:
    """Writes all samples of the task's files to tars in `building`, and counts them and the failures in `result`."""
    files = plan.read_task(output, number)
    with ExitStack() as stack:
        pipeline = stack.enter_context(Pipeline(estimators, int(plan.recipe["jpeg_quality"])))
        tars = stack.enter_context(Tars(building))
        counter = FileCounter(on_progress)
        items = stack.enter_context(closing(readers.read(files)))  # a full disk must stop the readers too
        for item in pipeline.run(items):
            match item:
                case ProcessedClip(clip, members, None, empty, made):
                    tars.write(clip.pool.name, clip.key, members)
                    sizes = {name: len(data) for name, data in members.items()}
                    captioned = made or clip.caption is not None
                    result.stats.add_clip(clip.pool.name, clip.meta.get("motion"), sizes, captioned, made)
                    result.stats.add_structure(clip.pool.frames, empty)
                    counter.sample(clip.pool.kind, clip.meta.get("decoder"))
                case ProcessedClip(clip, _, error):
                    span = clip.meta.get("seconds", (None, None))
                    failure = Failure(
                        clip.meta["source"], "bad sample", f"{clip.key}: {error}", start=span[0], end=span[1]
                    )
                    add_failure(result, failure, counter)
                case Failure():
                    add_failure(result, item, counter)
                case Progress():
                    counter.reach(item.seconds)
                case FileEnd():
                    end_file(result, item, counter)


def add_failure(result: TaskResult, failure: Failure, counter: "FileCounter") -> None:
    result.failures.append(failure)
    result.stats.add_failure(failure)
    counter.lose(failure.category)


def end_file(result: TaskResult, end: FileEnd, counter: "FileCounter") -> None:
    """Counts a file that has been read, as far as it could be."""
    samples = counter.samples
    if end.failure is not None:
        add_failure(result, replace(end.failure, clips=sum(samples.values())), counter)
    if end.file.kind == "image" and samples:
        result.stats.add_image()
    elif end.file.kind == "video" and (samples or end.failure is None):
        result.stats.add_video(end.file.seconds, samples["video"], counter.decoder)
    counter.end_file(end.file.seconds)


class Tars:
    """The tars of a task, one per pool, each opened when its first sample comes."""

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
    """Returns a line per sample: (key, offset and size in the tar, members with offsets from the sample's start)."""
    lines = []
    before = None
    for entry in entries:
        start, size = sample_range(entry, before)
        members = {name: (offset - start, length, crc) for name, (offset, length, crc) in entry.members.items()}
        lines.append(json.dumps([entry.key, start, size, members]) + "\n")
        before = entry
    return "".join(lines).encode()


class FileCounter:
    """Counts the samples of the current file and reports its progress."""

    def __init__(self, on_progress: Callable[[TaskProgress], object]) -> None:
        self.samples: Counter[str] = Counter()  # samples of this file, by kind
        self.decoder: str | None = None  # that its samples came from
        self._reported = 0.0  # seconds
        self._on_progress = on_progress

    def sample(self, kind: str, decoder: str | None) -> None:
        self.samples[kind] += 1
        self.decoder = decoder
        self._on_progress(TaskProgress(samples=1))

    def lose(self, category: str) -> None:
        self._on_progress(TaskProgress(lost=Counter([category])))

    def reach(self, seconds: float) -> None:
        """Reports that the file was read up to this time."""
        if seconds > self._reported:
            self._on_progress(TaskProgress(seconds=seconds - self._reported))
            self._reported = seconds

    def end_file(self, seconds: float) -> None:
        """Reports that the file is done, whatever its header promised."""
        self._on_progress(TaskProgress(seconds=seconds - self._reported))
        self.samples = Counter()
        self.decoder = None
        self._reported = 0.0
