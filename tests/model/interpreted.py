"""Runs our Triton kernels in Triton's interpreter, which needs no GPU, and prints what it found as JSON.

TRITON_INTERPRET=1 must be set before triton is imported, so the tests run this file as a process of its own.
"""

import json
import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from gen1_train.model import kernels, triton_group_norm
from gen1_train.model.group_norm import group_norm
from gen1_train.model.kernels import Case, Heads, NormMap
from gen1_train.model.temporal import ExplicitAttention
from tests.model.comparing import gradients, leaf, relative_error

CPU = torch.device("cpu")
EPS = 1e-5
# b c h w and groups: widths that are no power of two, one pixel, several tiles, a map wider than a tile, SD's finest
MAPS = {
    "2x12x3x4": 4,
    "3x30x7x5": 3,
    "1x16x1x1": 4,
    "2x64x24x20": 1,
    "1x5000x2x2": 1,
    "2x320x9x9": 32,
}


# b heads n d: one frame, fewer frames and channels than a tile, SD's, more frames than a warp
HEADS = ["2x5x1x64", "2x5x3x4", "1x6x8x64", "2x3x20x40", "1x2x32x80"]


def norm_errors(name: str, groups: int, silu: bool, dtype: torch.dtype) -> dict[str, float | bool]:
    """Returns the errors of the result and the gradients against torch in float64."""
    torch.manual_seed(0)
    shape = tuple(int(size) for size in name.split("x"))
    values = torch.randn(shape) * 2 + 3, torch.randn(shape[1]), torch.randn(shape[1])
    inputs = [leaf(x.to(dtype)) for x in values]

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = F.group_norm(x, groups, weight, bias, EPS)
        return F.silu(y) if silu else y

    exact = gradients(plain, *(leaf(x.double()) for x in inputs))
    actual = gradients(lambda *xs: group_norm(*xs, groups, EPS, silu, triton=True), *inputs)
    found: dict[str, float | bool] = {
        part: relative_error(a, b) for part, a, b in zip(("y", "x", "weight", "bias"), actual, exact, strict=True)
    }
    return found | {"channels last": all(x.is_contiguous(memory_format=torch.channels_last) for x in actual[:2])}


def attention_errors(name: str, dtype: torch.dtype) -> dict[str, float | bool]:
    """Returns the errors of the result and the gradients against torch in float64; logits have a deviation of 4."""
    torch.manual_seed(0)
    b, heads, n, d = (int(size) for size in name.split("x"))
    inputs = [leaf((2 * torch.randn(b, n, heads, d)).to(dtype).transpose(1, 2)) for _ in range(3)]
    exact = gradients(F.scaled_dot_product_attention, *(leaf(x.double()) for x in inputs))
    actual = gradients(lambda *xs: ExplicitAttention.apply(*xs, True), *inputs)
    found: dict[str, float | bool] = {
        part: relative_error(a, b) for part, a, b in zip("yqkv", actual, exact, strict=True)
    }
    return found | {"frames first": all(x.transpose(1, 2).is_contiguous() for x in actual)}


def disagreement(case: Case) -> str | None:
    return kernels.disagreement(case, case.inputs(torch.randn, torch.float16, torch.float32))


def comparisons() -> dict[str, str | None]:
    """Returns what `kernels.disagreement` says of the kernels, and of kernels that are wrong or fail."""
    norm, attention = NormMap((2, 12, 3, 4), 4, EPS, True), Heads((2, 5, 8, 64))
    right = triton_group_norm.forward
    found = {"right": disagreement(norm), "right attention": disagreement(attention)}

    def wrong(*inputs: object) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, rstd = right(*inputs)  # type: ignore[arg-type]
        return y * 1.1, mean, rstd

    def failing(*inputs: object) -> None:
        raise RuntimeError("no ptxas\nwas found")

    for name, function in {"wrong": wrong, "failing": failing}.items():
        triton_group_norm.forward = function  # type: ignore[assignment]
        found[name] = disagreement(norm)
    triton_group_norm.forward = right
    comparison = kernels.compare([norm, attention], CPU, torch.float32, torch.float32)
    return found | {"compared": comparison.times, "problem": comparison.problem}


def main() -> None:
    found = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        kind = str(dtype).removeprefix("torch.")
        for name, groups in MAPS.items():
            for silu in (False, True):
                found[f"{name} {silu} {kind}"] = norm_errors(name, groups, silu, dtype)
        for name in HEADS:
            if dtype != torch.bfloat16:  # the interpreter multiplies its bits as if they were integers
                found[f"{name} {kind}"] = attention_errors(name, dtype)
    json.dump({"errors": found, "comparisons": comparisons()}, sys.stdout)


if __name__ == "__main__":
    main()
