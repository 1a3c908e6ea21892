"""Measures a training step of the UNet: forward, backward, fused AdamW. JSON lines on stdout, a table on stderr.

    python benchmarks/unet_step.py                     # compared with the video UNets of diffusers
    python benchmarks/unet_step.py --head-width 64     # Stable Diffusion 2.x's heads instead of the eight of 1.x
    python benchmarks/unet_step.py --device cuda       # also Stable Diffusion 1.5's full size in bf16
    python benchmarks/unet_step.py --suite switches    # only our UNet with each switch alone (the second half)

Contenders alternate in one process, each round in another order. A ratio is the median over the rounds of the time
relative to the floor in the same round. The floor is the image UNet on the frames as a batch: the cost of a video model
without any temporal layers. FLOPs are those of the forward and backward pass as torch counts them, without the
recomputation of checkpointing; "of GEMM" is their rate as a share of that of a large matrix product on this machine
(MFU). Activations are the bytes that autograd saves for the backward pass, without parameters.
"""

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gen1_train.model import SpatioTemporalUNet, UNetConfig
from gen1_train.model import unet as unet_module
from gen1_train.training.planning.throughput import gemm_rate, step_flops

FLOOR = "image UNet (diffusers)"
OURS = "gen1-train"
CONTENT = 768  # width of the content token


@dataclass
class Contender:
    name: str
    unet: nn.Module
    call: Callable[[Tensor, Tensor, Tensor], Tensor]  # latents (b, n, 4, h, w), timesteps (b,), content (b, 1, 768)
    flops: int = 0  # of a step; 0: not counted yet
    activations: int = 0  # bytes
    peak: int = 0  # bytes on the GPU in a step, including weights and optimizer
    seconds: list[float] = field(default_factory=list)  # of each round


@dataclass(frozen=True)
class Setting:
    """The setting that all contenders share."""

    channels: list[int]
    head_width: int | None  # None: eight heads
    frames: int
    height: int  # of the latents
    width: int
    device: torch.device
    dtype: torch.dtype
    clips: int = 1

    @property
    def heads(self) -> list[int]:
        return [8 if self.head_width is None else c // self.head_width for c in self.channels]

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        latents = torch.randn(self.clips, self.frames, 4, self.height, self.width)
        content = torch.randn(self.clips, 1, CONTENT)
        return (
            latents.to(self.device, self.dtype),
            torch.full((self.clips,), 500, device=self.device),
            content.to(self.device, self.dtype),
        )


def ours(setting: Setting, name: str = OURS, **changes: object) -> Contender:
    config = UNetConfig(channels=setting.channels, heads=setting.heads, context_dim=CONTENT, content_dim=CONTENT)
    config = replace(config, **changes)  # type: ignore[arg-type]
    unet = SpatioTemporalUNet(config).to(setting.device, setting.dtype)
    # our own count, which equals torch's exactly, except for the FLOPs of checkpointing and padded heads
    plain = replace(config, checkpointing=[])
    flops = step_flops(plain, setting.height, setting.width, setting.frames, recomputed=True)
    return Contender(name, unet, unet, setting.clips * flops.total)


def floor(setting: Setting) -> Contender:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        block_out_channels=setting.channels, cross_attention_dim=CONTENT, attention_head_dim=setting.heads
    ).to(setting.device, setting.dtype)

    def call(latents: Tensor, timesteps: Tensor, content: Tensor) -> Tensor:
        n = latents.shape[1]
        images, times = latents.flatten(0, 1), timesteps.repeat_interleave(n)
        return unet(images, times, content.repeat_interleave(n, dim=0)).sample.unflatten(0, (-1, n))

    return Contender(FLOOR, unet, call)


