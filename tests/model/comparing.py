"""Helpers to compare layers: results with gradients, and the memory that autograd saves."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """Returns the result, then the gradients of all inputs under fixed random weights on the result's elements.

    The gradient of an unused input is zero.
    """
    result = function(*inputs)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(result.dtype)
    return [result.detach(), *torch.autograd.grad((result * weights).sum(), inputs, materialize_grads=True)]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference relative to the largest expected value, or to 1 if that is larger."""
    assert actual.shape == expected.shape
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1))


def agree(actual: Iterable[Tensor], expected: Iterable[Tensor], bound: float) -> None:
    for number, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert a.dtype == b.dtype and relative_error(a, b) < bound, f"result {number}: {relative_error(a, b):.1e}"


def saved_bytes(function: Callable[[], Tensor], without: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd saves for the backward pass of a function: each storage once, except parameters `without`."""
    saved: dict[int, int] = {}

    def save(x: Tensor) -> Tensor:
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(save, lambda x: x):
        result = function()  # kept alive: the address of a freed storage could be used again
    for parameter in without:
        saved.pop(parameter.untyped_storage().data_ptr(), None)
    assert result.requires_grad
    return sum(saved.values())
