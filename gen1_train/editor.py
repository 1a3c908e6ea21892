"""Editing in Python: the structure of a video, the content of a prompt.

editor = Gen1Editor.from_pretrained("runs/gen1/stage5")
edited = editor(frames, prompt="a watercolour of a fox", omega_t=1.2)    # uint8 (n, h, w, 3), in and out
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from gen1_train.diffusion.editing import SamplingConfig, Scene, sample_video, shared_noise
from gen1_train.diffusion.guidance import GuidanceConfig
from gen1_train.diffusion.sampler import SOLVERS
from gen1_train.diffusion.schedule import NoiseConfig, NoiseSchedule
from gen1_train.diffusion.structure import MAX_LEVEL, degrade
from gen1_train.errors import UserError
from gen1_train.estimators.clip import ClipEncoder
from gen1_train.estimators.structure import Span, StructureEstimator
from gen1_train.frozen import check_fingerprint, pick_device
from gen1_train.model.autoencoder import Autoencoder, to_pixels, to_signed
from gen1_train.model.pretrained import load_weights
from gen1_train.model.unet import SpatioTemporalUNet
from gen1_train.networks import Networks
from gen1_train.spool import Spool
from gen1_train.training.checkpoint import Checkpoint, find_checkpoint, holds_checkpoint
from gen1_train.training.prior_checkpoint import TrainedPrior, read_prior
from gen1_train.training.stages import read_recorded

CHUNK = 16  # frames that are estimated, encoded or decoded at a time: bounds memory, changes no value


class Frames(Protocol):
    """Pictures that are read by slices: a numpy array, or a Spool on a disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


