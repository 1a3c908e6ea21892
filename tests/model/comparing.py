"""What the tests of layers compare: a function's results with its gradients, and the memory that autograd keeps."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def gradients(function: Callable[..., Tensor], *given: Tensor) -> list[Tensor]:
    """The result, then the gradients of all that is given, under fixed random weights on the result's elements.

    A gradient of what is not used is zero.
    """
    result = function(*given)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(result.dtype)
    return [result.detach(), *torch.autograd.grad((result * weights).sum(), given, materialize_grads=True)]


def relative_error(made: Tensor, expected: Tensor) -> float:
    """The largest difference in units of the largest value, or of 1 if that is more."""
    assert made.shape == expected.shape
    made, expected = made.detach().double(), expected.detach().double()
    return float((made - expected).abs().max() / expected.abs().max().clamp(min=1))


def agree(made: Iterable[Tensor], expected: Iterable[Tensor], bound: float) -> None:
    for number, (a, b) in enumerate(zip(made, expected, strict=True)):
        assert a.dtype == b.dtype and relative_error(a, b) < bound, f"result {number}: {relative_error(a, b):.1e}"


def saved_bytes(function: Callable[[], Tensor], without: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd keeps for the backward pass of a function: each storage once, parameters `without`."""
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        result = function()  # held to the end: a storage that is freed could lend its address to another
    for parameter in without:
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    assert result.requires_grad
    return sum(kept.values())
