"""The optimization loop that the three fits share."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch
from torch import nn

LOG_EVERY = 100  # steps
logger = logging.getLogger(__name__)


def minimize(
    model: nn.Module, loss_of: Callable[[torch.Generator], torch.Tensor], steps: int, rate: float, name: str
) -> None:
    """Takes `steps` AdamW steps on `loss_of`, which draws its batch from the generator that is passed to it.

    The learning rate has a short warm-up to `rate`, then a cosine decay to zero. The result depends only on the number
    of steps, and on the number of threads, which determines the order of sums.
    """
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-3, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)
    model.train()
    start = time.monotonic()
    average = None
    for step in range(1, steps + 1):
        loss = loss_of(generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average = loss.item() if average is None else 0.95 * average + 0.05 * loss.item()
        if step % LOG_EVERY == 0 or step == steps:
            seconds = time.monotonic() - start
            logger.info("%s: step %d/%d, loss %.4f, %.0f s", name, step, steps, average, seconds)
    model.eval()