class Gen1Editor:
    """A trained model with the estimators that its data was made by. Made by `from_pretrained`.

    Calling it edits frames that are in memory. `scene`, `sample` and `pictures` are its three steps, for videos that
    are not: of each frame they hold the latents alone.
    """

    def __init__(
        self,
        unet: SpatioTemporalUNet,
        noise: NoiseConfig,
        autoencoder: Autoencoder,
        structure_estimator: StructureEstimator,
        clip: ClipEncoder,
        device: torch.device,
        buckets: Sequence[str] = (),
        prior: TrainedPrior | None = None,
    ) -> None:
        self.unet, self.autoencoder, self.clip = unet, autoencoder, clip
        self.structure_estimator = structure_estimator
        self.schedule = NoiseSchedule(noise, device)
        self.device = device
        self.buckets = list(buckets)  # WIDTHxHEIGHT, as trained
        self.prior = prior

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        device: str = "auto",
        weights: str = "ema",
        prior: str | Path | None = None,
        structure: bool = True,
    ) -> "Gen1Editor":
        """Rebuilds model and estimators from a checkpoint's own config (or from the newest checkpoint of a run folder).

        Either may lie in an installed package, see find_checkpoint. `weights`: see Checkpoint.weights_file; by default
        the average. `prior`: a checkpoint or run folder of stage=prior; by default see prior_beside. `structure=False`
        also takes a checkpoint of stage 3, which knows none: its "edits" are videos of the content alone, for
        comparing stages. Raises UserError when the stage is too early, the checkpoint is damaged, or names an
        estimator that is not there or changed.
        """
        found = find_checkpoint(Path(checkpoint))
        where = pick_device(device)
        recorded = read_recorded(found)
        if not recorded.stage.structure and (structure or not recorded.stage.temporal):
            raise UserError(
                f"{found.path} is of stage {found.info.stage}, which has not learned structure yet: give a "
                f"checkpoint of stage {'4 or 5' if structure else '3, 4 or 5'}"
            )
        unet = SpatioTemporalUNet(recorded.unet)
        load_weights(unet, found.weights(weights), str(found.path), may_be_new=())
        autoencoder, estimator, clip = load_estimators(found, where)
        return cls(
            *(unet.to(where).eval().requires_grad_(False), recorded.noise, autoencoder, estimator, clip, where),
            buckets=found.info.buckets,
            prior=open_prior(found, prior, where),
        )

    @property
    def window(self) -> int:
        """Frames that the model takes at once."""
        return self.unet.config.max_frames

    def __call__(
        self,
        frames: np.ndarray,
        *,
        prompt: str | Sequence[str] | None = None,
        image: np.ndarray | None = None,
        image_share: float = 0.5,
        negative_prompt: str | None = None,
        omega: float = 7.5,
        omega_t: float = 1.0,
        t_s: int = 0,
        steps: int = 50,
        solver: str = "ddim",
        seed: int = 0,
        mask: np.ndarray | None = None,
        init_strength: float = 1.0,
        temporal: bool = True,
        batch: int = 4,
        on_step: Callable[[], object] = lambda: None,
    ) -> np.ndarray:
        """Edits frames uint8 (n, h, w, 3) at the size of a bucket: uint8 (n, h, w, 3); of k prompts (k, n, h, w, 3).

        `prompt`, `image` (uint8 of any size) or both give the content; `mask` (n, h, w) in [0, 1] is 1 where the video
        is edited and keeps the input elsewhere; the others are those of SamplingConfig and `content`. `on_step` is
        called once a step of the sampler. Raises UserError for settings that make no sense.
        """
        config = SamplingConfig(
            steps, solver, t_s, seed, init_strength, temporal, batch=batch, guidance=GuidanceConfig(omega, omega_t)
        )
        check(config)
        prompts = [prompt] if prompt is None or isinstance(prompt, str) else list(prompt)
        contents = torch.stack([self.content(text, image, image_share, seed) for text in prompts])
        negative = self.content(negative_prompt, seed=seed) if negative_prompt is not None else None
        with self.structure(frames) as structure:
            scene = self.scene(frames, structure, config, mask)
        latents = self.sample(scene, contents, config, negative, on_step)
        edited = np.stack([np.concatenate(list(self.pictures(video, frames, mask))) for video in latents])
        return edited[0] if prompt is None or isinstance(prompt, str) else edited

    def content(
        self, prompt: str | None = None, image: np.ndarray | None = None, image_share: float = 0.5, seed: int = 0
    ) -> Tensor:
        """The content of a text, of an example image uint8 (h, w, 3), or of both: an embedding (d,).

        Both are mixed by direction, with `image_share` of the image (ours). `seed` is of the prior's noise. Raises
        UserError without either, for an empty text, or for a text where there is no prior.
        """
        if prompt is None and image is None:
            raise UserError("the content is not given: add prompt=TEXT or image=FILE")
        parts = []
        if prompt is not None:
            parts.append((1 - image_share if image is not None else 1.0, self.content_of_text(prompt, seed)))
        if image is not None:
            parts.append((image_share if prompt is not None else 1.0, self.clip.images(image[None])[0]))
        return torch.stack([share * normalize(part.float(), dim=0) for share, part in parts]).sum(0)

    def content_of_text(self, prompt: str, seed: int = 0) -> Tensor:
        """What the prior makes of a text: an embedding (d,). Raises UserError, see `content`."""
        if not prompt.strip():
            raise UserError("the prompt is empty: say what the video should show, or give image=FILE alone")
        if self.prior is None:
            raise UserError(
                "a prompt needs a prior from text to image embeddings: train one with `gen1-train stage=prior` and "
                "give it with prior=, or give image=FILE instead"
            )
        return self.prior(self.clip.texts([prompt]), seed)[0].cpu()

    def structure(self, frames: Frames) -> "ClipStructure":
        """Estimates the structure of uint8 frames (n, h, w, 3), once for all t_s. To be closed."""
        raws, spans = Spool(), []
        for part in chunks(len(frames)):
            raw = self.structure_estimator(torch.from_numpy(frames[part]))
            spans.append(self.structure_estimator.normalise(raw)[1])
            for frame in raw.numpy():
                raws.append(frame)
        lows, highs = zip(*spans)
        return ClipStructure(raws, (min(lows), max(highs)), self.structure_estimator)

    def scene(
        self, frames: Frames, structure: "ClipStructure", config: SamplingConfig, mask: Frames | None = None
    ) -> Scene:
        """What sampling needs of the input, on the editor's device: uint8 frames (n, h, w, 3), mask (n, h, w)."""
        if mask is not None and len(mask) != len(frames):
            raise UserError(f"the mask has {len(mask)} frames and the input {len(frames)}: give one of the same length")
        encode = self.autoencoder.encode_structure
        encoded = torch.cat([encode(part.to(self.device)) for part in structure.at(config.t_s)])
        n, *shape = encoded.shape
        noise = shared_noise(n, self.window, tuple(shape), config.seed).to(self.device)
        seen = encoded if self.unet.config.in_channels > self.unet.config.out_channels else None  # none in stage 3
        if mask is None and config.init_strength >= 1:
            return Scene(noise, seen)
        latents = torch.cat([self._encode(frames[part]) for part in chunks(n)])
        if mask is None:
            return Scene(noise, seen, latents)
        masks = torch.cat([latent_mask(torch.from_numpy(mask[part]), self.autoencoder.factor) for part in chunks(n)])
        return Scene(noise, seen, latents, masks.to(self.device))

    @torch.no_grad()
    def sample(
        self,
        scene: Scene,
        contents: Tensor,
        config: SamplingConfig,
        negative: Tensor | None = None,
        on_step: Callable[[], object] = lambda: None,
        on_frames: Callable[[int], object] = lambda frames: None,
    ) -> Tensor:
        """Contents (k, d) -> latents (k, n, c, h, w).

        `on_step` is called once a step, `on_frames` more often: with the frames that went through the UNet.
        """
        check(config)
        away = negative.to(self.device) if negative is not None else None
        return sample_video(
            *(self.unet, scene, contents.to(self.device), self.schedule, config, self.window, away),
            on_step=on_step,
            on_frames=on_frames,
        )

    def pictures(self, latents: Tensor, frames: Frames, mask: Frames | None = None) -> Iterator[np.ndarray]:
        """Latents (n, c, h, w) -> uint8 frames (m, h, w, 3), by chunks; where the mask is 0 they are the input's."""
        for part in chunks(len(latents)):
            edited = to_pixels(self.autoencoder.decode(latents[part])).cpu().numpy()
            if mask is not None:
                share = mask[part][..., None].astype(np.float32)
                edited = np.rint(share * edited + (1 - share) * frames[part]).astype(np.uint8)
            yield edited

    def _encode(self, frames: np.ndarray) -> Tensor:
        """uint8 frames (m, h, w, 3) -> their latents, the mean, scaled: (m, c, h/f, w/f)."""
        moments = self.autoencoder.encode_moments(to_signed(torch.from_numpy(frames).to(self.device)))
        return moments.chunk(2, dim=1)[0] * self.autoencoder.scale


