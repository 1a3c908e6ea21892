"""Editing: the structure of a video, the content of a prompt, one sampler over windows of frames."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gen1_train import keyed
from gen1_train.diffusion.editing import sample_clip
from gen1_train.diffusion.guidance import GuidanceConfig
from gen1_train.diffusion.schedule import NoiseConfig, NoiseSchedule
from gen1_train.diffusion.structure import MAX_LEVEL, degrade
from gen1_train.errors import UserError
from gen1_train.estimators.clip import ClipConfig, ClipEncoder
from gen1_train.estimators.structure import StructureEstimator, build_structure, structure_config
from gen1_train.frozen import check_fingerprint, pick_device
from gen1_train.model.autoencoder import Autoencoder, AutoencoderConfig, to_pixels
from gen1_train.model.pretrained import load_weights
from gen1_train.model.unet import SpatioTemporalUNet
from gen1_train.training.checkpoint import INFO, Checkpoint, find_checkpoint
from gen1_train.training.stages import read_recorded


@dataclass
class SamplingConfig:
    steps: int = 50  # of DDIM; ours
    t_s: int = 0  # rounds of blur on the structure, 0..7: higher is freer
    seed: int = 0  # of the noise: same seed, same frames
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)


class Editor:
    """A trained model with the estimators that its data was made by. Made by `from_checkpoint`."""

    def __init__(
        self,
        unet: SpatioTemporalUNet,
        noise: NoiseConfig,
        autoencoder: Autoencoder,
        structure_estimator: StructureEstimator,
        clip: ClipEncoder,
        device: torch.device,
    ) -> None:
        self.unet, self.autoencoder, self.clip = unet, autoencoder, clip
        self.structure_estimator = structure_estimator
        self.schedule = NoiseSchedule(noise, device)
        self.device = device

    @classmethod
    def from_checkpoint(cls, path: str | Path, device: str = "auto", weights: str = "ema") -> "Editor":
        """Rebuilds model and estimators from a checkpoint's own config (or from the newest checkpoint of a run folder).

        `weights`: see Checkpoint.weights_file; by default the average. Raises UserError when it is not of stage 4 or 5,
        is damaged, or names an estimator that is not there or changed.
        """
        checkpoint = find_checkpoint(Path(path))
        where = pick_device(device)
        recorded = read_recorded(checkpoint)
        if not recorded.stage.structure:
            raise UserError(
                f"{checkpoint.path} is of stage {checkpoint.info.stage}, which has not learned structure yet: give a "
                "checkpoint of stage 4 or 5"
            )
        unet = SpatioTemporalUNet(recorded.unet)
        load_weights(unet, checkpoint.weights(weights), str(checkpoint.path), may_be_new=())
        autoencoder, structure, clip = load_estimators(checkpoint, where)
        return cls(unet.to(where).eval().requires_grad_(False), recorded.noise, autoencoder, structure, clip, where)

    @property
    def window(self) -> int:
        """Frames that the model takes at once."""
        return self.unet.config.max_frames

    def content_of_image(self, image: np.ndarray) -> Tensor:
        """The content of an example image, uint8 (h, w, 3) -> CLIP image embedding (d,)."""
        return self.clip.images(image[None])[0]

    def structure(self, frames: np.ndarray, t_s: int) -> Tensor:
        """uint8 frames (n, h, w, 3) -> what the model is shown of their structure: (n, h, w) in [0, 1].

        Normalised over all frames given, as one clip.
        """
        structure, _ = self.structure_estimator.normalise(self.structure_estimator(torch.from_numpy(frames)))
        return degrade(structure[None], torch.tensor([t_s]))[0]

    @torch.no_grad()
    def edit(
        self,
        structure: Tensor,
        content: Tensor,
        config: SamplingConfig,
        on_step: Callable[[], object] = lambda: None,
    ) -> np.ndarray:
        """Structure (n, h, w) as `structure()` gives it, content (d,) -> uint8 frames (n, h, w, 3).

        More frames than the model takes at once go through window by window; all windows start from one noise.
        """
        check(config)
        encoded = self.autoencoder.encode_structure(structure.to(self.device))  # n c h w
        n = len(encoded)
        noise = keyed.normal((min(n, self.window), *encoded.shape[1:]), config.seed, "edit").to(self.device)
        latents = torch.empty_like(encoded)
        for start in window_starts(n, self.window):
            part = slice(start, start + self.window)
            latents[part] = sample_clip(
                *(self.unet, noise[: len(encoded[part])], encoded[part], config.t_s, content.to(self.device)),
                *(self.schedule, config.steps, config.guidance, on_step),
            )
        return to_pixels(self.autoencoder.decode(latents)).cpu().numpy()


def load_estimators(
    checkpoint: Checkpoint, device: torch.device
) -> tuple[Autoencoder, StructureEstimator, ClipEncoder]:
    """The estimators that the checkpoint's data was made by. Raises UserError when one is not there, or was changed."""
    made_by = checkpoint.info.estimators
    if not {"autoencoder", "structure", "clip"} <= made_by.keys() or "kind" not in made_by["structure"]:
        raise UserError(
            f"{checkpoint.path / INFO} does not name the autoencoder, the CLIP model and the kind of structure that it "
            "was trained with: give a checkpoint that this version has trained"
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
        check_fingerprint(what, found.fingerprint, made_by[name], f"the data of {checkpoint.path}")
    return autoencoder, structure, clip


def window_starts(frames: int, window: int) -> list[int]:
    """Where the windows over a video begin; the last one is moved back so that it is full."""
    starts = list(range(0, max(1, frames - window + 1), window))
    if starts[-1] + window < frames:
        starts.append(frames - window)
    return starts


def check(config: SamplingConfig) -> None:
    """Raises UserError for a dial that is out of its range."""
    if not 0 <= config.t_s <= MAX_LEVEL:
        raise UserError(f"t_s={config.t_s} is out of range: give 0 (the input's structure) to {MAX_LEVEL} (freest)")
    if not 1 <= config.steps <= 1000:
        raise UserError(f"steps={config.steps} is out of range: give 1 to 1000")
    for name, value in vars(config.guidance).items():
        if not 0 <= value <= 100:
            raise UserError(f"{name}={value} is out of range: give 0 to 100")