def animatediff(setting: Setting) -> Contender:
    from diffusers import UNetMotionModel

    unet = UNetMotionModel(
        block_out_channels=tuple(setting.channels),
        cross_attention_dim=CONTENT,
        num_attention_heads=tuple(setting.heads),
        motion_num_attention_heads=tuple(setting.heads),
    ).to(setting.device, setting.dtype)

    def call(latents: Tensor, timesteps: Tensor, content: Tensor) -> Tensor:
        n = latents.shape[1]
        return unet(latents.transpose(1, 2), timesteps, content.repeat_interleave(n, dim=0)).sample

    return Contender("AnimateDiff (UNetMotionModel)", unet, call)


def svd(setting: Setting) -> Contender:
    from diffusers import UNetSpatioTemporalConditionModel

    unet = UNetSpatioTemporalConditionModel(
        in_channels=4,
        block_out_channels=tuple(setting.channels),
        cross_attention_dim=CONTENT,
        num_attention_heads=tuple(setting.heads),
    ).to(setting.device, setting.dtype)
    ids = torch.zeros(setting.clips, 3, device=setting.device, dtype=setting.dtype)
    return Contender("SVD (UNetSpatioTemporal…)", unet, lambda x, t, c: unet(x, t, c, added_time_ids=ids).sample)


def modelscope(setting: Setting) -> Contender:
    from diffusers import UNet3DConditionModel

    # it supports only one head width: with eight heads for the others, the width at the first resolution
    unet = UNet3DConditionModel(
        block_out_channels=tuple(setting.channels),
        cross_attention_dim=CONTENT,
        attention_head_dim=setting.head_width or setting.channels[0] // 8,
    ).to(setting.device, setting.dtype)
    return Contender("ModelScope (UNet3D…)", unet, lambda x, t, c: unet(x.transpose(1, 2), t, c).sample)


