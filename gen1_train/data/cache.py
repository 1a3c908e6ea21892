"""A part of a shard set on a node's own disk: a process copies coming shards there, and the loader reads them there.

    CACHE/<first 16 digits of the manifest's hash>/manifest.json   the whole set's
                                                   shards/…        the shards that are there, index before tar
                                                   lock            held by the run that fills it
                                                   prefetch.error  why no more shards come, one line

That is a shard set with gaps, so `ShardSet` reads it and waits for a tar that is not there yet. With data.order=blocks
a node reads few shards at a time, and which come next is known for all time (`gen1_train.data.schedule`).
"""

import fcntl
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import floor
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path

from gen1_train.data.index import IndexDamage, check_index, index_path
from gen1_train.data.loader import Place
from gen1_train.data.prefetch import PAUSES, Job, Needs, affordable, serve, stubbornly
from gen1_train.data.schedule import Schedule
from gen1_train.data.shards import MANIFEST, PREFETCH_ERROR, Manifest, Shard, ShardSet
from gen1_train.errors import UserError
from gen1_train.files import write_atomically
from gen1_train.remote import is_url, join, local_path, read_bytes, reason_of, refusal, without_secrets
from gen1_train.stop import deaf

COPIES = 4  # shards that are copied at the same time; ours
CHECKED = 8  # steps whose shards must fit the budget before anything starts: both kinds are among them; ours
LOCK_SECONDS = 10.0  # that a killed run may take to let go of its cache; ours


def fetch_manifest(root: str, cache: Path) -> Path:
    """Brings the manifest of the set at `root`, a folder or a URL, into CACHE/<hash>, and returns that folder.

    Any number of processes may do so at once. Raises UserError: nothing there, a damaged manifest, a URL with a secret
    in it, a cache that cannot be written.
    """
    shown = without_secrets(root)
    if is_url(root) and (reason := refusal(root)):
        raise UserError(f"data.root={shown}: {reason}")
    place = join(local_path(root), MANIFEST)

    def read() -> bytes:
        try:
            return read_bytes(place)
        except FileNotFoundError as error:
            raise UserError(f"no shard set at data.root={shown}: {MANIFEST} is missing ({reason_of(error)})") from error

    data = stubbornly(without_secrets(place), read, PAUSES if is_url(place) else ())
    with tempfile.TemporaryDirectory(prefix="gen1-manifest-") as checked:
        Path(checked, MANIFEST).write_bytes(data)
        try:
            digest = Manifest.load(Path(checked)).hash
        except UserError as error:  # it names the copy
            raise UserError(str(error).replace(checked, shown)) from error
    folder = cache / digest[:16]
    target = folder / MANIFEST
    try:
        (folder / "shards").mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_bytes() != data:
            write_atomically(target, data)
    except OSError as error:
        raise UserError(f"data.cache={cache} cannot be written ({reason_of(error)}): give another folder") from error
    return folder


@dataclass(frozen=True)
class NodeNeeds:
    """What one of several nodes reads in a step. The ranks of a node, and so its slots, lie side by side."""

    schedule: Schedule
    node: int
    nodes: int

    def __call__(self, number: int) -> list[Shard]:
        """The shards of step `number`, in the order of its slots, each once."""
        step = self.schedule.at(number)
        slots = Place(self.node, self.nodes, accumulate=1).slots(step.size, 0)
        locate, sample = self.schedule.shards.locate, self.schedule.sample
        located = (locate(step.pool, sample(step, slot))[0] for slot in slots)
        return list({shard.name: shard for shard in located}.values())


