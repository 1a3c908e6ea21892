"""One process of a launch verifies checkpoints and tells the others: a start hashes each byte once, not once a rank.

The processes that torchrun or Slurm has started meet where torch will meet later, in the same store: a process that has
the server of a store on this port shares it with torch. Ranks that Lightning starts find the verdicts in their
environment. A process that gets no verdict, for whatever reason, hashes the files by itself: that takes longer and has
the same result.
"""

import hashlib
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import count

from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from torch.distributed import DistError, Store, TCPStore

from gen1_train.errors import UserError
from gen1_train.system.console import rank
from gen1_train.system.processes import is_child_rank
from gen1_train.system.records import make_record, parse_json
from gen1_train.training.checkpoints.checkpoint import Checkpoint

VERDICTS = "GEN1_TRAIN_VERDICTS"  # in the environment of the ranks that Lightning starts: a JSON list
PREFIX = "gen1-train/verdicts"  # of the keys in the store, whose values are verdicts, and at last an empty text
READ = "read"  # the key of the number of processes that have read all of them
LAUNCHES = count()  # of this process that share verdicts: it may train several times, with the same other processes
LINGER = 10.0  # seconds for which a run that trains nothing keeps the store for those that have not; ours

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What a process found out about a checkpoint."""

    about: str  # see `identify`
    problem: str | None = None  # the message about a damaged file


def identify(checkpoint: Checkpoint, which: str | None) -> str:
    """Returns a hash of a checkpoint's folder, of its checkpoint.json, and of what is to be verified."""
    content = json.dumps([str(checkpoint.path), asdict(checkpoint.info), which], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


class Verification:
    """Verifies in this process what it has no verdict about."""

    def __init__(self, known: Iterable[Verdict] = ()) -> None:
        self.verdicts = {verdict.about: verdict for verdict in known}

    def verify(self, checkpoint: Checkpoint, which: str | None = None) -> None:
        """Raises UserError for a damaged checkpoint, see `Checkpoint.verify`."""
        about = identify(checkpoint, which)
        if (verdict := self._find(about)) is None:
            try:
                checkpoint.verify(which)
                verdict = Verdict(about)
            except UserError as error:
                verdict = Verdict(about, str(error))
            self._report(verdict)
        if verdict.problem is not None:
            raise UserError(verdict.problem)

    def close(self) -> None:
        """Tells other processes that this one verifies nothing more. It may be called twice."""
        os.environ[VERDICTS] = json.dumps([asdict(verdict) for verdict in self.verdicts.values()])

    def linger(self) -> None:
        """Waits until other processes have read the verdicts, at the end of one that has the store."""

    def _find(self, about: str) -> Verdict | None:
        return self.verdicts.get(about)

    def _report(self, verdict: Verdict) -> None:
        self.verdicts[verdict.about] = verdict


class Leader(Verification):
    """Verifies in this process, and publishes the verdicts in a store."""

    def __init__(self, store: Store, others: int, launch: str = "0") -> None:
        """`others`: the number of processes that read the store; `launch`: equal for them, and unique in the store."""
        super().__init__()
        self._store = store
        self._others = others
        self._launch = launch
        self._number = 0  # of the next entry
        self._is_closed = False

    def close(self) -> None:
        super().close()
        if not self._is_closed:
            self._is_closed = True
            self._publish("")

    def linger(self) -> None:
        until = time.monotonic() + LINGER
        with suppress(DistError):
            while (
                self.verdicts
                and self._store.add(_key(self._launch, READ), 0) < self._others
                and time.monotonic() < until
            ):
                time.sleep(0.05)

    def _report(self, verdict: Verdict) -> None:
        super()._report(verdict)
        self._publish(json.dumps(asdict(verdict)))

    def _publish(self, text: str) -> None:
        with suppress(DistError):
            self._store.set(_key(self._launch, self._number), text)
        self._number += 1


class Follower(Verification):
    """Waits for the verdicts of the leader."""

    def __init__(self, connect: Callable[[], Store], patience: float, launch: str = "0") -> None:
        """`patience`: seconds to wait for a verdict; `launch`: that of the leader."""
        super().__init__()
        self._connect = connect
        self._launch = launch
        self._patience = patience
        self._heard: queue.Queue[Verdict | None] = queue.Queue()  # None: nothing follows
        self._thread = threading.Thread(target=self._listen, name="verdicts", daemon=True)
        self._is_over = False

    def _find(self, about: str) -> Verdict | None:
        if self._thread.ident is None:
            self._thread.start()
        until = time.monotonic() + self._patience
        while about not in self.verdicts and not self._is_over:
            try:
                verdict = self._heard.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                verdict = None
            if verdict is None:
                self._is_over = True
            else:
                self.verdicts[verdict.about] = verdict
        return self.verdicts.get(about)

    def _listen(self) -> None:
        """Reads the store, in a thread: its requests may wait forever if the leader's machine is gone."""
        try:
            store = self._connect()
            for number in count():
                if not (text := store.get(_key(self._launch, number))):
                    store.add(_key(self._launch, READ), 1)
                    break
                self._heard.put(make_record(Verdict, parse_json(text)))
        except (DistError, ValueError) as error:  # the leader has ended, or never came
            logger.debug("no more verdicts: %s", error)
        self._heard.put(None)


@contextmanager
def verification(nodes: int, processes: int, patience: float) -> Iterator[Verification]:
    """Yields what verifies the checkpoints of a start, for all processes of its launch.

    It has to be closed before this process meets the others to train. It keeps the store until the block ends.

    Args:
        nodes: machines of the run.
        processes: on each of them.
        patience: seconds for which a process waits for a verdict before it verifies by itself.
    """
    shared = Verification() if nodes * processes == 1 else _of_launch(nodes, patience)
    try:
        yield shared
    finally:
        shared.close()
        os.environ.pop(VERDICTS, None)
    shared.linger()


@dataclass(frozen=True)
class _Meeting:
    """Where the processes of a launch meet."""

    host: str
    port: int
    processes: int

    def connect(self, patience: float, serve: bool = False) -> Store:
        """Returns the store, which this process serves or waits for. Raises DistError."""
        timeout = timedelta(seconds=patience)
        return TCPStore(self.host, self.port, None, serve, timeout, wait_for_workers=False, multi_tenant=True)


def _of_launch(nodes: int, patience: float) -> Verification:
    if is_child_rank():
        return Verification(_inherited())
    meeting = _meeting(nodes)
    if meeting is None or meeting.processes == 1:
        return Verification()
    # torchrun keeps its store when it starts the processes again
    launch = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(LAUNCHES)}"
    if rank() != 0:
        return Follower(lambda: meeting.connect(patience), patience, launch)
    serves = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # else torchrun does
    try:
        return Leader(meeting.connect(patience, serves), meeting.processes - 1, launch)
    except DistError as error:  # torch, which meets there later, says what is wrong
        logger.debug("no store: %s", error)
        return Verification()


def _meeting(nodes: int) -> _Meeting | None:
    """Returns where processes meet that something else has started; None if there is no such place.

    It chooses as Lightning does. With NODE_RANK alone, Lightning runs once on each machine and starts the other ranks.
    """
    if "SLURM_PROCID" in os.environ and SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        try:
            slurm = SLURMEnvironment()
            return _Meeting(slurm.main_address, slurm.main_port, slurm.world_size())
        except (RuntimeError, ValueError):  # Lightning refuses this job later
            return None
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    is_one_of_many = not {"RANK", "LOCAL_RANK", "NODE_RANK"}.isdisjoint(os.environ)
    if host is None or not port.isdecimal() or not is_one_of_many:
        return None
    processes = os.environ.get("WORLD_SIZE", "")
    return _Meeting(host, int(port), int(processes) if processes.isdecimal() else nodes)


def _inherited() -> list[Verdict]:
    """Returns the verdicts of the process that has started this one as a rank."""
    with suppress(ValueError, TypeError):
        return [make_record(Verdict, entry) for entry in parse_json(os.environ.get(VERDICTS, "[]"))]
    return []


def _key(launch: str, name: int | str) -> str:
    return f"{PREFIX}/{launch}/{name}"
