"""The networks of an edit in their number formats: the UNet as the sampler calls it, and the autoencoder."""

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gen1_train.editing.precision import Formats
from gen1_train.errors import UserError
from gen1_train.frozen.autoencoder import Autoencoder, to_pixels, to_signed
from gen1_train.model.compiling import release_layers
from gen1_train.model.unet import MEMORY_FORMAT, SpatioTemporalUNet
from gen1_train.system.device import autocast

# Of one call of the autoencoder: 16 frames of 448x256, 6 GB with Stable Diffusion's in fp32. Larger frames come in
# fewer at a time, and those with more pixels in tiles, see frozen/tiles.py.
PIXELS = 16 * 448 * 256

logger = logging.getLogger(__name__)


def place(network: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> None:
    """Moves a network to a device, with its weights in the memory format that the kernels there want.

    On GPUs, convolutions in half precision are fastest with channels last. On CPUs, weights stay as they are, since
    another format is slower there and changes the rounding.
    """
    network.to(device, dtype)
    if device.type == "cuda":
        to_channels_last(network)


def to_channels_last(network: nn.Module) -> None:
    network.to(memory_format=MEMORY_FORMAT)  # type: ignore[call-overload]


def _is_of_compiler(error: Exception) -> bool:
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # slow to import, and seldom needed

    return isinstance(error, TorchDynamoException | FailOnRecompileLimitHit)


class Denoiser:
    """The UNet as a `Network` of `gen1_train.diffusion.editing`: float32 in and out, whatever it computes in."""

    def __init__(self, unet: SpatioTemporalUNet, formats: Formats, device: torch.device) -> None:
        """`unet`: with weights of the dtype `formats.unet`, on the device."""
        self.unet = unet
        self.formats = formats
        self.device = device
        self._finite = torch.ones((), dtype=torch.bool, device=device)

    def __call__(self, latents: Tensor, timesteps: Tensor, content: Tensor, temporal: bool) -> Tensor:
        """Latents (b, n, c, h, w), timesteps (b,), content (b, k, d) -> v (b, n, c_out, h, w)."""
        dtype = self.formats.unet
        with autocast(self.device, "fp32"):  # the dtype decides, not an enclosing autocast
            v = self._run(latents.to(dtype), timesteps, content.to(dtype), temporal).float()
        self._finite = self._finite & v.isfinite().all()
        return v

    def check(self) -> None:
        """Raises UserError if any value since the start was not finite. It waits for the GPU: call it once a step."""
        if self._finite:
            return
        remedies = {
            "fp16": "use precision=bf16, on GPUs that have it, or precision=fp32",
            "bf16": "use precision=fp32",
            "fp32": "the checkpoint is damaged, or its training diverged: use another one",
        }
        precision = self.formats.precision
        raise UserError(f"the UNet returned values that are not finite in precision={precision}: {remedies[precision]}")

    def _run(self, *inputs: Any) -> Tensor:
        try:
            return self.unet(*inputs)
        except Exception as error:
            if not _is_of_compiler(error):
                raise
            release_layers(self.unet)
            cause = getattr(error, "inner_exception", error)  # the compiler's error, wrapped by dynamo
            reason = " ".join(f"{type(cause).__name__}: {cause}".split())
            logger.warning("compile=true: the UNet cannot be compiled (%s); it runs without", reason[:200])
        return self.unet(*inputs)


class FrameCoder:
    """The autoencoder in the formats of an edit. It takes few frames at a time where they are large."""

    def __init__(self, autoencoder: Autoencoder, formats: Formats, device: torch.device) -> None:
        self.autoencoder = autoencoder
        self.formats = formats
        self.device = device

    def encode(self, frames: np.ndarray) -> Tensor:
        """Encodes uint8 frames (m, h, w, 3) to their scaled mean latents (m, c, h/f, w/f)."""
        parts = self._parts(torch.from_numpy(frames).to(self.device), *frames.shape[1:3])
        with self.formats.estimators(self.device):
            moments = [self.autoencoder.encode_moments(to_signed(part), most=PIXELS) for part in parts]
        return torch.cat(moments).chunk(2, dim=1)[0] * self.autoencoder.scale

    def encode_structure(self, structure: Tensor) -> Tensor:
        """Encodes structure (m, h, w), or (m, p, h, w), in [0, 1] to scaled mean latents (m, c, h/f, w/f)."""
        structure, several = structure.to(self.device), structure.ndim == 4
        with self.formats.estimators(self.device):
            parts = self._parts(structure, *structure.shape[-2:])
            return torch.cat([self.autoencoder.encode_structure(part, most=PIXELS, several=several) for part in parts])

    def decode(self, latents: Tensor) -> np.ndarray:
        """Decodes scaled latents (m, c, h/f, w/f) to uint8 frames (m, h, w, 3). Raises UserError if it cannot."""
        factor = self.autoencoder.factor
        height, width = (side * factor for side in latents.shape[-2:])
        with self.formats.estimators(self.device):
            parts = [self._decode(part) for part in self._parts(latents, height, width)]
        return np.concatenate(parts)

    def _decode(self, latents: Tensor) -> np.ndarray:
        frames = self.autoencoder.decode(latents, most=PIXELS)
        if frames.isnan().any():
            raise UserError(
                "the autoencoder returned frames that are not finite: use precision=fp32, or another checkpoint"
            )
        return to_pixels(frames).cpu().numpy()

    def _parts(self, values: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
        return values.split(max(1, PIXELS // (height * width)))
