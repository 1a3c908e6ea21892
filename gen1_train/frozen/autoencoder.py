"""The frozen autoencoder: diffusers' AutoencoderKL and the scale of its latents."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gen1_train.errors import check_positive
from gen1_train.frozen.loading import architecture, fingerprint, finite, load_frozen, require_complete
from gen1_train.frozen.plain import find_source, plain_folder, read_config, selected

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
KIND = "AutoencoderKL"
NETWORK = (  # settings that the layers are built from
    "in_channels",
    "out_channels",
    "latent_channels",
    "block_out_channels",
    "layers_per_block",
    "act_fn",
    "down_block_types",
    "up_block_types",
    "norm_num_groups",
    "mid_block_add_attention",
    "use_quant_conv",
    "use_post_quant_conv",
)
ALLOWED = (*NETWORK, "sample_size", "scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast")


@dataclass
class AutoencoderConfig:
    path: str = (
        "stabilityai/sd-vae-ft-mse"  # a folder in diffusers' format, in the working folder or a package; or a hub id
    )
    chunk: int = 16  # frames per call of the autoencoder; bounds memory, changes values by rounding only

    def check(self) -> None:
        """Raises UserError for a setting that is out of its range."""
        check_positive(autoencoder__chunk=self.chunk)


class Autoencoder(nn.Module):
    """Converts between H x W x 3 frames and H/f x W/f x c latents, each frame alone (the paper's is frozen too).

    The autoencoder's own `scaling_factor` (0.18215 for SD 1.x) scales the latents to about unit variance.
    """

    def __init__(self, config: AutoencoderConfig, recorded: bool = False) -> None:
        """Raises UserError if it cannot be loaded. `recorded`: a file names it, not the user, see `frozen.plain`."""
        super().__init__()
        config.check()
        self.kl = load_frozen(
            "autoencoder",
            config.path,
            f"a folder in diffusers' format ({CONFIG}, {WEIGHTS}) or a hub id",
            lambda: load_kl(config.path, recorded),
        )
        self.chunk = config.chunk
        self.scale = float(self.kl.config.scaling_factor)
        self.channels = int(self.kl.config.latent_channels)
        self.factor = 2 ** (len(self.kl.config.block_out_channels) - 1)

    @property
    def fingerprint(self) -> str:
        """The hash of weights and scale, see `fingerprint`. Latents of equal fingerprints can be mixed."""
        return fingerprint(self.kl, self.scale)

    @property
    def architecture(self) -> str:
        """The hash of the settings that its weights do not show, see `architecture`."""
        return architecture(**{name: self.kl.config[name] for name in NETWORK})

    def encode_moments(self, frames: Tensor) -> Tensor:
        """Frames (..., 3, h, w) in [-1, 1] -> moments (..., 2c, h/f, w/f): mean and log-variance, unscaled, float32."""
        flat = frames.flatten(0, -4).float()  # the dtype of the weights, under every strategy
        moments = finite(lambda: self._encode(flat), flat.device)
        return moments.view(*frames.shape[:-3], *moments.shape[1:])

    @torch.no_grad()
    def _encode(self, frames: Tensor) -> Tensor:
        return torch.cat([self.kl.encode(part).latent_dist.parameters for part in frames.split(self.chunk)])

    def encode_structure(self, structure: Tensor) -> Tensor:
        """Structure (..., h, w) in [0, 1] -> scaled mean latents (..., c, h/f, w/f) of it as a gray frame."""
        frames = (structure * 2 - 1).unsqueeze(-3).expand(*structure.shape[:-2], 3, *structure.shape[-2:])
        return self.encode_moments(frames).chunk(2, dim=-3)[0] * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (..., c, h/f, w/f) -> frames (..., 3, h, w) in [-1, 1], float32."""
        flat = latents.flatten(0, -4) / self.scale
        frames = finite(lambda: self._decode(flat), flat.device)
        return frames.clamp(-1, 1).view(*latents.shape[:-3], *frames.shape[1:])

    @torch.no_grad()
    def _decode(self, latents: Tensor) -> Tensor:
        return torch.cat([self.kl.decode(part).sample for part in latents.split(self.chunk)])


def load_kl(path: str, recorded: bool) -> Any:
    """Loads diffusers' AutoencoderKL. Raises ValueError for another class; other errors are those of diffusers."""
    from diffusers import AutoencoderKL

    source = find_source(path, CONFIG, (WEIGHTS,), recorded)
    settings = read_config(source.config)
    if settings.get("_class_name", KIND) != KIND:
        raise ValueError(f"it is a {str(settings['_class_name'])[:40]!r}, not an {KIND}")
    with plain_folder(source, {"_class_name": KIND, **selected(settings, ALLOWED)}) as folder:
        return require_complete(
            AutoencoderKL.from_pretrained(
                folder, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
            )
        )


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
