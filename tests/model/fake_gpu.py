"""Runs a model forward and backward on CUDA tensors that have shapes and layouts, but no memory: no GPU is needed."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import BackwardCFunction


@contextmanager
def fake_gpu(dtype: torch.dtype = torch.bfloat16) -> Iterator[None]:
    """New tensors are on a fake GPU, in `dtype`.

    Without a real GPU, torch would pick its slow convolution and the plain form of attention for them. They are
    replaced by what a GPU takes, whose layouts torch knows: cuDNN's convolution and flash attention.
    """

    def flash(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[0]

    default = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(), torch.device("cuda"):
        patch.setattr(torch._C, "_select_conv_backend", lambda *_, **__: torch._C._ConvBackend.Cudnn)
        patch.setattr(F, "scaled_dot_product_attention", flash)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


def backward(result: Tensor) -> None:
    """Runs the backward pass of a result, node by node, and discards the gradients of the leaves.

    torch's own engine asks the driver about its devices, which fails where there is none.
    """
    waiting = _consumers(result.grad_fn)
    gradients: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    gradients[result.grad_fn][0] = torch.empty_like(result)
    ready = [result.grad_fn]
    while ready:
        node = ready.pop()
        own = gradients.pop(node, {})
        for (following, index), value in zip(node.next_functions, _call(node, own)):
            if following is None:
                continue
            if value is not None:
                value = _fitted(value, following._input_metadata[index])
                earlier = gradients[following].get(index)
                gradients[following][index] = value if earlier is None else earlier + value
            waiting[following] -= 1
            if not waiting[following]:
                ready.append(following)


def _consumers(root: Any) -> Counter[Any]:
    """Counts the nodes that pass a gradient to each node."""
    found: Counter[Any] = Counter()
    seen, stack = {root}, [root]
    while stack:
        for following, _ in stack.pop().next_functions:
            if following is not None:
                found[following] += 1
                if following not in seen:
                    seen.add(following)
                    stack.append(following)
    return found


def _call(node: Any, gradients: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    if not gradients or "AccumulateGrad" in node.name():
        return (None,) * len(node.next_functions)
    inputs = [gradients.get(i) for i in range(len(node._input_metadata))]
    values = node.apply(*inputs) if isinstance(node, BackwardCFunction) else node(*inputs)
    return values if isinstance(values, tuple) else (values,)


def _fitted(value: Tensor, metadata: Any) -> Tensor:
    """Sums over what was broadcast, as torch's engine does."""
    return value.sum_to_size(metadata.shape).to(metadata.dtype)
