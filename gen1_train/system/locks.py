"""A lock file in a folder that only one process may write to, also on the shared file systems of clusters.

FOLDER/in_use.json names its owner: host, process, job, and since when. The owner renews the file's modification time
every BEAT seconds. A lock whose owner is gone is taken over: at once on the owner's machine, where the process can be
looked up, and for a later start of the same job; from elsewhere when it has not been renewed for STALE seconds.

Many processes may find that an owner is gone. The one that creates the claim on this owner, a file with its token in
the name, replaces the lock. A claim is a lock itself: one whose owner is gone is claimed in the same way.

All of it relies only on what NFS and Lustre do reliably: hard links, which fail if the name exists; renames; and
modification times, which are compared with that of a file created just now, so that two hosts' clocks need not agree.
"""

import atexit
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from gen1_train.errors import UserError
from gen1_train.system.files import open_regular, refuse_link
from gen1_train.system.records import parse_json
from gen1_train.system.signals import interrupts_deferred

LOCK = "in_use.json"
BEAT = 10.0  # seconds between two renewals
STALE = 120.0  # age in seconds at which a heartbeat means that the owner is gone; NFS may show it 60 s late
CONFIRM = 25.0  # seconds for which a stale heartbeat is watched nevertheless: the clocks of two hosts may differ
ATTEMPTS = 20  # to create the lock while others create and remove theirs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock."""

    host: str
    pid: int
    boot: str  # id of the machine's current boot, "" if unknown: equal names do not mean equal machines
    namespace: str  # of process ids; a container has its own
    started: str  # start time of the process in the kernel's ticks, because process ids are used again
    job: str  # Slurm's, "" outside of a job
    restarts: int  # of the job
    since: str  # local time
    token: str  # unique

    def sees(self, other: "Owner") -> bool:
        """Whether this process can look up the other one: on the same machine, among the same process ids."""
        same = (self.boot, self.namespace) == (other.boot, other.namespace)
        return same and self.boot != "" and self.namespace != ""

    def __str__(self) -> str:
        job = f" (job {self.job})" if self.job else ""
        return f"pid {self.pid} on {self.host}{job} since {self.since}"


def this_process() -> Owner:
    """Returns this process as the owner of a new lock."""
    return Owner(
        host=socket.gethostname(),
        pid=os.getpid(),
        boot=_read("/proc/sys/kernel/random/boot_id"),
        namespace=_link("/proc/self/ns/pid"),
        started=start_time(os.getpid()),
        job=os.environ.get("SLURM_JOB_ID", ""),
        restarts=int(number) if (number := os.environ.get("SLURM_RESTART_COUNT", "0")).isdecimal() else 0,
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
        token=secrets.token_hex(16),
    )


