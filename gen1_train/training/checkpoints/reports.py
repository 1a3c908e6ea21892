"""What the writers of all ranks tell that of rank 0, which finishes their checkpoint."""

import json
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch.distributed import DistStoreError, Store

from gen1_train.errors import UserError

KEY = "gen1-train/checkpoint"  # in the store, followed by the checkpoint and the rank
SLICE = 5.0  # seconds of a wait in the store


@dataclass
class Reports:
    """Messages through the store in which the ranks met. A writer's thread can use it while the training is in a
    collective; it needs a connection of its own, which `store` is."""

    store: Store
    rank: int
    world: int

    def send(self, checkpoint: str, report: dict[str, Any]) -> None:
        self.store.set(f"{KEY}/{checkpoint}/{self.rank}", json.dumps(report))

    def receive(self, checkpoint: str, seconds: float) -> list[dict[str, Any]]:
        """Returns the reports of all ranks, in order. Raises UserError that names a rank whose report does not come
        within `seconds`."""
        keys = [f"{KEY}/{checkpoint}/{rank}" for rank in range(self.world)]
        until = time.monotonic() + seconds
        while True:
            try:
                self.store.wait(keys, timedelta(seconds=SLICE))
                break
            except DistStoreError as error:
                if time.monotonic() > until:
                    late = [rank for rank, key in enumerate(keys) if not self.store.check([key])]
                    raise UserError(
                        f"rank {late[0] if late else 0} has not written its part of checkpoint {checkpoint} within "
                        f"{seconds:g} s: look at its output, then call the same command again"
                    ) from error
        found = [json.loads(report) for report in self.store.multi_get(keys)]
        for key in keys:
            self.store.delete_key(key)
        return found
