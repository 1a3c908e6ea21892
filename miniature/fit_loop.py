"""The optimisation loop that the three fits share."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import nn


def minimise(
    model: nn.Module, loss_of: Callable[[torch.Generator], torch.Tensor], steps: int, rate: float, name: str
) -> None:
    """Take `steps` AdamW steps on `loss_of`, which draws its own batch from the generator that it is given.

    A short warm-up, then a cosine to zero. The result is a function of the step count (and of the thread count, which
    decides the order of sums). Progress goes to stderr.
    """
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-3, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)
    model.train()
    start, average = time.monotonic(), None
    for step in range(1, steps + 1):
        loss = loss_of(generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average = loss.item() if average is None else 0.95 * average + 0.05 * loss.item()
        if step % 25 == 0 or step == steps:
            seconds = time.monotonic() - start
            print(f"\r{name}: step {step}/{steps}, loss {average:.4f}, {seconds:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr, flush=True)
    model.eval()