def measure(contenders: list[Contender], setting: Setting, rounds: int) -> None:
    """Measures each contender and stores the results in it."""
    inputs = setting.inputs()
    steps = []
    for contender in contenders:
        contender.unet.train()
        count(contender, inputs)
        steps.append(stepper(contender, inputs))
        steps[-1]()  # warm-up: kernels are chosen and the optimizer state is created
    for i in range(rounds):
        turn = i % len(contenders)
        for k in (*range(turn, len(contenders)), *range(turn)):
            release_memory()
            contenders[k].seconds.append(timed(steps[k], setting.device))
            print(f"\rround {i + 1}/{rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    if setting.device.type == "cuda":
        for contender, step in zip(contenders, steps, strict=True):
            torch.cuda.reset_peak_memory_stats()
            step()
            contender.peak = torch.cuda.max_memory_allocated()


def count(contender: Contender, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Stores the bytes of activations, and the FLOPs of forward and backward pass as torch counts them."""
    parameters = {p.untyped_storage().data_ptr() for p in contender.unet.parameters()}
    saved: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            loss = contender.call(*inputs).square().mean()
        contender.activations = sum(saved.values())
        loss.backward()
    contender.flops = contender.flops or counter.get_total_flops()


def stepper(contender: Contender, inputs: tuple[Tensor, Tensor, Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(contender.unet.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        contender.call(*inputs).square().mean().backward()
        optimizer.step()

    return step


def timed(step: Callable[[], None], device: torch.device) -> float:
    repeats = 5 if device.type == "cuda" else 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def release_memory() -> None:
    """Returns freed memory to the system, so that a step does not depend on the contender before it."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextmanager
def memory_format(chosen: torch.memory_format) -> Iterator[None]:
    default = unet_module.MEMORY_FORMAT
    unet_module.MEMORY_FORMAT = chosen
    try:
        yield
    finally:
        unet_module.MEMORY_FORMAT = default


def peers(setting: Setting, rounds: int) -> None:
    contenders = [make(setting) for make in (floor, ours, animatediff, svd, modelscope)]
    contenders.insert(2, ours(setting, f"{OURS}, no temporal layers", temporal=False))
    measure(contenders, setting, rounds)
    report("peers", contenders, setting)


def switches(setting: Setting, rounds: int, compiles: bool) -> None:
    """Measures our UNet with each switch alone, one after the other: at full size only one fits into memory."""
    measured: list[Contender] = []

    def run(contender: Contender) -> None:
        measure([contender], setting, rounds)
        contender.unet = nn.Identity()  # keeps the results and frees the memory
        contender.call = lambda x, t, c: x
        measured.append(contender)
        release_memory()
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()

    run(floor(setting))
    run(ours(setting))
    run(ours(setting, "checkpointing everywhere", checkpointing=[True] * len(setting.channels)))
    run(ours(setting, "checkpointing at the finest", checkpointing=[True] + [False] * (len(setting.channels) - 1)))
    with memory_format(torch.contiguous_format):
        run(ours(setting, "channels first"))
    if compiles:
        compiled = ours(setting, "compile")
        compiled.call = torch.compile(compiled.unet)
        run(compiled)
    report("switches", measured, setting)


def report(suite: str, contenders: list[Contender], setting: Setting) -> None:
    rate = gemm_rate(setting.device, setting.dtype)
    base = contenders[0]
    print(f"{suite}: {describe(setting)}, GEMM {rate / 1e12:.3f} TFLOP/s", file=sys.stderr)
    head = (
        f"{'':32s}{'s/step':>9s}{'ratio':>8s}{'GFLOP':>9s}{'of GEMM':>9s}{'activations':>13s}{'ratio':>7s}{'peak':>10s}"
    )
    print(head, file=sys.stderr)
    for contender in contenders:
        pairs = zip(contender.seconds, base.seconds, strict=True)
        row = {
            "suite": suite,
            "name": contender.name,
            "seconds": statistics.median(contender.seconds),
            "ratio": statistics.median(own / floor for own, floor in pairs),
            "flops": contender.flops,
            "of_gemm": contender.flops / statistics.median(contender.seconds) / rate,
            "activation_bytes": contender.activations,
            "activation_ratio": contender.activations / base.activations,
            "peak_bytes": contender.peak,
            "parameters": sum(p.numel() for p in contender.unet.parameters()),
            "rounds": len(contender.seconds),
            "gemm_flops_per_second": rate,
            "setting": describe(setting),
            "machine": machine(setting.device),
            "torch": torch.__version__,
            "command": " ".join(["python", *sys.argv]),
            "commit": commit(),
        }
        print(json.dumps(row), flush=True)
        print(
            f"{contender.name:32s}{row['seconds']:9.3f}{row['ratio']:8.2f}{contender.flops / 1e9:9.0f}"
            f"{row['of_gemm']:9.1%}{contender.activations / 2**20:9.0f} MiB{row['activation_ratio']:7.2f}"
            f"{contender.peak / 2**20:6.0f} MiB",
            file=sys.stderr,
        )


def describe(setting: Setting) -> str:
    heads = "8 heads" if setting.head_width is None else f"heads of {setting.head_width} channels"
    latents = f"{setting.clips}x{setting.frames}x4x{setting.height}x{setting.width}"
    return f"channels {setting.channels}, {heads}, latents {latents}, {setting.dtype}, {setting.device}"


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{models[0].partition(':')[2].strip() if models else 'CPU'}, {torch.get_num_threads()} threads"


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:  # git is not installed
        return "unknown"
    return result.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--suite", choices=["peers", "switches"], help="default: peers, and on cuda also switches")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--head-width", type=int, help="channels per head; default: eight heads, as in SD 1.x")
    parser.add_argument("--latents", type=int, nargs=3, default=[8, 32, 56], metavar=("FRAMES", "HEIGHT", "WIDTH"))
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 128, 256, 256])
    parser.add_argument("--no-compile", action="store_true", help="skip the slowest switch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    device = torch.device(options.device)
    setting = Setting(options.channels, options.head_width, *options.latents, device, torch.float32)
    if options.suite in (None, "peers"):
        peers(setting, options.rounds)
    if options.suite == "switches" or (options.suite is None and device.type == "cuda"):
        full = replace(setting, channels=[320, 640, 1280, 1280], dtype=torch.bfloat16)
        switches(full if device.type == "cuda" else setting, options.rounds, not options.no_compile)


if __name__ == "__main__":
    main()
