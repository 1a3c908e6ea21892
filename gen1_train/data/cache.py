"""A cache on a node's own disk that holds part of a shard set: a process copies upcoming shards, the loader reads them.

    CACHE/<first 16 digits of the manifest's hash>/manifest.json   of the whole set
                                                   shards/…        the shards that have arrived, index before tar
                                                   lock            held by the run that fills the cache
                                                   prefetch.error  why no more shards arrive, in one line

It is a shard set with gaps, so `ShardSet` can read it, and waits for a tar that has not arrived. With data.order=blocks
a node reads few shards at a time, and all future reads are known in advance (`gen1_train.data.schedule`).
"""

import fcntl
import logging
import os
import shutil
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from math import floor
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path

from gen1_train.data.index import IndexDamage, check_index, index_path
from gen1_train.data.loader import BatchPartition
from gen1_train.data.manifest import MANIFEST, Manifest, Shard
from gen1_train.data.prefetch import PAUSES, PrefetchJob, StepShards, retry, run_prefetcher, shards_within_budget
from gen1_train.data.schedule import Schedule
from gen1_train.data.shards import PREFETCH_ERROR, ShardSet
from gen1_train.errors import UserError
from gen1_train.system.console import EVERY_RANK, current
from gen1_train.system.files import open_regular, own_folder, refuse_link, write_atomically
from gen1_train.system.remote import is_url, join, local_path, read_bytes, reason_of, refusal_reason, without_secrets
from gen1_train.system.signals import signals_blocked

COPIES = 4  # shards that are copied at the same time; ours
CHECKED_STEPS = 8  # whose shards must fit the budget before anything starts; both kinds are among them; ours
LOCK_SECONDS = 10.0  # how long a killed run may take to release its cache; ours

logger = logging.getLogger(__name__)


def fetch_manifest(root: str, cache: Path) -> Path:
    """Copies the manifest of the set at `root`, a folder or a URL, to CACHE/<hash>, and returns that folder.

    Any number of processes may call it at the same time. Raises UserError if there is no set, its manifest is damaged,
    the URL contains a secret, or the cache cannot be written.
    """
    shown = without_secrets(root)
    if is_url(root) and (reason := refusal_reason(root)):
        raise UserError(f"data.root={shown}: {reason}")
    source = join(local_path(root), MANIFEST)

    def read() -> bytes:
        try:
            return read_bytes(source)
        except FileNotFoundError as error:
            raise UserError(f"no shard set at data.root={shown}: {MANIFEST} is missing ({reason_of(error)})") from error
        except PermissionError as error:  # at the start, no other attempt will succeed
            raise UserError(f"data.root={shown} cannot be read: {reason_of(error)}") from error

    data = retry(without_secrets(source), read, PAUSES if is_url(source) else ())
    with tempfile.TemporaryDirectory(prefix="gen1-manifest-") as copy:
        Path(copy, MANIFEST).write_bytes(data)
        try:
            digest = Manifest.load(Path(copy)).hash
        except UserError as error:  # it names the copy
            raise UserError(str(error).replace(copy, shown)) from error
    folder = cache / digest[:16]
    target = folder / MANIFEST
    try:
        own_folder(cache, folder.name, "shards")
        if not target.exists() or target.read_bytes() != data:
            write_atomically(target, data)
    except OSError as error:
        raise UserError(f"data.cache={cache} cannot be written ({reason_of(error)}): give another folder") from error
    return folder


@dataclass(frozen=True)
class NodeShards:
    """Maps a step to the shards that one of several nodes reads in it.

    The ranks of a node are adjacent, and so are its slots.
    """

    schedule: Schedule
    node: int
    nodes: int

    def __call__(self, number: int) -> list[Shard]:
        """Returns the shards of step `number`, in the order of its slots, each once."""
        step = self.schedule.at(number)
        slots = BatchPartition(self.node, self.nodes, accumulate=1).slots(step.size, 0)
        locate, sample = self.schedule.shards.locate, self.schedule.sample
        located = (locate(step.pool, sample(step, slot))[0] for slot in slots)
        return list({shard.name: shard for shard in located}.values())


