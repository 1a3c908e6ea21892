"""What ZeRO-1 and ZeRO-2 do on the host, done in less time: a GPU waits for it where its own work is short.

Both replace a method of DeepSpeed's by one with the same result.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed


@contextmanager
def streams_wait(zero: Any) -> Iterator[None]:
    """Lets the device's streams wait for each other at the end of a backward pass, instead of the host for the device.

    DeepSpeed waits there for all reductions, before it frees the buckets that they read. Whatever uses this memory
    next runs in the stream of the computation, so it is enough that this stream waits. Meanwhile, the host launches the
    optimizer's kernels, or the next micro-batch. `zero`: DeepSpeed's optimizer.
    """
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    # an offloaded optimizer's gradients are read by the host, which has to wait
    if not zero.overlap_comm or zero.cpu_offload or accelerator.resolves_data_dependency():
        yield
        return
    accelerator.synchronize = lambda *_: accelerator.current_stream().wait_stream(zero.reduction_stream)
    try:
        yield
    finally:
        del accelerator.synchronize  # which hid the method of its class


def norm_of(zero: Any, gradients: Sequence[Tensor], weights: Any, norm_type: float = 2.0) -> Tensor:
    """Returns what DeepSpeed's `get_grad_norm_direct` does: the norm of this group's gradients on all ranks, or -1.

    It launches one operation for all gradients and not three for each of a thousand, of which one would copy the
    gradient to float64. A collective.
    """
    assert norm_type == 2
    own = [gradient for gradient in gradients if not getattr(gradient, "_zero_padding", False)]
    norms = torch._foreach_norm(own, norm_type, torch.float32) if own else [torch.zeros((), device=zero.device)]
    squares = torch.stack(norms).square().sum()
    distributed.all_reduce(squares, group=zero.dp_process_group)
    norm = squares.sqrt()
    return torch.where(norm.isfinite(), norm, -1.0)  # as DeepSpeed marks an invalid norm
