"""The frozen autoencoder: diffusers' AutoencoderKL and the scale of its latents."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from gen1_train.errors import check_positive
from gen1_train.frozen import tiles
from gen1_train.frozen.loading import architecture, fingerprint, finite, load_frozen, require_complete
from gen1_train.frozen.plain import find_source, plain_folder, read_config, selected
from gen1_train.system.device import MAX_MAP

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
KIND = "AutoencoderKL"
CHANNELS = 3  # of a picture
PROBE = 256  # pixels, the side of the frames that `overflows` encodes
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

    def encode_moments(self, frames: Tensor, check: bool = True, most: int | None = None) -> Tensor:
        """Frames (..., 3, h, w) in [-1, 1] -> moments (..., 2c, h/f, w/f): mean and log-variance, unscaled, float32.

        Without `check`, values that overflow in fp16 are returned, and the host does not wait for the device. Frames of
        more pixels than `most` go through the layers in tiles of about that many, see `tiles`.
        """
        flat = frames.flatten(0, -4).float()  # the dtype of the weights, under every strategy
        moments = finite(lambda: self._encode(flat, most), flat.device) if check else self._encode(flat, most).float()
        return moments.view(*frames.shape[:-3], *moments.shape[1:])

    @torch.no_grad()
    def _encode(self, frames: Tensor, most: int | None) -> Tensor:
        if most is not None and frames.shape[-2] * frames.shape[-1] > most:
            return torch.cat([tiles.encode(self.kl, frame, most) for frame in frames.split(1)])
        parts = frames.split(self._frames_per_call(*frames.shape[-2:]))
        return torch.cat([self.kl.encode(part).latent_dist.parameters for part in parts])

    def encode_structure(
        self, structure: Tensor, check: bool = True, most: int | None = None, several: bool = False
    ) -> Tensor:
        """Structure (..., h, w) in [0, 1] -> scaled mean latents (..., c, h/f, w/f) of it as a gray frame.

        With `several` planes, it is (..., p, h, w), see `as_pictures`. `check`, `most`: see `encode_moments`.
        """
        frames = as_pictures(structure * 2 - 1, several, absent=-1)
        return self.encode_moments(frames, check, most).chunk(2, dim=-3)[0] * self.scale

    def overflows(self) -> bool:
        """Whether black, white, striped or random frames overflow in the number format of the current autocast.

        Autoencoders that overflow in fp16 do so for nearly every frame (ours, no proof). It waits for the device.
        """
        device = next(self.kl.parameters()).device
        generator = torch.Generator(device).manual_seed(0)  # not the global one, which a run draws from
        frames = 2 * torch.rand(4, 3, PROBE, PROBE, generator=generator, device=device) - 1
        frames[0] = -1
        frames[1] = 1
        frames[2] = -1
        frames[2, ..., ::16] = 1
        return not bool(self.encode_moments(frames, check=False).isfinite().all())

    def encoding_flops(self, height: int, width: int) -> int:
        """Returns the FLOPs of encoding a frame, as torch's FlopCounterMode counts them; nothing is computed."""
        device = next(self.kl.parameters()).device
        with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter, torch.no_grad():
            self.kl.encode(torch.empty(1, 3, height, width, device=device))
        return counter.get_total_flops()

    def decode(self, latents: Tensor, most: int | None = None) -> Tensor:
        """Scaled latents (..., c, h/f, w/f) -> frames (..., 3, h, w) in [-1, 1], float32.

        `most`: see `encode_moments`.
        """
        flat = latents.flatten(0, -4) / self.scale
        frames = finite(lambda: self._decode(flat, most), flat.device)
        return frames.clamp(-1, 1).view(*latents.shape[:-3], *frames.shape[1:])

    @torch.no_grad()
    def _decode(self, latents: Tensor, most: int | None) -> Tensor:
        h, w = latents.shape[-2:]
        if most is not None and h * w * self.factor**2 > most:
            return torch.cat([tiles.decode(self.kl, frame, most) for frame in latents.split(1)])
        parts = latents.split(self._frames_per_call(self.factor * h, self.factor * w))
        return torch.cat([self.kl.decode(part).sample for part in parts])

    def _frames_per_call(self, height: int, width: int) -> int:
        """Returns `chunk`, or fewer frames if their largest map would exceed MAX_MAP: the last upsampled one."""
        widest = max(self.kl.config.block_out_channels[:2])
        return max(1, min(self.chunk, MAX_MAP // (widest * height * width)))


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


def as_pictures(structure: Tensor, several: bool, absent: float = 0) -> Tensor:
    """Structure (..., h, w) -> gray pictures (..., 3, h, w).

    `several` planes, (..., p, h, w), are red, green and blue, with the value `absent` in place of a third one.
    """
    if not several:
        return structure.unsqueeze(-3).expand(*structure.shape[:-2], CHANNELS, *structure.shape[-2:])
    return F.pad(structure, (0, 0, 0, 0, 0, CHANNELS - structure.shape[-3]), value=absent)


def to_signed(frames: Tensor) -> Tensor:
    """uint8 frames (..., h, w, 3) -> float32 (..., 3, h, w) in [-1, 1]."""
    return frames.movedim(-1, -3).float() / 127.5 - 1


def to_pixels(frames: Tensor) -> Tensor:
    """Frames (..., 3, h, w) in [-1, 1] -> uint8 (..., h, w, 3)."""
    return ((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1)
