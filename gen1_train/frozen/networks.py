"""The frozen networks together: they compute everything that training reads from the frames of clips."""

from collections.abc import Mapping
from typing import Any, Self, TypeVar, get_type_hints

import numpy as np
import torch

from gen1_train.batch import STRUCTURE_MAX, SampleError
from gen1_train.diffusion.planes import kinds_of
from gen1_train.diffusion.structure import PIXELS, degrade
from gen1_train.errors import UserError
from gen1_train.frozen.autoencoder import Autoencoder, AutoencoderConfig, to_signed
from gen1_train.frozen.clip import ClipConfig, ClipEncoder
from gen1_train.frozen.loading import check_fingerprint
from gen1_train.frozen.structure.kinds import Span, StructureEstimator, build_structure, check_kind, structure_class
from gen1_train.system.device import autocast, resolve_precision

Config = TypeVar("Config")


class Networks:
    """Structure estimator, CLIP and autoencoder on one device.

    Clips are processed in batches of k with n frames each: uint8 (k, n, h, w, 3). On a CPU k is 1, because the rounding
    of sums, and thus the bytes of a sample, would depend on the other clips. Threads may call different networks
    concurrently.
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
        """`kind` is that of the structure; `precision` as in `resolve_precision`, which raises UserError."""
        self.autoencoder = autoencoder
        self.kind = kind
        self.structure = structure
        self.clip = clip
        self.device = device
        self.precision = resolve_precision(device, precision)

    @classmethod
    def recorded(cls, estimators: Mapping[str, Any], source: str, device: torch.device) -> Self:
        """Loads the networks that a manifest or a checkpoint (`source`, for messages) records for its data.

        They are taken from this machine, see `frozen.plain`. Raises UserError if one is not recorded, does not exist,
        or was changed.
        """
        named = all(isinstance(estimators.get(name), Mapping) for name in ("autoencoder", "structure", "clip"))
        if not named or not isinstance(estimators["structure"].get("kind"), str):
            raise UserError(
                f"{source} does not name the autoencoder, the CLIP model and the kind of structure that it was trained "
                "with: give a checkpoint that was trained with this version"
            )
        product = f"the data of {source}"
        autoencoder = recorded_autoencoder(estimators["autoencoder"], product, source).to(device)
        kind = estimators["structure"]["kind"]
        settings = recorded_structure(kind, estimators["structure"], source)
        structure = build_structure(kind, settings, device, recorded=True)
        clip = ClipEncoder(recorded_config(ClipConfig, estimators["clip"], source), device, recorded=True)
        check_recorded(f"{kind} estimator", structure, estimators["structure"], product)
        check_recorded("CLIP model", clip, estimators["clip"], product)
        return cls(autoencoder, kind, structure, clip, device)

    @torch.no_grad()
    def maps(self, clips: np.ndarray) -> list[tuple[np.ndarray, Span] | SampleError]:
        """(k, n, h, w, 3) -> for each clip its structure, uint16 (n, h, w), and the range that is mapped to 0..65535.

        The structure of several planes is (n, p, h, w), with a range of each.
        The result of a clip whose structure is not finite is a SampleError.
        """
        with autocast(self.device, self.precision):
            raw = self.structure(torch.from_numpy(clips.reshape(-1, *clips.shape[2:])))
        results: list[tuple[np.ndarray, Span] | SampleError] = []
        for clip in raw.view(*clips.shape[:2], *raw.shape[1:]):
            relative, extent = self.structure.normalise(clip)
            if np.isfinite(extent).all():
                results.append(((relative * STRUCTURE_MAX).round().numpy().astype(np.uint16), extent))
            else:
                problem = f"the {self.kind} estimator returned values that are not finite"
                results.append(SampleError(problem, "not_finite"))
        return results

    @torch.no_grad()
    def structure_latents(self, structure: np.ndarray, level: int = 0, degradation: str = PIXELS) -> np.ndarray:
        """Stored structure, uint16 (n, h, w) or (n, p, h, w), at t_s = level -> latents, float16 (n, c, h/f, w/f).

        The latents are computed from the 16-bit values, as training does that degrades and encodes in every step.
        """
        stored = (torch.from_numpy(structure.astype(np.float32)) / STRUCTURE_MAX).to(self.device)
        with autocast(self.device, "fp32"):  # half precision would blur away the 16 bits
            degraded = degrade(stored[None], [level], degradation)[0]
        with autocast(self.device, self.precision):
            return _half(self.autoencoder.encode_structure(degraded, several=degraded.ndim == 4))

    @torch.no_grad()
    def moments(self, clips: np.ndarray) -> np.ndarray:
        """(k, n, h, w, 3) -> moments of the latents, float16 (k, n, 2c, h/f, w/f)."""
        with autocast(self.device, self.precision):
            return _half(self.autoencoder.encode_moments(to_signed(torch.from_numpy(clips)).to(self.device)))

    @torch.no_grad()
    def image_embeddings(self, clips: np.ndarray) -> np.ndarray:
        """(k, n, h, w, 3) -> CLIP embeddings, float16 (k, n, d)."""
        with autocast(self.device, self.precision):
            flat = _half(self.clip.images(clips.reshape(-1, *clips.shape[2:])))
        return flat.reshape(*clips.shape[:2], -1)

    @torch.no_grad()
    def text_embedding(self, caption: str) -> np.ndarray:
        """Returns the CLIP embedding of a caption, float16 (d,)."""
        with autocast(self.device, self.precision):
            return _half(self.clip.texts([caption])[0])


def recorded_autoencoder(entry: Mapping[str, Any], product: str, source: str) -> Autoencoder:
    """Loads the autoencoder that `source` records for `product`. Raises UserError if it is missing or has changed."""
    autoencoder = Autoencoder(recorded_config(AutoencoderConfig, entry, source), recorded=True)
    check_recorded("autoencoder", autoencoder, entry, product)
    return autoencoder


def check_recorded(
    name: str, network: Autoencoder | StructureEstimator | ClipEncoder, entry: Mapping[str, Any], product: str
) -> None:
    """Raises UserError if a network is not the recorded one, see `check_fingerprint`."""
    check_fingerprint(name, network.fingerprint, entry, product, network.architecture)


def recorded_structure(kind: str, entry: Mapping[str, Any], source: str) -> Any:
    """Builds the config of a structure from its recorded values, see `structure_config`. Raises UserError."""
    kinds = kinds_of(kind)
    if len(kinds) == 1:
        return recorded_config(structure_class(kind), entry, source)
    check_kind(f"{source}: structure", kind)
    values = entry.get("config")
    parts = values if isinstance(values, Mapping) else {}
    return {
        part: recorded_config(structure_class(part), {**entry, "config": parts.get(part)}, source) for part in kinds
    }


def recorded_config(kind: type[Config], entry: Mapping[str, Any], source: str) -> Config:
    """Builds a network's config from its recorded values. Raises UserError for a value that it cannot have."""
    types = {name: (float, int) if hint is float else hint for name, hint in get_type_hints(kind).items()}
    values = entry.get("config")
    if not isinstance(entry.get("fingerprint"), str) or not isinstance(values, Mapping):
        raise UserError(f"{source} does not record the config and the fingerprint of each network: use another one")
    for name, value in values.items():
        if name not in types or not isinstance(value, types[name]) or isinstance(value, bool):
            raise UserError(f"{source} records {name}={value!r} in {kind.__name__}, which has no such value")
    return kind(**values)


def _half(values: torch.Tensor) -> np.ndarray:
    return values.float().cpu().numpy().astype(np.float16)
