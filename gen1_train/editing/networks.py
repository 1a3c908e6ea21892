"""The networks of an edit: how they are opened, and how UNet and autoencoder run in their number formats."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gen1_train.editing.precision import Formats
from gen1_train.errors import UserError
from gen1_train.frozen.autoencoder import Autoencoder, to_pixels, to_signed
from gen1_train.frozen.clip import ClipEncoder
from gen1_train.frozen.networks import Networks
from gen1_train.frozen.structure.kinds import StructureEstimator
from gen1_train.model.compiling import release_layers
from gen1_train.model.unet import MEMORY_FORMAT, SpatioTemporalUNet
from gen1_train.system.device import autocast
from gen1_train.training.checkpoints.checkpoint import Checkpoint
from gen1_train.training.prior.checkpoint import TrainedPrior, default_prior, read_prior
from gen1_train.training.stages import Recorded, read_recorded

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


def open_prior(checkpoint: Checkpoint, path: str | Path | None, device: torch.device) -> TrainedPrior | None:
    """Opens the prior at `path`, by default that of `default_prior`; None if there is none.

    Raises UserError when it is not a prior, or was trained on embeddings of another CLIP.
    """
    path = path or default_prior(checkpoint)
    if path is None:
        return None
    prior = read_prior(Path(path), device)
    clip = checkpoint.info.estimators["clip"]
    if clip["fingerprint"] != prior.clip["fingerprint"]:
        raise UserError(
            f"the prior {path} was trained with the CLIP {prior.clip['config']}, and {checkpoint.path} with "
            f"{clip['config']} (their fingerprints differ): give prior= of one that was trained on the same data"
        )
    return prior


def read_editable(checkpoint: Checkpoint, structure: bool) -> Recorded:
    """Reads a checkpoint's config. Raises UserError if its stage is too early, see `Gen1Editor.from_pretrained`."""
    recorded = read_recorded(checkpoint)
    if not recorded.stage.structure and (structure or not recorded.stage.temporal):
        raise UserError(
            f"{checkpoint.path} is of stage {checkpoint.info.stage}, which has not learned structure yet: give a "
            f"checkpoint of stage {'4 or 5' if structure else '3, 4 or 5'}"
        )
    return recorded


def load_estimators(
    checkpoint: Checkpoint, device: torch.device
) -> tuple[Autoencoder, StructureEstimator, ClipEncoder]:
    """Loads the estimators that made the checkpoint's data. Raises UserError when one is missing or has changed."""
    networks = Networks.recorded(checkpoint.info.estimators, str(checkpoint.path), device)
    return networks.autoencoder, networks.structure, networks.clip
