"""The autoencoder's fit: reconstruction plus a very small KL term, then Stable Diffusion's scale convention."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from miniature.data import FIT_SEED, HELD_OUT_SEED
from miniature.fit.loop import Fit
from miniature.fit.variants import SMALL, Variant
from miniature.tiny import autoencoder

BATCH = 8
KL_WEIGHT = 1e-6


def to_unit(pixels: torch.Tensor) -> torch.Tensor:
    """Maps uint8 pixels to the autoencoder's range, -1..1."""
    return pixels.float() / 127.5 - 1


@torch.no_grad()
def reconstruct(model: AutoencoderKL, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the posterior means (n, 4, h/8, w/8) and the decoded images (n, 3, h, w) in -1..1, both unscaled."""
    latents = torch.cat([model.encode(part).latent_dist.mode() for part in images.split(16)])
    return latents, torch.cat([model.decode(part).sample.clamp(-1, 1) for part in latents.split(16)])


def psnr(pixels: torch.Tensor, decoded: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB, mean over the images."""
    error = (to_unit(pixels) - decoded).div(2).square().mean((1, 2, 3))
    return float((-10 * error.log10()).mean())


def measure(model: AutoencoderKL, count: int = 128, variant: Variant = SMALL) -> dict[str, float]:
    """Measures the PSNR in dB on scenes and generic images that the fit has not seen."""
    own = variant.pictures
    large = replace(own, height=256, width=448)
    size = f"{own.width}x{own.height}"
    pictures = {
        f"psnr_rendered_{size}": own.rendered(count, HELD_OUT_SEED).pixels,
        "psnr_rendered_448x256": large.rendered(max(1, count // 8), HELD_OUT_SEED).pixels,
        f"psnr_generic_{size}": own.generic(count, HELD_OUT_SEED),
    }
    return {name: round(psnr(p, reconstruct(model, to_unit(p))[1]), 2) for name, p in pictures.items()}


def fit(steps: int, variant: Variant = SMALL, state: Path | None = None) -> tuple[AutoencoderKL, dict[str, float]]:
    """Fits the autoencoder; returns it, with `scaling_factor` = 1 / std of its posterior means, and its quality."""
    torch.manual_seed(0)
    model = autoencoder(variant.autoencoder).to(memory_format=torch.channels_last)
    with torch.no_grad():
        model.quant_conv.bias[4:] = -6.0  # start with a narrow posterior: unit noise would drown the first latents
    frames = variant.pictures.rendered(4000, FIT_SEED).pixels
    pool = torch.cat([frames, variant.pictures.generic(1000, FIT_SEED)])

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(pool), (BATCH,), generator=generator)
        top, left = (
            int(torch.randint(side - variant.crop + 1, (), generator=generator)) if side > variant.crop else 0
            for side in pool.shape[2:]
        )
        images = to_unit(pool[chosen, :, top : top + variant.crop, left : left + variant.crop])
        if torch.rand((), generator=generator) < 0.5:
            images = images.flip(3)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=variant.bf16):
            posterior = model.encode(images).latent_dist
            decoded = model.decode(posterior.sample(generator)).sample.float()
        error = functional.l1_loss(decoded, images) + functional.mse_loss(decoded, images)
        return error + KL_WEIGHT * posterior.kl().mean()

    Fit("autoencoder", steps, 3e-3, state).minimize(model, loss_of)
    model = model.to(memory_format=torch.contiguous_format)
    latents, _ = reconstruct(model, to_unit(frames[:512]))
    model.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    return model, measure(model, variant=variant)
