"""The frozen autoencoder: diffusers' AutoencoderKL and the scale of its latents."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gen1_train.frozen import complete, fingerprint, finite, load_frozen


@dataclass
class AutoencoderConfig:
    path: str = "stabilityai/sd-vae-ft-mse"  # a folder in diffusers' format, from here or in a package; or a hub id
    chunk: int = 16  # frames that go through the autoencoder at a time; bounds memory, changes no value


class Autoencoder(nn.Module):
    """H x W x 3 frames <-> H/f x W/f x c latents, each frame alone (paper section 3.2: a frozen per-frame autoencoder).

    Latents are scaled to about unit variance by the autoencoder's own `scaling_factor` (0.18215 for SD 1.x).
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        from diffusers import AutoencoderKL

        self.kl = load_frozen(
            "autoencoder",
            config.path,
            "a folder in diffusers' format (config.json, diffusion_pytorch_model.safetensors) or a hub id",
            lambda path: complete(
                AutoencoderKL.from_pretrained(
                    path, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
                )
            ),
        )
        self.chunk = config.chunk
        self.scale = float(self.kl.config.scaling_factor)
        self.channels = int(self.kl.config.latent_channels)
        self.factor = 2 ** (len(self.kl.config.block_out_channels) - 1)

    @property
    def fingerprint(self) -> str:
        """A hash of the weights and the scale: latents of autoencoders with equal fingerprints can be mixed."""
        return fingerprint(self.kl, self.scale)

    def encode_moments(self, frames: Tensor) -> Tensor:
        """Frames (..., 3, h, w) in [-1, 1] -> moments (..., 2c, h/f, w/f): mean and log-variance, unscaled, float32."""
        flat = frames.flatten(0, -4).float()  # as the weights are: DeepSpeed hands out bfloat16
        moments = finite(lambda: self._encode(flat), flat.device)
        return moments.view(*frames.shape[:-3], *moments.shape[1:])

    @torch.no_grad()
    def _encode(self, frames: Tensor) -> Tensor:
        return torch.cat([self.kl.encode(part).latent_dist.parameters for part in frames.split(self.chunk)])

    def encode_structure(self, structure: Tensor) -> Tensor:
        """Structure (..., h, w) in [0, 1] -> scaled latents (..., c, h/f, w/f) of it as a grey frame (the mean)."""
        frames = (structure * 2 - 1).unsqueeze(-3).expand(*structure.shape[:-2], 3, *structure.shape[-2:])
        return self.encode_moments(frames).chunk(2, dim=-3)[0] * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (..., c, h/f, w/f) -> frames (..., 3, h, w) in [-1, 1]."""
        flat = latents.flatten(0, -4) / self.scale
        with torch.no_grad():
            frames = torch.cat([self.kl.decode(part).sample for part in flat.split(self.chunk)])
        return frames.clamp(-1, 1).view(*latents.shape[:-3], *frames.shape[1:])


def sample_latents(moments: Tensor, noise: Tensor, scale: float) -> Tensor:
    """Draws scaled latents (..., c, h, w) from moments (..., 2c, h, w) with the given standard normal noise."""
    mean, log_variance = moments.chunk(2, dim=-3)
    return (mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise) * scale


def to_signed(frames: Tensor) -> Tensor:
    """uint8 frames (..., h, w, 3) -> float32 (..., 3, h, w) in [-1, 1]."""
    return frames.movedim(-1, -3).float() / 127.5 - 1


def to_pixels(frames: Tensor) -> Tensor:
    """Frames (..., 3, h, w) in [-1, 1] -> uint8 (..., h, w, 3)."""
    return ((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1)
