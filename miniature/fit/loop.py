"""The optimization loop that the three fits share."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gen1_train.system.files import atomic_file

LOG_EVERY = 100  # steps
SAVE_EVERY = 500  # steps
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """A fit by AdamW. The learning rate has a short warm-up to `rate`, then a cosine decay to zero."""

    name: str
    steps: int
    rate: float
    state: Path | None = None  # file from which a fit that was killed continues; None: it starts again

    def minimize(self, model: nn.Module, loss_of: Callable[[torch.Generator], torch.Tensor]) -> None:
        """Takes the steps on `loss_of`, which draws its batch from the generator that is passed to it.

        The result depends only on the number of steps, and on the number of threads, which determines the order of
        sums. A fit that continues gives the same result.
        """
        generator = torch.Generator().manual_seed(0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.rate, weight_decay=1e-3, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.rate, total_steps=self.steps, pct_start=0.05)
        done = self._load(model, optimizer, schedule, generator)
        model.train()
        start = time.monotonic()
        average = None
        for step in range(done + 1, self.steps + 1):
            loss = loss_of(generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average = loss.item() if average is None else 0.95 * average + 0.05 * loss.item()
            if step % LOG_EVERY == 0 or step == self.steps:
                seconds = time.monotonic() - start
                logger.info("%s: step %d/%d, loss %.4f, %.0f s", self.name, step, self.steps, average, seconds)
            if self.state is not None and (step % SAVE_EVERY == 0 or step == self.steps):
                parts: dict[str, Any] = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                parts |= {"schedule": schedule.state_dict(), "generator": generator.get_state()}
                with atomic_file(self.state) as partial:
                    torch.save({"step": step, "steps": self.steps, **parts}, partial)
        model.eval()

    def _load(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        generator: torch.Generator,
    ) -> int:
        """Loads what an earlier call has saved, if it was a fit of as many steps; returns the steps that are done."""
        if self.state is None or not self.state.exists():
            return 0
        saved = torch.load(self.state, weights_only=True)
        if saved["steps"] != self.steps:
            return 0
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        generator.set_state(saved["generator"])
        logger.info("%s: continues after step %d of %d", self.name, saved["step"], self.steps)
        return int(saved["step"])