def working_set(schedule: Schedule, nodes: int) -> int:
    """Estimates the bytes of the windows, over all pools, that one of several nodes reads from at any time."""
    lanes = -(-schedule.settings.lanes // nodes)
    total = 0
    for pool in schedule.pools:
        shards = min(len(pool.shards), lanes * (schedule.settings.window + 1))
        total += shards * sum(shard.bytes for shard in pool.shards) // len(pool.shards)
    return total


class Prefetcher:
    """A process that keeps a node's upcoming shards in the cache. One process of the node starts it, its parent.

    It ends with its parent, even if the parent is killed. Copied shards stay, so that the next start finds them. Caches
    of other sets (CACHE/<another hash>) do not count towards the budget and are never deleted; that is up to the user.
    """

    def __init__(
        self,
        root: str,
        shards: ShardSet,
        step_shards: StepShards,
        start: int,
        stop: int,
        budget: int,
        node: int = 0,
        copies: int = COPIES,
        pauses: tuple[float, ...] = PAUSES,
    ) -> None:
        """Starts to copy the shards of steps `start` to `stop - 1`.

        `shards` is the set in the cache, in the folder that fetch_manifest returned, and `root` is its source.
        `step_shards` is pickled. `budget`: bytes that the shards may take. `node`: this node's number, for messages.

        An error of an earlier start is removed here, so no rank of the node may start its loader before. Raises
        UserError if another run uses the cache, or the budget or the disk is too small.
        """
        self.folder = shards.root
        self._step_shards = step_shards
        for step in range(start, min(start + CHECKED_STEPS, stop)):
            shards_within_budget(step_shards, step, budget)
        context = get_context("spawn")  # a fork would share the trainer's CUDA and threads
        self._step, self._copied = (context.Value("q", value, lock=False) for value in (start, 0))
        lock = _lock(self.folder)
        try:
            (self.folder / PREFETCH_ERROR).unlink(missing_ok=True)
            present = _scan_shards(shards)
            _check_disk(shards, budget, sum(present.values()))
            job = PrefetchJob(
                root=local_path(root),
                folder=self.folder,
                step_shards=step_shards,
                start=start,
                stop=stop,
                budget=budget,
                present=present,
                copies=copies,
                pauses=pauses,
                console=current(),
            )
            self._process = context.Process(
                target=run_prefetcher, args=(job, self._step, self._copied), name="gen1-prefetcher", daemon=True
            )
            with signals_blocked():
                self._process.start()
        except BaseException:
            os.close(lock)
            raise
        closing = threading.Event()
        threading.Thread(target=_watch, args=(self._process, closing, self.folder), daemon=True).start()
        # also at the exit of this process, before multiprocessing waits for a child that ignores SIGTERM
        self._end = Finalize(self, _end, args=(self._process, closing, self.folder, lock), exitpriority=10)
        logger.info(
            f"node {node}: copying shards from {without_secrets(root)} to {self.folder}, up to {budget / 1e9:.3g} GB; "
            f"{len(present)} shards ({sum(present.values()) / 1e9:.3g} GB) are already there",
            extra=EVERY_RANK,
        )

    @property
    def copied(self) -> int:
        """Bytes of the shards that have arrived since the start."""
        return self._copied.value

    def advance(self, step: int) -> None:
        """Notes that the trainer is about to take optimizer step `step`: shards of earlier steps may be evicted.

        Takes microseconds. Raises UserError if no more shards will arrive.
        """
        self._step.value = step
        if not self._process.is_alive():
            raise UserError(_exit_reason(self._process, self.folder))

    def missing(self, step: int) -> list[Shard]:
        """Returns the shards of a step that have not arrived yet."""
        return [shard for shard in self._step_shards(step) if not (self.folder / "shards" / shard.name).exists()]

    def close(self) -> None:
        """Ends the process and releases the cache; the shards stay. It may be called more than once."""
        self._end()


def _lock(folder: Path) -> int:
    """Returns a descriptor that locks the folder against other runs until it is closed or this process ends."""
    refuse_link(folder / "lock")
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            reason = "is in use by another run"
            if time.monotonic() < deadline:
                time.sleep(0.1)
                continue
        except OSError as error:
            reason = f"cannot be locked ({reason_of(error)})"
        os.close(descriptor)
        raise UserError(f"{folder} {reason}: give another data.cache, a folder on the node's own disk")


def _scan_shards(shards: ShardSet) -> dict[str, int]:
    """Returns the bytes of the complete shards, in the order of their arrival, and removes all other files."""
    folder = shards.root / "shards"
    known = {shard.name: shard for pool in shards.manifest.pools.values() for shard in pool.shards}
    complete: dict[str, tuple[int, int]] = {}  # name -> (time of arrival, bytes)
    for tar in folder.glob("*.tar"):
        index, shard = index_path(tar), known.get(tar.name)
        if not tar.is_file():  # a link to nothing
            continue
        stat = tar.stat()
        if shard and stat.st_size == shard.bytes and _is_intact(index, shard):
            complete[tar.name] = (stat.st_mtime_ns, stat.st_size + index.stat().st_size)
    kept = set(complete) | {index_path(Path(name)).name for name in complete}
    for path in folder.iterdir():
        if path.name not in kept and (path.is_symlink() or not path.is_dir()):
            path.unlink()
    return {name: size for name, (_, size) in sorted(complete.items(), key=lambda item: item[1])}


def _is_intact(index: Path, shard: Shard) -> bool:
    try:
        with open_regular(index) as stream:
            check_index(stream.read(), shard.crc32)
        return True
    except (OSError, IndexDamage):
        return False


def _check_disk(shards: ShardSet, budget: int, held: int) -> None:
    """Raises UserError if the disk has less room than the cache may take."""
    total = sum(shard.bytes for pool in shards.manifest.pools.values() for shard in pool.shards)
    more, free = min(budget, total) - held, shutil.disk_usage(shards.root).free
    if more > free:
        raise UserError(
            f"the disk of {shards.root} has {free / 1e9:.3g} GB free, but the cache may take {more / 1e9:.3g} GB more: "
            f"set data.cache_gigabytes={floor((free + held) / 1e8) / 10} or less, or give another data.cache"
        )


def _watch(process: BaseProcess, closing: threading.Event, folder: Path) -> None:
    """Writes the error for the loader's workers if the process dies without one."""
    connection.wait([process.sentinel])
    if not closing.is_set():
        process.join()
        with suppress(OSError):
            write_atomically(folder / PREFETCH_ERROR, _exit_reason(process, folder).encode())


def _exit_reason(process: BaseProcess, folder: Path) -> str:
    """The error that the process wrote before it ended, or otherwise its exit code or signal."""
    with suppress(OSError):
        return (folder / PREFETCH_ERROR).read_text()
    code = process.exitcode or 0
    how = f"was killed by signal {-code} (out of memory?)" if code < 0 else f"ended with exit code {code}"
    return f"the prefetcher of {folder} {how}: run the same command again, it resumes with the shards already copied"


def _end(process: BaseProcess, closing: threading.Event, folder: Path, lock: int) -> None:
    closing.set()
    process.kill()
    process.join()
    for partial_copy in (folder / "shards").glob(".*"):
        partial_copy.unlink(missing_ok=True)
    os.close(lock)