class ClipStructure:
    """The estimated structure of a video, raw, on a disk; normalised over all its frames, as one clip."""

    def __init__(self, raws: Spool, span: Span, estimator: StructureEstimator) -> None:
        self._raws, self._span, self._estimator = raws, span, estimator

    def at(self, t_s: int) -> Iterator[Tensor]:
        """What the model is shown of it: (m, h, w) in [0, 1], by chunks."""
        for part in chunks(len(self._raws)):
            structure, _ = self._estimator.normalise(torch.from_numpy(self._raws[part]), self._span)
            yield degrade(structure[None], torch.tensor([t_s]))[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._raws.close()


def chunks(frames: int) -> Iterator[slice]:
    for start in range(0, frames, CHUNK):
        yield slice(start, min(start + CHUNK, frames))


def latent_mask(mask: Tensor, factor: int) -> Tensor:
    """A mask (m, h, w) in [0, 1] of pixels -> (m, 1, h/f, w/f) of latents: each is as free as its freest pixel."""
    return torch.nn.functional.max_pool2d(mask[:, None].float(), factor)


def open_prior(checkpoint: Checkpoint, path: str | Path | None, device: torch.device) -> TrainedPrior | None:
    """The prior that was asked for, or the one beside the checkpoint's run folder, or None.

    Raises UserError when it is none, or was trained on embeddings of another CLIP.
    """
    path = path or prior_beside(checkpoint)
    if path is None:
        return None
    prior = read_prior(Path(path), device)
    check_fingerprint("CLIP model", checkpoint.info.estimators["clip"]["fingerprint"], prior.clip, f"the prior {path}")
    return prior


def prior_beside(checkpoint: Checkpoint) -> Path | None:
    """The folder `prior` beside the checkpoint's run folder, or in the checkpoint's own, as in a released one."""
    folder = checkpoint.path.resolve()
    beside = (folder, *folder.parents[2:3])  # TREE/stage5/checkpoints/step-…
    return next((place / "prior" for place in beside if holds_checkpoint(place / "prior")), None)


def load_estimators(
    checkpoint: Checkpoint, device: torch.device
) -> tuple[Autoencoder, StructureEstimator, ClipEncoder]:
    """The estimators that the checkpoint's data was made by. Raises UserError when one is not there, or was changed."""
    found = Networks.recorded(checkpoint.info.estimators, str(checkpoint.path), device)
    return found.autoencoder, found.structure, found.clip


def check(config: SamplingConfig) -> None:
    """Raises UserError for a dial that is out of its range."""
    if not 0 <= config.t_s <= MAX_LEVEL:
        raise UserError(f"t_s={config.t_s} is out of range: give 0 (the input's structure) to {MAX_LEVEL} (freest)")
    if not 1 <= config.steps <= 1000:
        raise UserError(f"steps={config.steps} is out of range: give 1 to 1000")
    if config.solver not in SOLVERS:
        raise UserError(f"solver={config.solver} is not one of {', '.join(SOLVERS)}")
    if not 0 < config.init_strength <= 1:
        raise UserError(f"init_strength={config.init_strength} is out of range: give a share above 0, up to 1")
    if config.batch < 1:
        raise UserError(f"batch={config.batch} must be 1 or more")
    for name, value in vars(config.guidance).items():
        if not 0 <= value <= 100:
            raise UserError(f"{name}={value} is out of range: give 0 to 100")
