"""Training steps at full size: float32 weights under bfloat16 autocast, forward, backward and fused AdamW.

They are the steps of unet_step.py, without a trainer around them; trainers.py has that.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks import unet_step
from benchmarks.on_gpu.machine import peak_tflops
from benchmarks.on_gpu.runner import attempt
from benchmarks.on_gpu.scale import Scale
from benchmarks.on_gpu.timing import device_ms, peak_bytes, profiled, release, step_times, wait
from benchmarks.questions import Row
from benchmarks.unet_step import Contender, Setting, stepper
from gen1_train.model.compiling import compile_layers
from gen1_train.model.kernels import Latents, choose
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.system.device import autocast
from gen1_train.training.planning.throughput import gemm_rate, step_flops

Make = Callable[[Setting], Contender]


class Step:
    """A training step of a UNet on some clips."""

    def __init__(self, make: Make, setting: Setting, kernels: bool = True) -> None:
        """`kernels`: choose those of our UNet, as training does."""
        torch.manual_seed(0)
        with setting.device:  # a CPU takes long to draw a billion weights
            contender = make(setting)
        self.contender = contender
        self.setting = setting
        self.choice: str | None = None
        if kernels and isinstance(contender.unet, SpatioTemporalUNet):
            self.choose_kernels()
        self.contender.call = self._mixed(contender.call)
        contender.unet.train()
        self.optimizer_step = stepper(contender, setting.inputs())

    def __call__(self) -> None:
        self.optimizer_step()

    def choose_kernels(self) -> None:
        """Chooses the kernels of the UNet as training does."""
        setting, unet = self.setting, self.contender.unet
        assert isinstance(unet, SpatioTemporalUNet)
        latents = Latents(setting.clips, setting.frames, setting.height, setting.width)
        self.choice = choose(unet, [latents], setting.device, torch.bfloat16, compiled=False)

    def _mixed(self, call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def mixed(*inputs: Tensor) -> Tensor:
            with autocast(self.setting.device, "bf16"):
                return call(*inputs).float()

        return mixed


def ours(scale: Scale, **changes: object) -> Make:
    """Makes our UNet of this scale, with some fields of its config changed."""

    def make(setting: Setting) -> Contender:
        config = replace(scale.unet, **changes)  # type: ignore[arg-type]
        unet = SpatioTemporalUNet(config)
        return Contender("gen1-train", unet, unet, flops_of(config, setting))  # torch does not see those of Triton

    return make


def step_rows(scale: Scale) -> Iterator[Row]:
    """Yields the times, rates and most expensive operators of a step, by clips.

    The first row has frames so small that the GPU has nothing to do: its time is that of the host.
    """
    rate = gemm_rate(scale.device, torch.bfloat16)
    for clips, size in [(1, (8, 8)), *((clips, scale.sizes[0]) for clips in scale.step_clips)]:
        top: list[Row] = []
        labels = {"clips": clips, "latents": "x".join(map(str, size))}

        def measure(clips: int = clips, size: tuple[int, int] = size, top: list[Row] = top) -> Row:
            step = Step(ours(scale), scale.setting(clips, size))
            row = {**costs(step, scale, flops_of(scale.unet, step.setting), rate), "kernel_choice": step.choice}
            total, operators = profiled(step, scale)
            top.extend(operators)
            return {**row, **total, "busy": busy_share(total["device_ms"], row["wall_ms"])}

        yield attempt(labels, measure)
        yield from ({**labels, **row} for row in top)
        release(scale)


def costs(step: Step, scale: Scale, flops: float, gemm: float) -> Row:
    """Returns the times, rates and peak memory of a step with these FLOPs; `gemm`: FLOP/s of matrix products."""
    times = step_times(step, scale)
    peak, seconds = peak_bytes(step, scale), times["wall_ms"] / 1e3
    sheet = peak_tflops(scale)
    frames = step.setting.clips * step.setting.frames
    return {
        **{name: round(value, 2) for name, value in times.items()},
        "frames_per_s": round(frames / seconds, 2),
        "TFLOP_per_s": round(flops / seconds / 1e12, 3),
        "of_gemm": round(flops / seconds / gemm, 4),
        "of_peak": None if sheet is None else round(flops / seconds / 1e12 / sheet, 4),
        "peak_GB": None if peak is None else round(peak / 1e9, 2),
    }


def flops_of(config: UNetConfig, setting: Setting) -> int:
    """Returns the FLOPs of a step without any that are computed twice."""
    return setting.clips * step_flops(config, setting.height, setting.width, setting.frames).total


def busy_share(device_ms: float | None, wall_ms: float) -> float | None:
    return None if device_ms is None else round(device_ms / wall_ms, 3)


def checkpointing_rows(scale: Scale) -> Iterator[Row]:
    """Yields a step without checkpointing, at the finest level, and everywhere."""
    count = len(scale.unet.channels)
    for name, levels in {"none": 0, "finest": 1, "everywhere": count}.items():
        recomputed = [level < levels for level in range(count)]
        yield one_step({"checkpointing": name}, scale, ours(scale, checkpointing=recomputed))


def layout_rows(scale: Scale) -> Iterator[Row]:
    """Yields a step with the weights of its convolutions in each layout; its maps are always channels last."""

    def channels_last(setting: Setting) -> Contender:
        contender = ours(scale)(setting)
        contender.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return contender

    yield one_step({"weights": "channels first, as in training"}, scale, ours(scale))
    yield one_step({"weights": "channels last"}, scale, channels_last)


def compile_rows(scale: Scale) -> Iterator[Row]:
    """Yields a step as it is, and with its layers compiled; in a rehearsal by a backend that generates no code."""
    yield one_step({"compiled": "no"}, scale, ours(scale))
    backend = "eager" if scale.rehearsal else "inductor"

    def measure() -> Row:
        step = Step(ours(scale), scale.setting(scale.usual_clips), kernels=False)
        assert isinstance(step.contender.unet, SpatioTemporalUNet)
        compile_layers(step.contender.unet, backend)
        began = time.perf_counter()
        step()
        wait(scale.device)
        seconds = time.perf_counter() - began
        rate = gemm_rate(scale.device, torch.bfloat16)
        return {**costs(step, scale, flops_of(scale.unet, step.setting), rate), "first_step_s": round(seconds, 1)}

    yield attempt({"compiled": f"by layer, {backend}", "clips": scale.usual_clips}, measure)


def peer_rows(scale: Scale) -> Iterator[Row]:
    """Yields steps of diffusers' UNets on the same clips; the image UNet takes the frames as a batch.

    FLOPs of diffusers' are those that torch counts, which include the recomputed products of fused attention.
    """
    from diffusers.utils import logging

    logging.set_verbosity_error()
    rate = gemm_rate(scale.device, torch.bfloat16)
    makers = {
        unet_step.FLOOR: unet_step.floor,
        unet_step.OURS: ours(scale),
        "gen1-train, no temporal layers": ours(scale, temporal=False),
        "SVD": unet_step.svd,
        "AnimateDiff": unet_step.animatediff,
    }
    for clips in sorted({1, scale.usual_clips}):
        for name, make in makers.items():

            def measure(make: Make = make, clips: int = clips) -> Row:
                step = Step(make, scale.setting(clips))
                unet_step.count(step.contender, step.setting.inputs())
                row = costs(step, scale, step.contender.flops, rate)
                parameters = sum(weight.numel() for weight in step.contender.unet.parameters())
                return {**row, "device_ms": device_ms(step, scale), "parameters": parameters}

            yield attempt({"unet": name, "clips": clips}, measure)
            release(scale)


def one_step(labels: Row, scale: Scale, make: Make) -> Row:
    """Returns the row of a step with the usual number of clips."""

    def measure() -> Row:
        step = Step(make, scale.setting(scale.usual_clips))
        rate = gemm_rate(scale.device, torch.bfloat16)
        return costs(step, scale, flops_of(scale.unet, step.setting), rate)

    row = attempt({**labels, "clips": scale.usual_clips}, measure)
    release(scale)
    return row
