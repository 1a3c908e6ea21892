"""Chooses how a UNet computes its group norms and its temporal attention on a GPU: by torch, or by our Triton kernels.

Triton's are taken only if they agree with torch on this GPU, on the shapes of the run itself, and are faster there. If
only deterministic algorithms are allowed, their speed does not matter.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor, nn

from gen1_train.errors import UserError
from gen1_train.model.group_norm import GroupNorm, group_norm
from gen1_train.model.temporal import MAX_EXPLICIT_FRAMES, ExplicitAttention, TemporalAttention
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig

Random = Callable[..., Tensor]  # torch.randn with a generator and a device

# of the largest difference, relative to the largest value
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}


@dataclass(frozen=True)
class Latents:
    """The size of a batch of latents."""

    samples: int
    frames: int  # 1 for images
    height: int
    width: int


class Case(Protocol):
    """What a kernel is given."""

    @property
    def name(self) -> str: ...

    def inputs(self, random: Random, dtype: torch.dtype, weights: torch.dtype) -> list[Tensor]:
        """Returns random inputs; `weights`: the dtype of weights."""

    def run(self, inputs: list[Tensor], triton: bool) -> Tensor: ...


@dataclass(frozen=True)
class NormMap:
    """A group norm, and the map that it is given."""

    shape: tuple[int, ...]  # b c h w
    groups: int
    eps: float
    silu: bool

    @property
    def name(self) -> str:
        return f"group norm of {'x'.join(map(str, self.shape))}"

    def inputs(self, random: Random, dtype: torch.dtype, weights: torch.dtype) -> list[Tensor]:
        b, c, h, w = self.shape
        x = random(b, h, w, c).add_(1).to(dtype).permute(0, 3, 1, 2)
        return [x, random(c).to(weights), random(c).to(weights)]

    def run(self, inputs: list[Tensor], triton: bool) -> Tensor:
        x, weight, bias = inputs
        return group_norm(x, weight, bias, self.groups, self.eps, self.silu, triton)


@dataclass(frozen=True)
class Heads:
    """The heads of temporal attention."""

    shape: tuple[int, ...]  # b heads n d

    @property
    def name(self) -> str:
        return f"attention of {'x'.join(map(str, self.shape))}"

    def inputs(self, random: Random, dtype: torch.dtype, weights: torch.dtype) -> list[Tensor]:
        b, heads, n, d = self.shape
        return [random(b, n, heads, d).to(dtype).transpose(1, 2) for _ in range(3)]

    def run(self, inputs: list[Tensor], triton: bool) -> Tensor:
        q, k, v = inputs
        return ExplicitAttention.apply(q, k, v, triton)


def choose(
    unet: SpatioTemporalUNet,
    batches: Iterable[Latents],
    device: torch.device,
    dtype: torch.dtype,
    compiled: bool,
    weights: torch.dtype | None = None,
) -> str | None:
    """Sets the kernels of a UNet by its config; returns a line about what it took.

    `batches`: what the UNet will be given; `dtype`: of its maps; `weights`: of the norms' weights in a forward pass, if
    it is not the one that they are kept in. On a CPU it changes and returns nothing. Raises UserError if
    model.kernels=triton cannot be used.
    """
    wanted = unet.config.kernels
    if device.type == "cpu":
        if wanted == "triton":
            raise UserError("model.kernels=triton needs a GPU: use model.kernels=auto")
        return None
    if wanted == "torch":
        return _use(unet, False, "model.kernels=torch")
    if wanted == "auto" and compiled:
        return _use(unet, False, "the compiler fuses them")
    found = compare(cases_of(unet.config, batches), device, dtype, weights or unet.conv_norm_out.weight.dtype)
    if wanted == "triton" and found.problem:
        raise UserError(f"model.kernels=triton: {found.problem}; use model.kernels=torch")
    # times differ from start to start, and the bits of the result with them
    always = wanted == "triton" or torch.are_deterministic_algorithms_enabled()
    return _use(unet, found.problem is None and (always or found.faster), found.problem or found.times)


def _use(unet: nn.Module, triton: bool, reason: str) -> str:
    for module in unet.modules():
        if isinstance(module, GroupNorm | TemporalAttention):
            module.triton = triton
    return f"group norms and temporal attention by {'Triton' if triton else 'torch'}: {reason}"


@dataclass(frozen=True)
class Comparison:
    """Triton's kernels compared with torch."""

    problem: str | None = None  # why they cannot be used
    faster: bool = False
    times: str = ""