def working_set(schedule: Schedule, nodes: int) -> int:
    """Bytes, about, of the windows that one of several nodes reads from at any time, those of all pools together."""
    lanes = -(-schedule.settings.lanes // nodes)
    total = 0
    for pool in schedule.pools:
        shards = min(len(pool.shards), lanes * (schedule.settings.window + 1))
        total += shards * sum(shard.bytes for shard in pool.shards) // len(pool.shards)
    return total


class Prefetcher:
    """A node's process that keeps the coming shards in the cache; made by one process of the node, its parent.

    It dies with its parent, even a killed one. What it has copied stays, so that the next start finds it. Caches of
    other sets (CACHE/<another hash>) are left alone and count towards nothing: whoever needs their room removes them.
    """

    def __init__(
        self,
        root: str,
        shards: ShardSet,
        needs: Needs,
        start: int,
        stop: int,
        budget: int,
        say: Callable[[str], None],
        copies: int = COPIES,
        pauses: tuple[float, ...] = PAUSES,
    ) -> None:
        """Starts copying what the steps start..stop-1 need.

        `shards` is the set in the cache, in the folder that fetch_manifest returned; `root` is where it comes from;
        `needs` is sent to the process; `budget`: bytes that the shards may take; `say` is given one line.

        An error of an earlier life is removed here, so no rank of the node may start its loader before. Raises
        UserError when the cache is another run's, or the budget or the disk too small.
        """
        self.folder, self._needs = shards.root, needs
        for step in range(start, min(start + CHECKED, stop)):
            affordable(needs, step, budget)
        context = get_context("spawn")  # a fork would share the trainer's CUDA and threads
        self._step, self._copied = (context.Value("q", value, lock=False) for value in (start, 0))
        lock = _lock(self.folder)
        try:
            (self.folder / PREFETCH_ERROR).unlink(missing_ok=True)
            present = _take_stock(shards)
            _check_disk(shards, budget, sum(present.values()))
            job = Job(local_path(root), self.folder, needs, start, stop, budget, present, copies, pauses)
            self._process = context.Process(
                target=serve, args=(job, self._step, self._copied), name="gen1-prefetcher", daemon=True
            )
            with deaf():
                self._process.start()
        except BaseException:
            os.close(lock)
            raise
        closing = threading.Event()
        threading.Thread(target=_watch, args=(self._process, closing, self.folder), daemon=True).start()
        # at the end of this process too, before multiprocessing waits for a child that heeds no SIGTERM
        self._end = Finalize(self, _end, args=(self._process, closing, self.folder, lock), exitpriority=10)
        say(
            f"copying shards of {without_secrets(root)} to {self.folder}, up to {budget / 1e9:.3g} GB, {len(present)} "
            f"shards ({sum(present.values()) / 1e9:.3g} GB) there already"
        )

    @property
    def copied(self) -> int:
        """Bytes of the shards that have come since the start."""
        return self._copied.value

    def advance(self, step: int) -> None:
        """The trainer is about to take optimizer step `step`: what only earlier ones have read may go.

        Costs microseconds. Raises UserError when no more shards will come.
        """
        self._step.value = step
        if not self._process.is_alive():
            raise UserError(_last_words(self._process, self.folder))

    def missing(self, step: int) -> list[Shard]:
        """The shards of a step that are not there yet."""
        return [shard for shard in self._needs(step) if not (self.folder / "shards" / shard.name).exists()]

    def close(self) -> None:
        """Ends the process and lets go of the cache; the shards stay. May be called again."""
        self._end()


def _lock(folder: Path) -> int:
    """A descriptor that keeps every other run out of the folder until it is closed, or its process is gone."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            reason = "is used by another run"
            if time.monotonic() < deadline:
                time.sleep(0.1)
                continue
        except OSError as error:
            reason = f"cannot be locked ({reason_of(error)})"
        os.close(descriptor)
        raise UserError(f"{folder} {reason}: give another data.cache, a folder on the node's own disk")


def _take_stock(shards: ShardSet) -> dict[str, int]:
    """Bytes of the shards that are whole, those that came first first; whatever else lies there is removed."""
    folder = shards.root / "shards"
    known = {shard.name: shard for pool in shards.manifest.pools.values() for shard in pool.shards}
    found: dict[str, tuple[int, int]] = {}
    for tar in folder.glob("*.tar"):
        index, shard = index_path(tar), known.get(tar.name)
        facts = tar.stat()
        if shard and facts.st_size == shard.bytes and _whole(index, shard):
            found[tar.name] = (facts.st_mtime_ns, facts.st_size + index.stat().st_size)
    kept = set(found) | {index_path(Path(name)).name for name in found}
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
    return {name: size for name, (_, size) in sorted(found.items(), key=lambda item: item[1])}


def _whole(index: Path, shard: Shard) -> bool:
    try:
        check_index(index.read_bytes(), shard.crc32)
        return True
    except (FileNotFoundError, IndexDamage):
        return False


def _check_disk(shards: ShardSet, budget: int, held: int) -> None:
    """Raises UserError when the disk has not the room that the cache may come to take."""
    total = sum(shard.bytes for pool in shards.manifest.pools.values() for shard in pool.shards)
    more, free = min(budget, total) - held, shutil.disk_usage(shards.root).free
    if more > free:
        raise UserError(
            f"the disk of {shards.root} has {free / 1e9:.3g} GB free, and the cache may come to take "
            f"{more / 1e9:.3g} GB more: set data.cache_gigabytes={floor((free + held) / 1e8) / 10} or less, or give "
            "another data.cache"
        )


def _watch(process: BaseProcess, closing: threading.Event, folder: Path) -> None:
    """Leaves a line for the loader's workers when the process dies without one."""
    connection.wait([process.sentinel])
    if not closing.is_set():
        process.join()
        with suppress(OSError):
            write_atomically(folder / PREFETCH_ERROR, _last_words(process, folder).encode())


def _last_words(process: BaseProcess, folder: Path) -> str:
    """Why a process that is gone is gone: what it wrote itself, or how it ended."""
    with suppress(OSError):
        return (folder / PREFETCH_ERROR).read_text()
    code = process.exitcode or 0
    how = f"was killed by signal {-code} (out of memory?)" if code < 0 else f"ended with exit code {code}"
    return f"the prefetcher of {folder} {how}: run the same command again, it goes on with the shards that are there"


def _end(process: BaseProcess, closing: threading.Event, folder: Path, lock: int) -> None:
    closing.set()
    process.kill()
    process.join()
    for half in (folder / "shards").glob(".*"):
        half.unlink(missing_ok=True)
    os.close(lock)
