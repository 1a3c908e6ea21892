"""When one rank fails or hangs, all ranks end within seconds, and the error of the first one is the last line printed.

Without this callback the other ranks would wait in a collective until it times out after half an hour, or crash in it,
each with a traceback that buries the error. The rank that fails therefore reports it in the store through which the
ranks met, and one rank of each machine watches the store, which the others of the machine watch: each in a thread,
because its main thread may be stuck in the collective. A rank that was killed is reported by another one, see
system/heartbeats.py. One that hangs makes the step of all ranks late (deadline.py): each rank notices that by itself,
the first one to do so collects where all ranks are, and all of them leave their stacks in the run folder (evidence.py).
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import Any, NoReturn

import torch.distributed
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.distributed_c10d import _get_default_store
from typing_extensions import override

from gen1_train.errors import LOST, MISTAKE, UserError
from gen1_train.system.console import EVERY_RANK, current
from gen1_train.system.heartbeats import PERIOD, SILENCE, Heartbeats
from gen1_train.system.processes import leave
from gen1_train.system.signals import STOP
from gen1_train.training.failures import evidence
from gen1_train.training.failures.deadline import LONGEST_TICK, Deadline, Late

KILLING = 3.0  # seconds within which the other ranks of a late step must end that this process has started
ASKING = 400.0  # requests per second of all slow ranks together; ours
GRACE = 10.0  # seconds within which training must end on this rank after rank 0 has ended
FAILED = "gen1-train/failed"  # in the store: the number of ranks that failed
CODE = "gen1-train/exit-code"  # in the store: a Notice, empty while none has failed
PAUSES = "gen1-train/pauses/"  # in the store, followed by a step: how many ranks have paused for long after it
ANSWERS = "gen1-train/answers"  # in the store: where the ranks are, one line each, after a step has become late
ANSWERED = "gen1-train/answered"  # in the store, once the first rank has read them
AGAIN = "call the same command again to resume from the newest checkpoint"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Notice:
    """What the first rank to fail tells the others."""

    code: int  # with which all ranks end
    late: int | None = None  # the step that is late, if that is the reason

    def __str__(self) -> str:
        return f"{self.code}" if self.late is None else f"{self.code} {self.late}"

    @classmethod
    def read(cls, text: bytes) -> "Notice":
        return cls(*map(int, bytes(text).split()))


class RankFailure(Callback):
    """Ends this rank when another one fails, and the others when this one does. Only the first to fail prints.

    It comes before all other callbacks, so that what they do is not a part of the median step.
    """

    def __init__(
        self,
        has_new_checkpoint: Callable[[], bool] = lambda: False,
        deadline: Deadline | None = None,
        run: Path = Path(),
    ) -> None:
        """Args:
        has_new_checkpoint: whether a checkpoint was written since the start.
        deadline: of the steps; by default there is none.
        run: the run folder, for the stacks of a step that is late.
        """
        self._has_new_checkpoint = has_new_checkpoint
        self._deadline = deadline or Deadline()
        self._run = run
        self._store: torch.distributed.Store | None = None  # None: the only process
        self._rank, self._world = 0, 1
        self._watcher = threading.Thread(target=self._watch, name="rank-failure", daemon=True)
        self._period = PERIOD  # seconds in which all ranks read the store
        self._announced: int | None = None  # the pause that this rank has announced, see Deadline.long_pause
        self._asked = 0.0  # when this rank asked for the notice by itself
        self._looks = 0  # how often the watcher has looked at the store and at the other ranks
        self._is_ending = False  # the watcher is ending this process
        self._names_rank_0 = False  # if it is gone: the ranks cannot agree on who prints that
        self._children: list[Popen[bytes]] = []  # the other ranks of this machine, if this process started them
        self._is_first = threading.Event()  # this rank failed before all others
        self._over = threading.Event()
        self._met = threading.Event()  # this rank has met the others

    @contextmanager
    def awaiting_ranks(self, world: int, seconds: float) -> Iterator[None]:
        """Ends this process with one line unless it meets the other ranks within `seconds` after the block begins.

        Otherwise a rank whose rank 0 never comes would hold its device for an hour: PyTorch waits half an hour for the
        store, and again for the first collective.
        """

        def watch() -> None:
            if not self._met.wait(seconds):
                where = f"{os.environ.get('MASTER_ADDR', 'localhost')}:{os.environ.get('MASTER_PORT', '?')}"
                met = f"the {world} ranks have not met at {where} within {seconds:g} s"
                self._print(f"{met}: look at the output of the other ranks, or raise trainer.rendezvous_seconds")
                leave(1)

        if world > 1:
            threading.Thread(target=watch, name="rendezvous", daemon=True).start()
        try:
            yield
        finally:
            self._met.set()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._met.set()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self._store = _get_default_store().clone()
            self._store.set_timeout(timedelta(seconds=10))  # instead of half an hour, if rank 0's machine is gone
            self._rank, self._world = trainer.global_rank, trainer.world_size
            self._children = getattr(trainer.strategy.launcher, "procs", [])
            node, local = trainer.node_rank, trainer.local_rank
            self._names_rank_0 = self._rank == 1 or (node, local) == (1, 0)  # if its whole machine is gone
            self._watcher.start()
            threading.Thread(target=self._watch_watcher, name="rank-failure-store", daemon=True).start()
        elif self._deadline.multiple:
            self._watcher.start()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._deadline.begin(trainer.global_step + 1, batch_idx % trainer.accumulate_grad_batches + 1)

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._deadline.enter("backward")

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._deadline.enter("optimizer")

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._deadline.end(trainer.global_step)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._over.set()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends all ranks. The traceback of a bug is printed by Lightning's caller; Ctrl-C and SIGTERM reach all ranks
        anyway."""
        if self._store is None or not isinstance(exception, Exception):
            return
        if isinstance(exception, UserError):
            self.fail(exception)
        if any(word in str(exception).lower() for word in ("gloo", "nccl")):
            self._watcher.join(SILENCE + 10)  # another rank failed or is gone: the watcher ends this process
        self._announce(code=1)
        time.sleep(2 * self._period)

    def fail(self, error: UserError) -> NoReturn:
        """Prints the error and ends all ranks with MISTAKE. Any thread may call it while the main thread is stuck."""
        self._announce(code=MISTAKE)
        self._print(str(error))
        if self._store is not None:
            time.sleep(2 * self._period)
        leave(MISTAKE)

    def _announce(self, code: int) -> None:
        """Reports to all ranks that this one has failed; does not return if another one failed before.

        After two periods all machines have read it, and the connections of this rank may break.
        """
        self._children.clear()  # Lightning would kill this process as soon as one of them ends
        if self._store is None:
            return
        try:
            if self._store.add(FAILED, 1) == 1:
                self._is_first.set()
                self._store.set(CODE, str(Notice(code)))
            else:
                self._watcher.join()  # it ends the process
        except torch.distributed.DistError:
            pass  # rank 0, which has the store, is gone; the other ranks will notice

    def _watch(self) -> None:
        if self._store is None:
            self._watch_alone()
            return
        store = self._store.clone()  # each thread needs its own
        try:
            heartbeats = Heartbeats(store, self._rank, notice=CODE, world=self._world)
            if (notice := self._await_notice(store, heartbeats)) is None:
                return
            self._is_ending = True
            children = list(self._children)
            self._children.clear()
            if notice.late is not None:
                self._report(store, notice.late)
        except torch.distributed.DistError:  # rank 0, which has the store, has ended
            if not self._over.wait(GRACE) and not STOP.interrupted:
                self._end_without_rank_0()
            return
        if not self._is_first.is_set():
            time.sleep(self._period)  # by then all machines have read it
            end_all(children if notice.late is not None else [])
            leave(notice.code)

    def _await_notice(self, store: torch.distributed.Store, heartbeats: Heartbeats) -> Notice | None:
        """Returns what ends this rank; None if its training has ended. Ends it if another rank is gone."""
        while not (text := heartbeats.beat() or self._asked_for(store)):
            self._period = heartbeats.period
            self._looks += 1
            lost = heartbeats.lost()
            # a rank that ended itself has written CODE before, and Ctrl-C ends all ranks; this one may have to
            # return from a collective to notice
            if self._over.wait(self._period if lost is None else PERIOD) or STOP.interrupted:
                return None
            if lost is not None:
                if not store.get(CODE):
                    if first := store.add(FAILED, 1) == 1:
                        store.set(CODE, str(Notice(self._code_of_loss)))  # or other machines would notice after SILENCE
                    self._end_after_loss(lost, first)
            elif (late := self._late(store)) and store.add(FAILED, 1) == 1:
                store.set(CODE, str(Notice(self._code_of_loss, late.step)))
                self._collect(store, heartbeats, late)
        return Notice.read(text)

    def _watch_alone(self) -> None:
        while not self._over.wait(PERIOD) and not STOP.interrupted:
            if late := self._deadline.tick():
                own = self._leave_evidence(late.step)
                self._print(self._late_line(late, [own], lambda rank: f"rank {rank}"))
                leave(self._code_of_loss)

    def _watch_watcher(self) -> None:
        """Ends this process if the watcher waits for the store for too long, whose requests have no time-out.

        Rank 0, which has the store, was stopped then, or its machine is out of reach.
        """
        looks, waited, before = self._looks, 0.0, time.monotonic()
        while self._watcher.is_alive() and not self._over.wait(PERIOD) and not STOP.interrupted:
            now = time.monotonic()
            waited = waited + min(now - before, LONGEST_TICK) if self._looks == looks else 0.0
            looks, before = self._looks, now
            if waited > SILENCE + self._period + (2 * (self._answering + GRACE) if self._is_ending else 0):
                self._end_without_rank_0()

    def _asked_for(self, store: torch.distributed.Store) -> bytes:
        """Returns the notice if this rank is slow; else b"", as Heartbeats.beat does for most ranks.

        On other machines than rank 0's, only one rank reads the notice in time.
        """
        now = time.monotonic()
        if not self._deadline.is_slow or now - self._asked < self._world / ASKING:
            return b""
        self._asked = now
        return bytes(store.get(CODE))

    def _late(self, store: torch.distributed.Store) -> Late | None:
        """Returns the step if it takes too long, and not because another rank pauses; announces pauses of this one."""
        late = self._deadline.tick()
        if (pause := self._deadline.long_pause) != self._announced:
            for step, change in ((self._announced, -1), (pause, 1)):
                if step is not None:
                    store.add(f"{PAUSES}{step}", change)
            self._announced = pause
        if late is None:
            return None
        if any(store.add(f"{PAUSES}{step}", 0) > 0 for step in {late.step - 1, self._deadline.done}):
            self._deadline.postpone()
            return None
        return late

    def _leave_evidence(self, step: int) -> evidence.Answer:
        position = self._deadline.position
        return evidence.Answer(self._rank, position, evidence.write_evidence(self._run, step, self._rank, position))

    def _report(self, store: torch.distributed.Store, step: int) -> None:
        """Leaves the stacks of this rank, and waits until the first one has read where it is."""
        own = self._leave_evidence(step)
        with suppress(torch.distributed.DistError):  # the first one, or rank 0, is gone
            store.append(ANSWERS, str(own))  # type: ignore[attr-defined]
            store.wait([ANSWERED], timedelta(seconds=self._answering))

    def _collect(self, store: torch.distributed.Store, heartbeats: Heartbeats, late: Late) -> NoReturn:
        """Ends all ranks because a step is late, and says where they are."""
        self._is_ending = True
        children = list(self._children)
        self._children.clear()
        own = self._leave_evidence(late.step)
        store.append(ANSWERS, str(own))  # type: ignore[attr-defined]
        end = time.monotonic() + self._answering
        while len(answers := evidence.read_answers(store.get(ANSWERS))) < self._world and time.monotonic() < end:
            time.sleep(PERIOD)
        self._print(self._late_line(late, answers, heartbeats.name))
        store.set(ANSWERED, "")
        time.sleep(self._period)
        end_all(children)
        leave(self._code_of_loss)

    def _late_line(self, late: Late, answers: Sequence[evidence.Answer], name: Callable[[int], str]) -> str:
        return f"{evidence.stuck_line(late, self._world, answers, name, self._run)}; {AGAIN}"

    @property
    def _answering(self) -> float:
        """Seconds within which all ranks that can answer have done so."""
        return 2 * self._period + self._world / ASKING + evidence.WRITING + 1

    def _end_after_loss(self, lost: str, first: bool) -> NoReturn:
        """Ends this process because another rank is gone. The `first` rank to notice prints it; the others notice,
        too."""
        self._children.clear()
        if first:
            self._print(f"{lost}; {AGAIN}")
        time.sleep(2 * self._period)
        leave(self._code_of_loss)

    def _end_without_rank_0(self) -> NoReturn:
        host = os.environ.get("MASTER_ADDR", "localhost")
        lost = f"rank 0 ({host}) is gone: it was killed or stopped, or its machine is"
        self._end_after_loss(lost, first=self._names_rank_0)

    @property
    def _code_of_loss(self) -> int:
        """The exit code tells a scheduler whether another start is worthwhile: a run that loses a rank in every start
        before its first checkpoint, for lack of memory for example, would be started again forever. The same holds
        where the disk does not answer."""
        return LOST if evidence.within(evidence.WRITING, self._has_new_checkpoint) else 1

    def _print(self, line: str) -> None:
        """Prints an error, also in a library call, since the process ends right after."""
        console = current()
        if console is None:
            print(f"error: {line}", file=sys.stderr, flush=True)
            return
        if self._store is not None and console.format == "text":
            print(file=sys.stderr, flush=True)  # another rank's progress bar may be on the terminal's last line
        logger.error("%s", line, extra=EVERY_RANK)


def end_all(children: Sequence[Popen[bytes]]) -> None:
    """Kills the processes that do not end by themselves within seconds, because they are stopped for example."""
    end = time.monotonic() + KILLING
    for child in children:
        try:
            child.wait(max(end - time.monotonic(), 0))
        except TimeoutExpired:
            child.kill()