def compare(cases: Iterable[Case], device: torch.device, dtype: torch.dtype, weights: torch.dtype) -> Comparison:
    """Compares results, gradients and times on random inputs. `weights`: the dtype of the norms' weights."""
    if find_spec("triton") is None:
        return Comparison("triton is not installed")
    triton = plain = 0.0
    ordered = sorted(cases, key=lambda case: case.name)
    for case in ordered:
        generator = torch.Generator(device).manual_seed(0)  # not the global one, which a run draws from
        inputs = case.inputs(partial(torch.randn, generator=generator, device=device), dtype, weights)
        if (problem := disagreement(case, inputs)) is not None:
            return Comparison(problem)
        triton += _seconds(case, inputs, triton=True)
        plain += _seconds(case, inputs, triton=False)
    times = f"Triton agrees, and takes {1000 * triton:.1f} ms for {len(ordered)} shapes, torch {1000 * plain:.1f} ms"
    return Comparison(faster=triton < plain, times=times)


def cases_of(config: UNetConfig, batches: Iterable[Latents]) -> set[Case]:
    """Returns what the kernels of a UNet are given, each once; nothing is computed."""
    with torch.device("meta"):
        unet = SpatioTemporalUNet(replace(config, checkpointing=[]))
    found: set[Case] = set()

    def note_norm(norm: GroupNorm, inputs: tuple[Tensor, ...]) -> None:
        found.add(NormMap(tuple(inputs[0].shape), norm.num_groups, norm.eps, norm.silu))

    def note_attention(attention: TemporalAttention, inputs: tuple[Tensor, ...]) -> None:
        b, n, s, c = inputs[0].shape
        if n <= MAX_EXPLICIT_FRAMES:
            found.add(Heads((b, s * attention.heads, n, c // attention.heads)))

    for module in unet.modules():
        if isinstance(module, GroupNorm):
            module.register_forward_pre_hook(note_norm)
        if isinstance(module, TemporalAttention):
            module.register_forward_pre_hook(note_attention)
    for batch in batches:
        shape = batch.samples, batch.frames, config.in_channels, batch.height, batch.width
        content = torch.empty(batch.samples, 1, config.content_dim, device="meta")
        timesteps = torch.empty(batch.samples, device="meta")
        with torch.no_grad():
            unet(torch.empty(shape, device="meta"), timesteps, content, temporal=batch.frames > 1)
    return found


def disagreement(case: Case, inputs: list[Tensor]) -> str | None:
    """Describes where Triton's result or gradients differ from torch's by more than rounding; None if nowhere."""
    bound = BOUNDS[inputs[0].dtype]
    try:
        actual, expected = (_with_gradients(case, inputs, triton) for triton in (True, False))
        for number, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
            error = float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max().clamp(min=1e-6))
            if not error < bound:  # also if it is NaN
                what = f"gradient {number}" if number else "result"
                return f"Triton's {what} differs from torch's by {error:.1e}: {case.name}"
    except Exception as error:  # Triton and its compiler raise errors of all kinds
        return f"Triton fails: {case.name}: {' '.join(f'{type(error).__name__}: {error}'.split())[:200]}"
    return None


def _seconds(case: Case, inputs: list[Tensor], triton: bool) -> float:
    """Returns the time of a forward and backward pass: the best of three."""
    best = float("inf")
    for _ in range(3):
        _wait(inputs[0].device)
        began = time.perf_counter()
        _with_gradients(case, inputs, triton)
        _wait(inputs[0].device)
        best = min(best, time.perf_counter() - began)
    return best


def _with_gradients(case: Case, inputs: list[Tensor], triton: bool) -> list[Tensor]:
    """Returns the result, and the gradients of all inputs."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        result = case.run(leaves, triton)
    return [result.detach(), *torch.autograd.grad(result, leaves, result.detach())]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
