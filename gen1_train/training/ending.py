"""When one rank fails all ranks end, in seconds and on all machines, and its line is the last that is printed.

Left alone the others would wait in a collective until it times out, after half an hour, or crash in it, each with a
traceback that buries the line. So the rank that fails says so in the store through which the ranks met, and each rank
listens there in a thread: its main thread may be stuck in the collective. Of a rank that was killed the others say it,
see training.heartbeats.
"""

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from subprocess import Popen
from typing import NoReturn

import torch.distributed
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.distributed.distributed_c10d import _get_default_store
from typing_extensions import override

from gen1_train.errors import UserError
from gen1_train.exits import LOST, MISTAKE
from gen1_train.training.heartbeats import SILENCE, Heartbeats

TICK = 0.5  # seconds between two looks into the store
GRACE = 10.0  # seconds in which the end of training may follow that of rank 0
FAILED, CODE = "gen1-train/failed", "gen1-train/exit-code"  # in the store: how many ranks failed, the first one's code


class Ending(Callback):
    """Ends this rank when another one failed, and the others when this one does. Of several the first one speaks."""

    def __init__(self, went_on: Callable[[], bool] = lambda: False) -> None:
        """`went_on`: whether there is a newer checkpoint than at the start."""
        self._went_on = went_on
        self._store: torch.distributed.Store | None = None  # None: this process is alone
        self._rank, self._world = 0, 1
        self._listener = threading.Thread(target=self._listen, name="ending", daemon=True)
        self._children: list[Popen[bytes]] = []  # the other ranks of this machine, if this one started them
        self._speaks = threading.Event()
        self._over = threading.Event()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self._store = _get_default_store().clone()
            self._store.set_timeout(timedelta(seconds=10))  # of half an hour, if rank 0's machine is gone
            self._rank, self._world = trainer.global_rank, trainer.world_size
            self._children = getattr(trainer.strategy.launcher, "procs", [])
            self._listener.start()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._over.set()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Of a bug the traceback is printed by whoever called Lightning; Ctrl-C and SIGTERM reach all ranks anyway."""
        if self._store is None or not isinstance(exception, Exception):
            return
        if isinstance(exception, UserError):
            self.fail(exception)
        if any(word in str(exception).lower() for word in ("gloo", "nccl")):
            self._listener.join(SILENCE + 10)  # another rank failed or is gone: it ends the process with that line
        self._speak(code=1)
        time.sleep(2 * TICK)

    def fail(self, error: UserError) -> NoReturn:
        """Prints the line and ends all ranks with MISTAKE; for any thread, whatever the main thread is stuck in."""
        self._speak(code=MISTAKE)
        print(f"\ngen1-train: error: {error}", file=sys.stderr, flush=True)  # maybe behind another rank's progress
        if self._store is not None:
            time.sleep(2 * TICK)
        leave(MISTAKE)

    def _speak(self, code: int) -> None:
        """Tells all ranks that this one has failed; does not come back when another one was first.

        After two ticks all have heard it: then this one's connections may break.
        """
        self._children.clear()  # Lightning kills this process when it sees one of them end before
        if self._store is None:
            return
        try:
            if self._store.add(FAILED, 1) == 1:
                self._speaks.set()
                self._store.set(CODE, str(code))
            else:
                self._listener.join()  # it ends the process
        except torch.distributed.DistError:
            pass  # rank 0, which has the store, is gone: they will notice

    def _listen(self) -> None:
        assert self._store is not None
        store = self._store.clone()  # each thread needs its own
        try:
            hearts = Heartbeats(store, self._rank, self._world)
            while not store.check([CODE]):
                if self._over.wait(TICK):
                    return
                hearts.beat()
                lost = hearts.lost()
                # one that ended itself has spoken before
                if lost is not None and not self._over.is_set() and not store.check([CODE]):
                    self._leave_behind(lost, first=store.add(FAILED, 1) == 1)
            code = int(store.get(CODE))
        except torch.distributed.DistError:  # rank 0, which has the store, has ended
            if not self._over.wait(GRACE):
                self._leave_behind("rank 0 is gone: it was killed, or its machine is", first=self._rank == 1)
            return
        self._children.clear()
        if not self._speaks.is_set():
            time.sleep(TICK)  # by then all have heard
            leave(code)

    def _leave_behind(self, lost: str, first: bool) -> NoReturn:
        """Ends this process because another one is gone; the `first` to notice says so, the others notice, too.

        The exit code tells a scheduler whether another start is worth it: one that is lost in every start, for memory
        maybe, before there is a checkpoint, would be started for ever.
        """
        self._children.clear()
        if first:
            line = f"{lost}; call the same command again to go on from the newest checkpoint"
            print(f"\ngen1-train: error: {line}", file=sys.stderr, flush=True)
        time.sleep(2 * TICK)
        leave(LOST if self._went_on() else 1)


def leave(code: int) -> NoReturn:
    """Ends the process at once and its loader workers with it, also those that are stopped."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)