def start_time(pid: int) -> str:
    """Returns the start time of a process in ticks since the boot; "" if there is no such process, or no /proc."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()  # the name before it may contain anything
    return fields[19] if len(fields) > 19 and fields[0] != "Z" else ""


class Lock:
    """The lock of a folder, held by this process from `take` to `release`."""

    def __init__(self, folder: Path, remedy: str, on_loss: Callable[[UserError], None]) -> None:
        """`remedy`: the end of the message to a user whose folder is in use.

        `on_loss`: called in a thread if another process has taken the lock over, for example because this one was
        suspended for minutes. It has to keep this process from writing.
        """
        self.path = folder / LOCK
        self.remedy = remedy
        self.on_loss = on_loss
        self.owner = this_process()
        self._created: list[Path] = []
        self._over = threading.Event()

    def take(self) -> None:
        """Takes the lock and starts the heartbeat. Raises UserError if the folder is in use, and OSError.

        Nothing is left if it raises, even if a signal interrupts it at the moment when the lock was created.
        """
        refuse_link(self.path)
        self._over.clear()
        try:
            with interrupts_deferred():
                self._make_folder()
            for _ in range(ATTEMPTS):
                if self._create(self.path) or self._take_over():
                    with interrupts_deferred():
                        self._remove_leftovers()
                        threading.Thread(target=self._renew, name="lock", daemon=True).start()
                        HELD.append(self)
                    return
            raise self._in_use(self._read(self.path)[1])
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Removes the lock if this process still holds it. Never raises OSError: a later start takes it over."""
        with suppress(OSError), interrupts_deferred():
            if os.getpid() == self.owner.pid and not self._over.is_set():  # no fork of the owner
                self._over.set()
                if self._owns(self.path):
                    self.path.unlink(missing_ok=True)
                self._remove_folders()
        if self in HELD:
            HELD.remove(self)

    def __enter__(self) -> "Lock":
        self.take()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def _make_folder(self) -> None:
        missing = [self.path.parent, *self.path.parent.parents]
        self._created = [path for path in missing if not path.exists()]
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def _remove_folders(self) -> None:
        """Removes the folders that this lock created, as far as they are empty."""
        with suppress(OSError):
            for folder in self._created:
                folder.rmdir()

    def _remove_leftovers(self) -> None:
        """Removes the claims and temporary files of processes on this machine that were killed while they took it."""
        for path in self.path.parent.glob(f".{LOCK}.*"):
            with suppress(OSError):
                owner = self._read(path)[1]
                if owner is not None and self.owner.sees(owner) and start_time(owner.pid) != owner.started:
                    path.unlink(missing_ok=True)

    def _create(self, path: Path) -> bool:
        """Creates the lock, or a claim, with its whole content, unless it exists."""
        with self._temporary() as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                pass
            except OSError:
                if not path.exists():  # the file system may have no hard links, or NFS repeated a request
                    return self._create_exclusively(path)
            return self._owns(path)

    def _create_exclusively(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        try:
            with open(descriptor, "w") as stream:
                json.dump(asdict(self.owner), stream)
        except OSError:  # an empty lock would belong to no one
            path.unlink(missing_ok=True)
            raise
        return True

    def _take_over(self) -> bool:
        """Replaces the lock of an owner that is gone. Returns False if the lock has changed in the meantime.

        Raises UserError if the owner, or a process that takes over from it, is alive.
        """
        mtime, gone = self._read(self.path)
        claims: list[Path] = []
        place, seen, owner = self.path, mtime, gone
        while seen is not None:
            if not self._is_gone(place, seen, owner):
                if self._read(place)[1] != owner:
                    return False
                raise self._in_use(owner)
            place = self._claim_on(owner)
            claims.append(place)
            with interrupts_deferred():
                if self._create(place):
                    try:
                        return self._replace(gone)
                    finally:
                        for claim in reversed(claims):
                            claim.unlink(missing_ok=True)
            seen, owner = self._read(place)
        return False

    def _claim_on(self, owner: Owner | None) -> Path:
        return self.path.with_name(f".{LOCK}.after-{owner.token if owner is not None else 'unreadable'}")

    def _replace(self, gone: Owner | None) -> bool:
        """Replaces the lock of `gone`, which no other process may do now, unless another one did it before."""
        mtime, owner = self._read(self.path)
        if mtime is None or owner != gone:
            return False
        with self._temporary() as temporary:
            os.rename(temporary, self.path)
        return self._owns(self.path)

    def _owns(self, path: Path) -> bool:
        owner = self._read(path)[1]
        return owner is not None and owner.token == self.owner.token

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        """A file that names this process, for the length of a block that no signal interrupts."""
        name = f".{LOCK}.{self.owner.host}-{self.owner.pid}-{secrets.token_hex(8)}.tmp"
        temporary = self.path.with_name(name)
        with interrupts_deferred():
            try:
                temporary.write_text(json.dumps(asdict(self.owner)))
                yield temporary
            finally:  # on a full disk, the file exists and is empty
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)

    def _read(self, path: Path) -> tuple[float | None, Owner | None]:
        """Returns a lock's modification time and owner: None for no lock, None for an owner that is unreadable."""
        try:
            with open_regular(path) as stream:  # opening lets NFS fetch the attributes again
                return os.fstat(stream.fileno()).st_mtime, parse_owner(stream.read(10_000).decode(errors="replace"))
        except FileNotFoundError:
            return None, None

    def _is_gone(self, path: Path, mtime: float, owner: Owner | None) -> bool:
        """Whether the owner of a lock is gone; elsewhere, whether it does not renew its lock within STALE seconds.

        A lock that is unreadable, for example after a power failure, is judged by its heartbeat alone.
        """
        mine = self.owner
        if owner is not None and mine.job and mine.job == owner.job and mine.restarts > owner.restarts:
            return True  # Slurm starts a job again after it has ended all its processes
        if owner is not None and mine.sees(owner):
            return start_time(owner.pid) != owner.started
        wait = max(CONFIRM, STALE - max(0.0, self._now() - mtime))
        who = f"by {owner}" if owner is not None else f"({LOCK} cannot be read)"
        logger.info(f"{self.path.parent} is marked as in use {who}: waiting {wait:.0f} s for a sign of life, at most")
        until = time.monotonic() + wait
        while time.monotonic() < until:
            time.sleep(min(1.0, wait / 10))
            if self._read(path) != (mtime, owner):
                return False
        return True

    def _now(self) -> float:
        """Returns the time by the clock that sets modification times in this folder."""
        with self._temporary() as temporary:
            return temporary.stat().st_mtime

    def _renew(self) -> None:
        while not self._over.wait(BEAT):
            try:
                mtime, owner = self._read(self.path)
                if mtime is None:
                    if not self.path.parent.is_dir() or self._create(self.path):  # removed by hand
                        continue
                    owner = self._read(self.path)[1]
                if owner is not None and owner.token == self.owner.token:
                    os.utime(self.path)
                    continue
            except OSError:
                continue  # the disk is not reachable, which what is written there finds out
            if not self._over.is_set():
                self._over.set()
                self.on_loss(
                    UserError(f"{self.path.parent} was taken over by {owner}, while this process was not seen")
                )

    def _in_use(self, owner: Owner | None) -> UserError:
        if owner is None:
            return UserError(f"{self.path} cannot be read: if no process uses its folder, delete it")
        return UserError(f"{self.path.parent} is in use by {owner}: {self.remedy}")


HELD: list[Lock] = []  # by this process


def release_all() -> None:
    """Releases all locks of this process, which is about to end, perhaps by a signal that came just before a release.

    It waits for at most 5 s, because the disk may be gone.
    """
    if not HELD:
        return
    try:
        thread = threading.Thread(target=_release, args=(list(HELD),), daemon=True)
        thread.start()
        thread.join(5)
    except RuntimeError:  # the interpreter is shutting down
        _release(list(HELD))


atexit.register(release_all)


def _release(locks: list[Lock]) -> None:
    for lock in locks:
        lock.release()


def parse_owner(text: str) -> Owner | None:
    """Parses the content of a lock; None if it is not one."""
    try:
        content = parse_json(text)
        owner = Owner(**{field.name: content[field.name] for field in fields(Owner)})
    except (ValueError, TypeError, KeyError):
        return None
    numbers = ("pid", "restarts")
    valid = all(type(value) is (int if name in numbers else str) for name, value in vars(owner).items())
    valid = valid and re.fullmatch(r"\w{1,64}", owner.token, re.ASCII) is not None  # part of a claim's file name
    return owner if valid and owner.pid > 0 and str(owner).isprintable() else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
