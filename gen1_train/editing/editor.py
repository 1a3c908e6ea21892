"""The Python interface for editing: the structure of a video, the content of a prompt.

editor = Gen1Editor.from_pretrained("runs/gen1/stage5")
edited = editor(frames, prompt="a watercolor of a fox", omega_t=1.2)    # uint8 (n, h, w, 3), in and out
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gen1_train.diffusion.editing import Scene, sample_video, shared_noise
from gen1_train.diffusion.planes import Choice, strengths_of
from gen1_train.diffusion.recommended import Recommended, read_recommended
from gen1_train.diffusion.sampler import timesteps
from gen1_train.diffusion.sampling import SamplingConfig, with_dials
from gen1_train.diffusion.schedule import NoiseConfig, NoiseSchedule
from gen1_train.diffusion.structure import MAX_LEVEL, PIXELS
from gen1_train.editing.clip_structure import ClipStructure, Frames, chunks
from gen1_train.editing.config import ComputeConfig, EditConfig
from gen1_train.editing.content import Images, content_of_images, mixed
from gen1_train.editing.inputs import FramesLike, padded, to_frames, to_mask
from gen1_train.editing.masks import BY_DEPTH, latent_mask, mask_by_depth
from gen1_train.editing.networks import Denoiser, FrameCoder, place
from gen1_train.editing.opening import load_estimators, open_prior, read_editable
from gen1_train.editing.precision import Formats, formats_on
from gen1_train.editing.sizes import window_area
from gen1_train.editing.spool import Spool
from gen1_train.errors import UserError
from gen1_train.frozen.autoencoder import Autoencoder
from gen1_train.frozen.clip import ClipEncoder
from gen1_train.frozen.structure.combined import count_empty, widest
from gen1_train.frozen.structure.kinds import StructureEstimator, kinds_in
from gen1_train.model.compiling import compile_layers
from gen1_train.model.unet import SpatioTemporalUNet
from gen1_train.system.console import progress
from gen1_train.system.device import pick_device, set_tf32
from gen1_train.training.checkpoints.checkpoint import find_checkpoint
from gen1_train.training.prior.checkpoint import TrainedPrior
from gen1_train.training.stages import load_recorded

logger = logging.getLogger(__name__)


class Gen1Editor:
    """A trained model with the estimators that made its training data. `from_pretrained` builds it.

    Calling it edits frames that are in memory. For videos that do not fit, its three steps `scene`, `sample` and
    `pictures` hold only the latents of each frame.
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
        window: int | None = None,
        shorter: Sequence[int] = (),
        highest_level: int = MAX_LEVEL,
        degradation: str = PIXELS,
        drops_planes: bool = False,
        fps: float | None = None,
        recommended: Recommended = Recommended(),  # noqa: B008 (it is frozen)
        formats: Formats = Formats(),  # noqa: B008 (it is frozen)
    ) -> None:
        """`unet`: on the device, with weights of the dtype `formats.unet`.

        `window`: frames that the model takes at once; None: as many as it has positions for. `shorter`: other lengths
        of clips that it has learned, see `window_places`. `highest_level`: of the t_s that the model has learned.
        `degradation`: what they do, see `degrade`. `fps`: about as many frames a second had its clips, if that is
        known. `recommended`: the dials that edits start from. `drops_planes`: it has learned to do without some of the
        planes of its structure.
        """
        self.unet = unet
        self.formats = formats
        self.autoencoder = autoencoder
        self.coder = FrameCoder(autoencoder, formats, device)
        self.clip = clip
        self.structure_estimator = structure_estimator
        self.schedule = NoiseSchedule(noise, device)
        self.device = device
        self.buckets = list(buckets)  # WIDTHxHEIGHT, as trained
        self.prior = prior
        self.window = window or unet.config.max_frames
        self.shorter = tuple(shorter)
        self.highest_level = highest_level
        self.degradation = degradation
        self.drops_planes = drops_planes
        self._has_warned = False
        self.fps = fps
        self.recommended = recommended

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        device: str = "auto",
        weights: str = "ema",
        prior: str | Path | None = None,
        structure: bool = True,
        precision: str = ComputeConfig.precision,
        compile: bool = ComputeConfig.compile,
    ) -> "Gen1Editor":
        """Builds the model and its estimators from a checkpoint's own config.

        `checkpoint`: a checkpoint folder, a run folder (its newest checkpoint), or an installed package that carries
        one, see `find_checkpoint`. `weights`: see `Checkpoint.weights_file`; by default the average. `prior`: a
        checkpoint or run folder of stage=prior; by default see `default_prior`. `structure=False` also accepts a
        checkpoint of stage 3, which knows no structure: its "edits" are videos of the content alone, for comparing
        stages. `precision`: auto, fp32, bf16 or fp16, see `gen1_train.editing.precision`; float32 products on a GPU use
        TF32 if torch's switches allow it, as gen1-edit's tf32= does. `compile`: see `compile_layers`.

        Raises UserError when the stage is too early, when the checkpoint is damaged, when an estimator that it names
        does not exist or has changed, or for a precision that the device does not have.
        """
        source = find_checkpoint(Path(checkpoint), weights)
        torch_device = pick_device(device)
        formats = formats_on(torch_device, precision)
        recorded = read_editable(source, structure)
        recommended = read_recommended(source.recommended)
        unet = load_recorded(source, recorded.unet, weights)
        autoencoder, structure_estimator, clip = load_estimators(source, torch_device)
        place(unet, torch_device, formats.unet)
        place(autoencoder, torch_device)
        if compile:
            compile_layers(unet)
        editor = cls(
            unet=unet,
            noise=recorded.noise,
            autoencoder=autoencoder,
            structure_estimator=structure_estimator,
            clip=clip,
            device=torch_device,
            buckets=source.info.buckets,
            prior=open_prior(source, prior, torch_device),
            window=recorded.window,
            shorter=[length for length in source.info.lengths if length < recorded.window],
            highest_level=recorded.stage.highest_level,
            degradation=recorded.stage.degradation,
            drops_planes=bool(recorded.stage.drop_planes),
            fps=source.info.fps,
            recommended=recommended,
            formats=formats,
        )
        try:
            editor.check(recommended.sampling)
        except UserError as error:
            raise UserError(f"{source.recommended or source.path}: {error}") from error
        return editor

    @classmethod
    def of(cls, config: EditConfig) -> "Gen1Editor":
        """Builds the editor of gen1-edit's settings, and sets torch's switches for TF32. Raises UserError."""
        editor = cls.from_pretrained(
            str(config.checkpoint),
            config.device,
            config.weights,
            config.prior,
            precision=config.precision,
            compile=config.compile,
        )
        set_tf32(config.tf32 and editor.formats.precision == "fp32")
        return editor

    def check(self, sampling: SamplingConfig) -> None:
        """Raises UserError for a setting that is out of its range, or that this model has not learned."""
        sampling.check()
        sampling.check_model(self.highest_level, self.window, self.schedule.steps)
        if sampling.structure is not None:
            self._check_structure(sampling.structure)

    def _check_structure(self, choice: Choice) -> None:
        """Raises UserError for planes that the model does not have. Warns once if it never had to do without one."""
        kinds = kinds_in(self.structure_estimator)
        if all(strength == 1 for strength in strengths_of(choice, kinds)) or self.drops_planes or self._has_warned:
            return
        self._has_warned = True
        logger.warning(
            f"structure={choice}: this checkpoint was trained with all of its {' and '.join(kinds)} at all times "
            "(stage.drop_planes=0), so edits with less of them may be poor"
        )

    def __call__(
        self,
        frames: FramesLike,
        *,
        prompt: str | Sequence[str] | None = None,
        image: Images | None = None,
        image_share: float = EditConfig.image_share,
        image_weights: Sequence[float] | None = None,
        negative_prompt: str | None = None,
        mask: FramesLike | None = None,
        window_size: str | None = None,
        sampling: SamplingConfig | None = None,
        on_step: Callable[[], object] = lambda: None,
        **dials: Any,
    ) -> np.ndarray:
        """Edits frames at their own size: uint8 (n, h, w, 3), or (k, n, h, w, 3) for k prompts.

        `frames`: uint8 (n, h, w, 3), or whatever else `to_frames` takes: floats in [0, 1], tensors, PIL images, a
        file. The model is at its best at the sizes of its `buckets`; `window_size` edits larger frames in overlapping
        windows: WIDTHxHEIGHT, or "nearest" for the bucket with the nearest aspect. `prompt`, `image` (of any size, or
        several, with `image_weights`) or both give the content, see `content`. `mask`, see `to_mask`, is 1 where the
        video is edited; elsewhere the input stays; or it is "foreground" or "background", by depth. `sampling` holds
        the settings of the sampler, by default those that the checkpoint recommends, see `recommended`; `dials` change
        single ones: omega, omega_t, rescale, t_s, structure (a text or a dict, see `read_choice`), steps, solver, seed,
        init_strength, temporal, batch, overlap, space_overlap. `on_step` is called after each step of the sampler; a
        terminal shows a bar.

        Sides that are no multiples of the autoencoder's factor are extended by their last row or column meanwhile.

        Raises UserError for a setting that is out of its range or not learned, see `check`, and TypeError for a dial
        that does not exist.
        """
        sampling = with_dials(sampling or self.recommended.sampling, dials)
        self.check(sampling)
        pixels = to_frames(frames)
        n, h, w, _ = pixels.shape
        area = window_area(window_size, self.buckets, self.autoencoder.factor, w, h)
        pixels = padded(pixels, self.autoencoder.factor, height_axis=1)
        prompts = [prompt] if prompt is None or isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise UserError("prompt is an empty list: give at least one")
        example = None if image is None else content_of_images(self.clip, image, image_weights)
        contents = torch.stack([self.content_with(text, example, image_share, sampling.seed) for text in prompts])
        negative = self.content(negative_prompt, seed=sampling.seed) if negative_prompt is not None else None
        with self.structure(pixels, area=area) as structure:
            where: np.ndarray | None = None
            if isinstance(mask, str) and mask in BY_DEPTH:
                where = np.stack(list(mask_by_depth(structure, mask)))
            elif mask is not None:
                where = padded(to_mask(mask, (n, h, w)), self.autoencoder.factor, height_axis=1)
            scene = self.scene(pixels, structure, sampling, where)
        steps = len(timesteps(self.schedule, sampling.steps, sampling.init_strength))
        with progress(title="edit", unit="step", total=steps, in_library=True) as bar:

            def step_done() -> None:
                bar.update()
                on_step()

            latents = self.sample(scene, contents, sampling, negative, step_done, area=area)
        videos = [np.concatenate(list(self.pictures(video, pixels, where))) for video in latents]
        edited = np.stack(videos)[..., :h, :w, :]
        return edited[0] if prompt is None or isinstance(prompt, str) else edited

    def content(
        self,
        prompt: str | None = None,
        image: Images | None = None,
        image_share: float = EditConfig.image_share,
        seed: int = SamplingConfig.seed,
        image_weights: Sequence[float] | None = None,
    ) -> Tensor:
        """Returns the content of a text, of example images, or of both: an embedding (d,).

        For several images and `image_weights`, see `content_of_images`; for `image_share`, see `content.mixed`. `seed`
        is for the prior's noise. Raises UserError without text and image, for an empty text, and for a text when there
        is no prior.
        """
        example = None if image is None else content_of_images(self.clip, image, image_weights)
        return self.content_with(prompt, example, image_share, seed)

    def content_with(self, prompt: str | None, example: Tensor | None, image_share: float, seed: int) -> Tensor:
        """Returns the same with the embedding of the images, which several prompts may share."""
        text = self.content_of_text(prompt, seed) if prompt is not None else None
        return mixed(text, example, image_share)

    def content_of_text(self, prompt: str, seed: int = SamplingConfig.seed) -> Tensor:
        """Returns the prior's image embedding (d,) for a text. Raises UserError, see `content`."""
        if not prompt.strip():
            raise UserError("the prompt is empty: describe the video, or give image=FILE alone")
        if self.prior is None:
            raise UserError(
                "a prompt needs a prior from text to image embeddings: train one with `gen1-train stage=prior` and "
                "give it with prior=, or give image=FILE instead"
            )
        return self.prior(self.clip.texts([prompt]), seed)[0].cpu()

    def structure(
        self,
        frames: Frames,
        on_frames: Callable[[int], object] = lambda frames: None,
        area: tuple[int, int] | None = None,
    ) -> "ClipStructure":
        """Estimates the structure of uint8 frames (n, h, w, 3), once for all t_s. The caller closes the result.

        `on_frames` is called with the number of frames whose structure has been estimated since the last call. `area`:
        see `sample`; a t_s relative to the frame is relative to what the model sees of it at once.
        """
        raw_frames = Spool()
        spans = []
        empty_frames = 0
        for part in chunks(len(frames)):
            with self.formats.estimators(self.device):
                raw = self.structure_estimator(torch.from_numpy(frames[part]))
            empty_frames += count_empty(self.structure_estimator, raw) or 0
            spans.append(self.structure_estimator.normalise(raw)[1])
            for frame in raw.numpy():
                raw_frames.append(frame)
            on_frames(len(raw))
        return ClipStructure(
            raw_frames,
            widest(spans),
            self.structure_estimator,
            empty_frames,
            self.degradation,
            None if area is None else min(area) * self.autoencoder.factor,
        )

    def scene(
        self, frames: Frames, structure: "ClipStructure", sampling: SamplingConfig, mask: Frames | None = None
    ) -> Scene:
        """Returns what sampling needs of the input, on the editor's device.

        `frames`: uint8 (n, h, w, 3). `mask`: (n, h, w). Raises UserError if their lengths differ.
        """
        if mask is not None and len(mask) != len(frames):
            raise UserError(f"the mask has {len(mask)} frames and the input {len(frames)}: give one of the same length")
        seen = structure.at(sampling.t_s, sampling.structure)
        encoded = torch.cat([self.coder.encode_structure(part) for part in seen])
        n, *shape = encoded.shape
        noise = shared_noise(n, self.window, tuple(shape), sampling.seed, self.schedule.shared).to(self.device)
        takes_structure = self.unet.config.in_channels > self.unet.config.out_channels  # not in stage 3
        scene = Scene(noise, encoded if takes_structure else None)
        if mask is None and sampling.init_strength >= 1:
            return scene
        scene = replace(scene, latents=torch.cat([self.coder.encode(frames[part]) for part in chunks(n)]))
        if mask is None:
            return scene
        masks = torch.cat([latent_mask(torch.from_numpy(mask[part]), self.autoencoder.factor) for part in chunks(n)])
        return replace(scene, mask=masks.to(self.device))

    @torch.no_grad()
    def sample(
        self,
        scene: Scene,
        contents: Tensor,
        sampling: SamplingConfig,
        negative: Tensor | None = None,
        on_step: Callable[[], object] = lambda: None,
        on_frames: Callable[[int], object] = lambda frames: None,
        area: tuple[int, int] | None = None,
    ) -> Tensor:
        """Samples a video for each content: contents (k, d) -> latents (k, n, c, h, w).

        `area`: rows and columns of the latents that go through the UNet at once, in windows; None: all.
        `on_step` is called after each step. `on_frames` is called more often, with the number of frames that went
        through the UNet. Raises UserError for a setting that is out of its range or not learned, see `check`, and
        for values that are not finite, see `Denoiser.check`.
        """
        self.check(sampling)
        denoiser = Denoiser(self.unet, self.formats, self.device)

        def step_done() -> None:
            denoiser.check()
            on_step()

        return sample_video(
            denoiser,
            scene,
            contents.to(self.device),
            self.schedule,
            sampling,
            self.window,
            negative=None if negative is None else negative.to(self.device),
            on_step=step_done,
            on_frames=on_frames,
            area=area,
            shorter=self.shorter,
        )

    def pictures(self, latents: Tensor, frames: Frames, mask: Frames | None = None) -> Iterator[np.ndarray]:
        """Decodes latents (n, c, h, w) in chunks of uint8 frames (m, h, w, 3). Where the mask is 0, the input stays."""
        for part in chunks(len(latents)):
            edited = self.coder.decode(latents[part])
            if mask is not None:
                share = mask[part][..., None].astype(np.float32)
                edited = np.rint(share * edited + (1 - share) * frames[part]).astype(np.uint8)
            yield edited
