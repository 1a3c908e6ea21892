"""Group norm that keeps maps in channels-last format, together with the SiLU that follows it.

On a CPU this is torch's group norm. On a GPU, torch's returns its maps channels first, so every convolution behind it
would copy its input, forward and backward. There we compute it (ours) from torch operations on the channels-last map,
which a compiler fuses, or by a Triton kernel. Both save their input and the moments only, not the input of the SiLU.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNELS = ("auto", "torch", "triton")


class GroupNorm(nn.GroupNorm):
    """Maps (b, c, h, w) in any format -> the same shape and dtype, channels last. With `silu`, SiLU follows."""

    def __init__(self, groups: int, channels: int, eps: float, silu: bool = False) -> None:
        super().__init__(groups, channels, eps=eps)
        self.silu = silu
        self.triton = False  # see kernels.choose

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            x = F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
            return F.silu(x) if self.silu else x
        return group_norm(x, self.weight, self.bias, self.num_groups, self.eps, self.silu, self.triton)


def group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool, triton: bool = False
) -> Tensor:
    """Group norm of maps (b, c, h, w) over the channels of each group and all pixels: channels last, in x's dtype.

    It computes in float32, or in float64 if x has that, also under autocast.
    """
    return _GroupNorm.apply(x, weight, bias, groups, eps, silu, triton)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool, triton: bool
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.groups = groups
        ctx.silu = silu
        ctx.triton = triton
        forward = _forward
        if triton:
            from gen1_train.model.triton_group_norm import forward  # here, because triton is optional
        y, mean, rstd = forward(x, weight, bias, groups, eps, silu)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight, bias, mean, rstd = ctx.saved_tensors  # read once: checkpointing unpacks a tensor only once
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        backward = _backward
        if ctx.triton:
            from gen1_train.model.triton_group_norm import backward
        gradients = backward(gradient, x, weight, bias, mean, rstd, ctx.groups, ctx.silu)
        return (*gradients, None, None, None, None)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the result, and mean and 1 / deviation of each sample's groups (b, g)."""
    wide = _grouped(x, groups)
    variance, mean = torch.var_mean(wide, dim=(1, 2, 4), correction=0)
    rstd = (variance + eps).rsqrt()
    y = _affine(wide, weight, bias, mean, rstd)[0]
    return _map(F.silu(y) if silu else y, x), mean, rstd


def _backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, groups: int, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of x, weight and bias."""
    wide, to_y = _grouped(x, groups), _grouped(gradient, groups)
    y, scale = _affine(wide, weight, bias, mean, rstd)
    if silu:
        to_y = torch.ops.aten.silu_backward(to_y, y)
    # sums over the pixels of every channel (b, g, c/g); all but the last three operations are small
    total, moment = to_y.sum((1, 2)), (to_y * wide).sum((1, 2))
    moment = torch.addcmul(moment, mean[..., None], total, value=-1) * rstd[..., None]
    sums = torch.stack([total, moment])
    per_group = (sums * weight.view(groups, -1)).sum(-1) * rstd * (groups / wide[0].numel())  # 2 b g
    shared, slope = per_group[0], per_group[1] * rstd
    offset = mean * slope - shared
    to_x = torch.addcmul(_per_group(offset), wide, _per_group(slope), value=-1)
    to_x = torch.addcmul(to_x, to_y, scale)
    to_bias, to_weight = sums.sum(1).flatten(1).to(weight.dtype)
    return _map(to_x, x), to_weight, to_bias


def _affine(wide: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the normalized map with weight and bias, and its slope over the map (b, 1, 1, g, c/g)."""
    groups = mean.shape[1]
    scale = _per_group(rstd) * weight.to(wide.dtype).view(groups, -1)
    shift = torch.addcmul(bias.to(wide.dtype).view(groups, -1), _per_group(mean), scale, value=-1)
    return torch.addcmul(shift, wide, scale), scale


def _per_group(values: Tensor) -> Tensor:
    return values[:, None, None, :, None]  # b g -> b 1 1 g 1


def _grouped(x: Tensor, groups: int) -> Tensor:
    """Returns a channels-last map (b, c, h, w) as (b, h, w, g, c/g), in float32 or in float64 if it has that."""
    wide = x if x.dtype == torch.float64 else x.float()
    return wide.permute(0, 2, 3, 1).unflatten(-1, (groups, -1))


def _map(grouped: Tensor, x: Tensor) -> Tensor:
    return grouped.flatten(-2).permute(0, 3, 1, 2).to(x.dtype)
