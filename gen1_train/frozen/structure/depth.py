"""Structure: monocular depth (paper section 3.3; it uses MiDaS DPT-Large), with transformers' classes."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gen1_train.errors import UserError, check_choice, check_positive
from gen1_train.frozen.loading import architecture, fingerprint, finite, load_frozen
from gen1_train.frozen.structure.depth_networks import FAMILIES, SUPPORTED, load_network

NORMALISATION = "min-max over the clip, inverse depth, 1 is nearest"  # ours; normalizing each frame would flicker
LOWER_BOUND, MINIMAL = "lower_bound", "minimal"  # MiDaS's names
RESIZES = (LOWER_BOUND, MINIMAL)


@dataclass
class DepthConfig:
    path: str = "Intel/dpt-large"  # DPT or Depth Anything as transformers saves it: a folder, in a package, or hub id
    size: int | None = None  # pixels of a side, see resize; null: as the network learned, 384 for DPT-Large
    multiple: int | None = None  # both sides are rounded to a multiple of this; null: 32 for DPT, 14 for Depth Anything
    chunk: int = 8  # frames per call of the network; bounds memory, changes values by rounding only
    # records without it are of versions that had lower_bound alone
    resize: str = LOWER_BOUND  # the side of that size: lower_bound (the shorter), minimal (MiDaS's: the less resized)

    def check(self) -> None:
        """Raises UserError for a setting that is out of its range."""
        check_positive(depth__size=self.size, depth__multiple=self.multiple, depth__chunk=self.chunk)
        check_choice("recipe.depth.resize", self.resize, RESIZES)


class DepthEstimator:
    """Estimates relative inverse depth, at the frame's own aspect.

    With `minimal`, frames of 448x256 go through DPT-Large at 384x224, as in MiDaS's own code and in transformers'
    processor with `keep_aspect_ratio`. With `lower_bound`, which is MiDaS's name for it, at 672x384: three times the
    tokens, larger than the network learned. (By default, transformers' processor distorts every frame to 384x384.)
    """

    normalisation = NORMALISATION
    subject: str | None = None

    def __init__(self, config: DepthConfig, device: str | torch.device = "cpu", recorded: bool = False) -> None:
        """Raises UserError if the network cannot be loaded, or is of a kind whose depth would be wrong.

        `recorded`: a file names it, not the user, see `frozen.plain`.
        """
        from transformers.utils import logging

        logging.disable_progress_bar()  # it would break up our own progress bar
        config.check()
        self.config = config
        self.device = torch.device(device)
        self.network: Any = load_frozen(
            "depth estimator",
            config.path,
            f"a folder in transformers' format (config.json, model.safetensors) or a hub id; supported: {SUPPORTED}",
            lambda: load_network(config.path, recorded),
        ).to(self.device)
        self.family = FAMILIES[self.network.config.model_type]
        self.size = config.size or self.family.trained_size(self.network)
        self.multiple = config.multiple or self.family.multiple
        patch = self.family.patch_size(self.network)
        if self.multiple % patch:
            raise UserError(
                f"depth.multiple={self.multiple} is not a multiple of {patch} pixels, the size of a patch of "
                f"depth.path={config.path}: give {patch * max(1, round(self.multiple / patch))}"
            )
        deviation = torch.tensor(self.family.deviation, device=self.device).view(3, 1, 1)
        self._scale = 255 * deviation
        self._shift = torch.tensor(self.family.mean, device=self.device).view(3, 1, 1) / deviation

    @property
    def fingerprint(self) -> str:
        """The hash of weights, sizes and normalizations, see `fingerprint`.

        What versions knew that had DPT and `lower_bound` alone is hashed as they did.
        """
        other: tuple[object, ...] = () if self.config.resize == LOWER_BOUND else (self.config.resize,)
        if self.family is not FAMILIES["dpt"]:
            other = (*other, self.family.mean, self.family.deviation)
        return fingerprint(self.network, self.size, self.multiple, NORMALISATION, *other)

    @property
    def architecture(self) -> str:
        """The hash of the settings that its weights do not show, see `architecture`."""
        return architecture(**self.family.architecture(self.network.config))

    def record(self) -> dict[str, Any]:
        """The settings for a manifest, with the sizes that were used.

        `lower_bound` is left out, as in older ones, so that equal networks stay equal.
        """
        settings = {**asdict(self.config), "size": self.size, "multiple": self.multiple}
        return {name: value for name, value in settings.items() if (name, value) != ("resize", LOWER_BOUND)}

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 frames (n, h, w, 3) -> inverse depth (n, h, w), float32, unbounded; larger is nearer."""
        return torch.cat([self._part(part.to(self.device)).cpu() for part in frames.split(self.config.chunk)])

    def normalise(self, raw: Tensor, span: tuple[float, float] | None = None) -> tuple[Tensor, tuple[float, float]]:
        """Normalizes the inverse depth (n, h, w) of one clip, see `normalise_clip`."""
        return normalise_clip(raw, span)

    def _part(self, frames: Tensor) -> Tensor:
        height, width = frames.shape[1:3]
        size = network_size(height, width, self.size, self.multiple, self.config.resize)
        pixels = frames.movedim(-1, 1).float() / self._scale - self._shift
        pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
        depth = finite(lambda: self.family.inverse_depth(self.network, pixels), self.device).unsqueeze(1)
        return F.interpolate(depth, size=(height, width), mode="bicubic", align_corners=False).squeeze(1)


def network_size(height: int, width: int, size: int, multiple: int, resize: str) -> tuple[int, int]:
    """Returns height and width of the network's input for a frame, by one of MiDaS's rules, see `DepthConfig`.

    Both are rounded to multiples, at least one.
    """
    scales = size / height, size / width
    scale = max(scales) if resize == LOWER_BOUND else min(scales, key=lambda each: abs(1 - each))
    return (
        max(multiple, round(height * scale / multiple) * multiple),
        max(multiple, round(width * scale / multiple) * multiple),
    )


def normalise_clip(
    inverse_depth: Tensor, span: tuple[float, float] | None = None
) -> tuple[Tensor, tuple[float, float]]:
    """Normalizes the inverse depth (n, h, w) of one clip to [0, 1]; returns it with its range (or `span`).

    A flat clip becomes all 0.
    """
    low, high = span or (float(inverse_depth.min()), float(inverse_depth.max()))
    return (inverse_depth - low) / max(high - low, 1e-6), (low, high)
