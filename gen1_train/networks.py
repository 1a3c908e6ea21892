"""The frozen networks at work: frames of some clips become everything that training reads of them."""

import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch

from gen1_train.batch import STRUCTURE_MAX, SampleError
from gen1_train.errors import UserError
from gen1_train.estimators.clip import ClipConfig, ClipEncoder
from gen1_train.estimators.structure import StructureEstimator, build_structure, structure_config
from gen1_train.frozen import autocast, check_fingerprint, resolve_precision
from gen1_train.model.autoencoder import Autoencoder, AutoencoderConfig, to_signed


class Networks:
    """Structure estimator, CLIP and autoencoder, on one device.

    Clips go through together, k of n frames each: uint8 (k, n, h, w, 3). On a CPU k is 1: the sums of a network, and so
    the bytes of a sample, would otherwise depend on its neighbours. Several threads may call at once, one a network.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        kind: str,
        structure: StructureEstimator,
        clip: ClipEncoder,
        device: torch.device,
        precision: str = "auto",
    ) -> None:
        """`kind` of the structure; `precision`: see frozen.resolve_precision. Raises UserError for an unknown one."""
        self.autoencoder, self.kind, self.structure, self.clip = autoencoder, kind, structure, clip
        self.device, self.precision = device, resolve_precision(device, precision)

    @classmethod
    def recorded(cls, made_by: Mapping[str, Any], where: str, device: torch.device) -> Self:
        """Those that a manifest or a checkpoint names as the makers of its data; `where` that stands, for errors.

        Raises UserError when one is not named, is not there, or was changed.
        """
        if not {"autoencoder", "structure", "clip"} <= made_by.keys() or "kind" not in made_by["structure"]:
            raise UserError(
                f"{where} does not name the autoencoder, the CLIP model and the kind of structure that it was trained "
                "with: give a checkpoint that this version has trained"
            )
        kind = made_by["structure"]["kind"]
        autoencoder = Autoencoder(AutoencoderConfig(**made_by["autoencoder"]["config"])).to(device)
        structure = build_structure(kind, structure_config(kind, made_by["structure"]["config"]), device)
        clip = ClipEncoder(ClipConfig(**made_by["clip"]["config"]), device)
        for what, found, name in (
            ("autoencoder", autoencoder, "autoencoder"),
            (f"{kind} estimator", structure, "structure"),
            ("CLIP model", clip, "clip"),
        ):
            check_fingerprint(what, found.fingerprint, made_by[name], f"the data of {where}")
        return cls(autoencoder, kind, structure, clip, device)

    @torch.no_grad()
    def maps(self, clips: np.ndarray) -> list[tuple[np.ndarray, tuple[float, float]] | SampleError]:
        """(k, n, h, w, 3) -> of each clip its structure, uint16 (n, h, w), and the range that was spread over 0..65535.

        A clip whose structure is not finite has a SampleError in its place.
        """
        with autocast(self.device, self.precision):
            raw = self.structure(torch.from_numpy(clips.reshape(-1, *clips.shape[2:])))
        found: list[tuple[np.ndarray, tuple[float, float]] | SampleError] = []
        for clip in raw.view(*clips.shape[:2], *raw.shape[1:]):
            relative, extent = self.structure.normalise(clip)
            if all(map(math.isfinite, extent)):
                found.append(((relative * STRUCTURE_MAX).round().numpy().astype(np.uint16), extent))
            else:
                problem = f"the {self.kind} estimator gave values that are not finite"
                found.append(SampleError(problem, "not_finite"))
        return found

    @torch.no_grad()
    def structure_latents(self, structure: np.ndarray) -> np.ndarray:
        """Structure as it is stored, uint16 (n, h, w) -> float16 (n, c, h/f, w/f).

        Made from the 16 bits, so that what training encodes anew at t_s > 0 and what it reads at t_s = 0 come from the
        same numbers.
        """
        stored = torch.from_numpy(structure.astype(np.float32)) / STRUCTURE_MAX
        with autocast(self.device, self.precision):
            return _half(self.autoencoder.encode_structure(stored.to(self.device)))

    @torch.no_grad()
    def moments(self, clips: np.ndarray) -> np.ndarray:
        """(k, n, h, w, 3) -> float16 (k, n, 2c, h/f, w/f)."""
        with autocast(self.device, self.precision):
            return _half(self.autoencoder.encode_moments(to_signed(torch.from_numpy(clips)).to(self.device)))

    @torch.no_grad()
    def image_embeddings(self, clips: np.ndarray) -> np.ndarray:
        """(k, n, h, w, 3) -> float16 (k, n, d)."""
        with autocast(self.device, self.precision):
            flat = _half(self.clip.images(clips.reshape(-1, *clips.shape[2:])))
        return flat.reshape(*clips.shape[:2], -1)

    @torch.no_grad()
    def text_embedding(self, caption: str) -> np.ndarray:
        """float16 (d,)."""
        with autocast(self.device, self.precision):
            return _half(self.clip.texts([caption])[0])


def _half(values: torch.Tensor) -> np.ndarray:
    return values.float().cpu().numpy().astype(np.float16)
