"""When one rank fails, all ranks end within seconds, and the error of the first one is the last line printed.

Without this callback the other ranks would wait in a collective until it times out after half an hour, or crash in it,
each with a traceback that buries the error. The rank that fails therefore reports it in the store through which the
ranks met, and one rank of each machine watches the store, which the others of the machine watch: each in a thread,
because its main thread may be stuck in the collective. A rank that was killed is reported by another one, see
system/heartbeats.py.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from subprocess import Popen
from typing import NoReturn

import torch.distributed
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.distributed.distributed_c10d import _get_default_store
from typing_extensions import override

from gen1_train.errors import LOST, MISTAKE, UserError
from gen1_train.system.console import EVERY_RANK, current
from gen1_train.system.heartbeats import PERIOD, SILENCE, Heartbeats
from gen1_train.system.processes import leave
from gen1_train.system.signals import STOP

GRACE = 10.0  # seconds within which training must end on this rank after rank 0 has ended
FAILED = "gen1-train/failed"  # in the store: the number of ranks that failed
CODE = "gen1-train/exit-code"  # in the store: the exit code of all, empty while none has failed

logger = logging.getLogger(__name__)


class RankFailure(Callback):
    """Ends this rank when another one fails, and the others when this one does. Only the first to fail prints."""

    def __init__(self, has_new_checkpoint: Callable[[], bool] = lambda: False) -> None:
        """`has_new_checkpoint`: whether a checkpoint was written since the start."""
        self._has_new_checkpoint = has_new_checkpoint
        self._store: torch.distributed.Store | None = None  # None: the only process
        self._rank = 0
        self._watcher = threading.Thread(target=self._watch, name="rank-failure", daemon=True)
        self._period = PERIOD  # seconds in which all ranks read the store
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
            self._rank = trainer.global_rank
            self._children = getattr(trainer.strategy.launcher, "procs", [])
            self._watcher.start()

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
                self._store.set(CODE, str(code))
            else:
                self._watcher.join()  # it ends the process
        except torch.distributed.DistError:
            pass  # rank 0, which has the store, is gone; the other ranks will notice

    def _watch(self) -> None:
        assert self._store is not None
        store = self._store.clone()  # each thread needs its own
        try:
            heartbeats = Heartbeats(store, self._rank, notice=CODE)
            while not (code := heartbeats.beat()):
                self._period = heartbeats.period
                lost = heartbeats.lost()
                # a rank that ended itself has written CODE before, and Ctrl-C ends all ranks; this one may have to
                # return from a collective to notice
                if lost is None:
                    if self._over.wait(self._period) or STOP.interrupted:
                        return
                elif self._over.wait(PERIOD) or STOP.interrupted:
                    return
                elif not store.get(CODE):
                    if first := store.add(FAILED, 1) == 1:
                        store.set(CODE, str(self._code_of_loss))  # or other machines would notice after SILENCE
                    self._end_after_loss(lost, first)
        except torch.distributed.DistError:  # rank 0, which has the store, has ended
            if not self._over.wait(GRACE) and not STOP.interrupted:
                self._end_after_loss("rank 0 is gone: it was killed, or its machine is", first=self._rank == 1)
            return
        self._children.clear()
        if not self._is_first.is_set():
            time.sleep(self._period)  # by then all machines have read it
            leave(int(code))

    def _end_after_loss(self, lost: str, first: bool) -> NoReturn:
        """Ends this process because another rank is gone. The `first` rank to notice prints it; the others notice,
        too."""
        self._children.clear()
        if first:
            self._print(f"{lost}; call the same command again to resume from the newest checkpoint")
        time.sleep(2 * self._period)
        leave(self._code_of_loss)

    @property
    def _code_of_loss(self) -> int:
        """The exit code tells a scheduler whether another start is worthwhile: a run that loses a rank in every start
        before its first checkpoint, for lack of memory for example, would be started again forever."""
        return LOST if self._has_new_checkpoint() else 1

    def _print(self, line: str) -> None:
        """Prints an error, also in a library call, since the process ends right after."""
        console = current()
        if console is None:
            print(f"error: {line}", file=sys.stderr, flush=True)
            return
        if self._store is not None and console.format == "text":
            print(file=sys.stderr, flush=True)  # another rank's progress bar may be on the terminal's last line
        logger.error("%s", line, extra=EVERY_RANK)
