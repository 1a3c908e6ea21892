"""Structure: monocular depth by MiDaS DPT (paper section 3.2.1; DPT-Large there), through transformers' classes."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen1_train.frozen import complete, fingerprint, finite, load_frozen

NORMALISATION = "min-max over the clip, inverse depth, 1 is nearest"  # ours; per frame would flicker

# transformers makes this layer and never calls it: the first fusion has nothing to fuse with (transformers #28292)
UNUSED = "neck.fusion_stage.layers.0.residual_layer1."


@dataclass
class DepthConfig:
    path: str = "Intel/dpt-large"  # a folder in transformers' DPT format, from here or in a package; or a hub id
    size: int = 384  # pixels of the shorter side at which depth is estimated (MiDaS's own for DPT-Large)
    multiple: int = 32  # both sides are rounded to a multiple of this (MiDaS's own)
    chunk: int = 8  # frames that go through the network at a time; bounds memory, changes no value


class DepthEstimator:
    """uint8 frames -> relative inverse depth, at MiDaS's aspect-keeping size (transformers' processor squashes)."""

    normalisation = NORMALISATION

    def __init__(self, config: DepthConfig, device: str | torch.device = "cpu") -> None:
        from transformers import DPTForDepthEstimation
        from transformers.utils import logging

        logging.disable_progress_bar()  # it would break up the progress line of the run
        self.config = config
        self.device = torch.device(device)
        self.network: Any = load_frozen(
            "depth estimator",
            config.path,
            "a folder in transformers' DPT format (config.json, model.safetensors) or a hub id",
            lambda path: complete(
                DPTForDepthEstimation.from_pretrained(path, use_safetensors=True, output_loading_info=True),
                unused=UNUSED,
            ),
        ).to(self.device)
        # random where the checkpoint lacks it (Intel/dpt-large does), which would give every process a fingerprint
        self.network.neck.fusion_stage.layers[0].residual_layer1 = nn.Identity()

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.network, self.config.size, self.config.multiple, NORMALISATION)

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 frames (n, h, w, 3) -> inverse depth (n, h, w), float32, unbounded; larger is nearer."""
        return torch.cat([self._part(part.to(self.device)).cpu() for part in frames.split(self.config.chunk)])

    def normalise(self, raw: Tensor, span: tuple[float, float] | None = None) -> tuple[Tensor, tuple[float, float]]:
        """Inverse depth (n, h, w) of one clip -> ([0, 1], the range it had), see normalise_clip."""
        return normalise_clip(raw, span)

    def _part(self, frames: Tensor) -> Tensor:
        height, width = frames.shape[1:3]
        pixels = frames.movedim(-1, 1).float() / 127.5 - 1  # DPT's mean 0.5, std 0.5
        size = self._network_size(height, width)
        pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
        depth = finite(lambda: dpt_inverse_depth(self.network, pixels), self.device).unsqueeze(1)
        return F.interpolate(depth, size=(height, width), mode="bicubic", align_corners=False).squeeze(1)

    def _network_size(self, height: int, width: int) -> tuple[int, int]:
        scale = self.config.size / min(height, width)
        multiple = self.config.multiple
        return (
            max(multiple, round(height * scale / multiple) * multiple),
            max(multiple, round(width * scale / multiple) * multiple),
        )


def dpt_inverse_depth(network: Any, pixels: Tensor) -> Tensor:
    """Normalised pixels (n, 3, h, w) -> inverse depth (n, h, w) by transformers' DPT at any aspect.

    DPTForDepthEstimation.forward takes the token grid to be square; its parts, called one by one with the true grid,
    do not.
    """
    config = network.config
    hidden = network.dpt(pixels, output_hidden_states=True).hidden_states[1:]
    taken = [state for i, state in enumerate(hidden) if i in config.backbone_out_indices]
    rows, columns = (size // config.patch_size for size in pixels.shape[-2:])
    return network.head(network.neck(taken, rows, columns))


def normalise_clip(
    inverse_depth: Tensor, span: tuple[float, float] | None = None
) -> tuple[Tensor, tuple[float, float]]:
    """Inverse depth (n, h, w) of one clip -> ([0, 1], the range it had, or `span`). A flat clip becomes all 0."""
    low, high = span or (float(inverse_depth.min()), float(inverse_depth.max()))
    return (inverse_depth - low) / max(high - low, 1e-6), (low, high)
