"""Seconds per frame of an edit at full size: sampling by the UNet, and the autoencoder around it.

The weights are random. Not included: the structure estimator and CLIP, which see each frame once; sampling passes each
through the UNet more than a hundred times.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from benchmarks.on_gpu.batches import with_structure
from benchmarks.on_gpu.runner import attempt
from benchmarks.on_gpu.scale import FACTOR, Scale
from benchmarks.on_gpu.timing import peak_bytes, release, wait
from benchmarks.questions import Row
from gen1_train.diffusion.editing import Scene, sample_video, shared_noise
from gen1_train.diffusion.sampling import SamplingConfig
from gen1_train.diffusion.schedule import NoiseConfig, NoiseSchedule
from gen1_train.editing.networks import Denoiser, FrameCoder, place
from gen1_train.editing.precision import Formats
from gen1_train.frozen.autoencoder import Autoencoder, AutoencoderConfig
from gen1_train.model.unet import SpatioTemporalUNet
from gen1_train.system.device import set_determinism

FRAMES = 16  # more than a window, so that windows overlap
# Stable Diffusion's autoencoder, and a tiny one with the same layers
AUTOENCODER = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32}
TINY_AUTOENCODER = {"block_out_channels": (4, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}


def edit_rows(scale: Scale) -> Iterator[Row]:
    """Yields seconds per frame by precision and size of the frames, with gen1-edit's default settings.

    Few of its steps are taken, because all cost the same.
    """
    set_determinism(False, cudnn_benchmark=False)  # as in gen1-edit; cuDNN's trials would count as peak memory
    sampling = SamplingConfig(steps=2 if scale.rehearsal else 10)
    for precision in ("bf16",) if scale.rehearsal else ("bf16", "fp16", "fp32"):
        formats = Formats(precision)
        unet = random_unet(scale, formats)
        for size in scale.sizes[:1] if precision == "fp32" else scale.sizes:
            labels = {"precision": precision, "frame": pixels(size), "steps": sampling.steps}
            yield attempt(labels, partial(sample, scale, unet, formats, size, sampling))
        del unet
        release(scale)
    for precision in ("fp32",) if scale.rehearsal else ("bf16", "fp32"):
        for size in scale.sizes:
            labels = {"precision": precision, "frame": pixels(size)}
            yield attempt(labels, partial(encode_and_decode, scale, Formats(precision), size))
            release(scale)


def pixels(size: tuple[int, int]) -> str:
    return f"{FACTOR * size[1]}x{FACTOR * size[0]}"


def random_unet(scale: Scale, formats: Formats) -> SpatioTemporalUNet:
    torch.manual_seed(0)
    with scale.device:
        unet = SpatioTemporalUNet(with_structure(scale.unet))
    place(unet, scale.device, formats.unet)
    return unet.eval().requires_grad_(False)


@torch.no_grad()
def sample(
    scale: Scale, unet: SpatioTemporalUNet, formats: Formats, size: tuple[int, int], sampling: SamplingConfig
) -> Row:
    """Samples one video as `Gen1Editor.sample` does."""
    shape = (unet.config.out_channels, *size)
    noise = shared_noise(FRAMES, scale.frames, shape, seed=0).to(scale.device)
    scene = Scene(noise, structure=torch.randn(FRAMES, *shape, device=scale.device))
    content = torch.randn(1, unet.config.content_dim, device=scale.device)
    schedule = NoiseSchedule(NoiseConfig(), scale.device)
    denoiser = Denoiser(unet, formats, scale.device)

    def run() -> None:
        sample_video(denoiser, scene, content, schedule, sampling, scale.frames, on_step=denoiser.check)

    seconds, peak = timed_after_warm_up(run, scale)
    one = seconds / FRAMES / sampling.steps
    usual = SamplingConfig.steps
    row = {"ms_per_frame_and_step": round(1e3 * one, 3), f"s_per_frame_of_{usual}_steps": round(usual * one, 4)}
    return {**row, "peak_GB": None if peak is None else round(peak / 1e9, 2)}


def encode_and_decode(scale: Scale, formats: Formats, size: tuple[int, int]) -> Row:
    """Encodes frames and decodes their latents as an edit does."""
    coder = FrameCoder(random_autoencoder(scale), formats, scale.device)
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (FRAMES, FACTOR * size[0], FACTOR * size[1], 3), dtype=np.uint8)
    latents = coder.encode(frames)
    row: Row = {}
    for name, call in {"encode": lambda: coder.encode(frames), "decode": lambda: coder.decode(latents)}.items():
        seconds, peak = timed_after_warm_up(call, scale)
        row[f"{name}_s_per_frame"] = round(seconds / FRAMES, 4)
        row[f"{name}_peak_GB"] = None if peak is None else round(peak / 1e9, 2)
    return row


def random_autoencoder(scale: Scale) -> Autoencoder:
    """Returns an autoencoder with random weights, loaded from a folder as always. Raises ModuleNotFoundError."""
    from diffusers import AutoencoderKL

    widths = TINY_AUTOENCODER if scale.rehearsal else AUTOENCODER
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        blocks = len(widths["block_out_channels"])  # type: ignore[arg-type]
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            latent_channels=4,
            **widths,  # type: ignore[arg-type]
        ).save_pretrained(folder)
        autoencoder = Autoencoder(AutoencoderConfig(folder))
    place(autoencoder, scale.device)
    return autoencoder


def timed_after_warm_up(call: Callable[[], object], scale: Scale) -> tuple[float, int | None]:
    """Returns the seconds of the second call, and the peak memory of the first one."""
    peak = peak_bytes(call, scale)
    if not scale.gpu:
        call()
    wait(scale.device)
    began = time.perf_counter()
    call()
    wait(scale.device)
    return time.perf_counter() - began, peak
