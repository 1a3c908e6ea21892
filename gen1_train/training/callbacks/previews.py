"""Edits of validation clips during training, for visual inspection.

RUN/samples/step-00005000/clip0.mp4    from left to right: the clip, its structure, an edit towards its own content, an
                                       edit towards the next clip's content

All ranks take a share. Structure and content come from the shards, so neither the depth estimator nor CLIP is needed.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from gen1_train import keyed
from gen1_train.batch import STRUCTURE_MAX, Batch, Sample, collate
from gen1_train.data.shards import ShardSet
from gen1_train.diffusion.editing import SamplingConfig, Scene, sample_video
from gen1_train.diffusion.guidance import GuidanceConfig
from gen1_train.diffusion.schedule import NoiseSchedule, with_common_noise
from gen1_train.errors import UserError
from gen1_train.frozen.autoencoder import Autoencoder, as_pictures, to_pixels
from gen1_train.system.console import EVERY_RANK
from gen1_train.system.files import own_folder
from gen1_train.training.callbacks.clock import Clock
from gen1_train.training.callbacks.validation import Turn, ValidationConfig, choose_samples, read_turns
from gen1_train.training.checkpoints.counters import is_due
from gen1_train.training.checkpoints.state import state_of
from gen1_train.training.module import Gen1Module
from gen1_train.video.contact_sheet import GAP
from gen1_train.video.encode import write_video
from gen1_train.video.errors import VideoError

FPS = 8.0  # of the files; the shards do not record the frame rate of a clip

logger = logging.getLogger(__name__)


class Previews(Callback):
    """Edits some validation clips every N steps with the first average, or with the weights if there is none."""

    def __init__(
        self,
        *,
        config: ValidationConfig,
        shards: ShardSet,
        steps: int,
        average: str | None,
        autoencoder: Autoencoder,
        run: Path,
        clock: Clock,
    ) -> None:
        self.config = config
        self.shards = shards
        self.steps = steps
        self.average = average
        self.autoencoder = autoencoder
        self.run = run
        self.clock = clock
        self._turns: list[Turn] = []
        self._contents: list[Tensor] = []  # of all chosen clips, each (d)
        self._done = -1

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Gen1Module)
        self._done = trainer.global_step
        clips = choose_samples(self.shards, "video", self.config.edits)
        fields = tuple(dict.fromkeys((*pl_module.stage.fields, "structure")))
        self._turns = read_turns(self.shards, clips, fields, trainer.global_rank, trainer.world_size)
        all_turns = read_turns(self.shards, clips, ("image_embedding",), rank=0, world=1)
        self._contents = [torch.from_numpy(_embeddings(turn.sample)[0]).float() for turn in all_turns]

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if is_due(trainer.global_step, self._done, self.config.edit_every, self.steps):
            assert isinstance(pl_module, Gen1Module)
            self._done = trainer.global_step
            with self.clock.phase("validation"):
                self._edit(trainer, pl_module)

    def _edit(self, trainer: Trainer, pl_module: Gen1Module) -> None:
        step = trainer.global_step
        folder = self.run / "samples" / f"step-{step:08d}"
        self.autoencoder.to(trainer.strategy.root_device)
        with torch.no_grad(), state_of(trainer.strategy).showing(self.average):
            for turn in self._turns:
                frames = self._edited_frames(trainer, pl_module, turn)  # in every turn: ZeRO-3 needs all ranks
                if turn.counts:
                    self._write(folder / f"clip{turn.number}.mp4", frames)
        if pl_module.autoencoder is not self.autoencoder:
            self.autoencoder.to("cpu")  # frees the GPU's memory for training
        trainer.strategy.barrier()
        videos = {f"samples/clip{number}": folder / f"clip{number}.mp4" for number in range(len(self._contents))}
        for sink in trainer.loggers:
            if hasattr(sink, "log_videos"):
                sink.log_videos(step, {name: path for name, path in videos.items() if path.exists()})

    def _edited_frames(self, trainer: Trainer, module: Gen1Module, turn: Turn) -> np.ndarray:
        """Returns the frames of the file: uint8 (n, h, w, 3)."""
        device = trainer.strategy.root_device
        batch = collate("video", turn.number, [0], [turn.sample]).to(device)
        moments = module.moments(batch)
        clean = moments[0].chunk(2, dim=1)[0] * module.stage.latent_scale
        structure = module.structure_latents(batch, [0])[0] if module.stage.structure else None
        schedule = NoiseSchedule(module.diffusion.noise, device)
        noise = keyed.normal(tuple(clean.shape), "preview", turn.number)
        noise = with_common_noise(noise, schedule.shared, "preview", turn.number, "shared").to(device)
        config = SamplingConfig(self.config.edit_steps, guidance=GuidanceConfig(self.config.omega))

        def network(latents: Tensor, timesteps: Tensor, content: Tensor, temporal: bool) -> Tensor:
            return trainer.strategy.predict_step(latents, timesteps, content, temporal)  # type: ignore[return-value]

        contents = [self._contents[(turn.number + offset) % len(self._contents)] for offset in (0, 1)]
        edits = sample_video(
            network, Scene(noise, structure), torch.stack(contents).to(device), schedule, config, len(clean)
        )
        pixels = [to_pixels(self.autoencoder.decode(latents)).cpu().numpy() for latents in (clean, *edits)]
        return side_by_side([pixels[0], _structure_frames(turn.sample), *pixels[1:]])

    def _write(self, path: Path, frames: np.ndarray) -> None:
        """Writes the file; if that fails, warns and lets training continue."""
        try:
            own_folder(self.run, path.parent.parent.name, path.parent.name)
            write_video(path, frames, FPS)
        except (OSError, UserError, VideoError) as error:
            logger.warning(f"{path} cannot be written: {error}", extra=EVERY_RANK)


def _embeddings(sample: Sample) -> np.ndarray:
    assert sample.image_embedding is not None
    return sample.image_embedding


def _structure_frames(sample: Sample) -> np.ndarray:
    """Returns the structure as gray frames, or its planes as red, green and blue: uint8 (n, h, w, 3)."""
    assert sample.structure is not None
    gray = (sample.structure.astype(np.float32) * (255 / STRUCTURE_MAX)).round().astype(np.uint8)
    return as_pictures(torch.from_numpy(gray), several=gray.ndim == 4).movedim(1, -1).numpy()


def side_by_side(clips: list[np.ndarray]) -> np.ndarray:
    """Joins clips of one size, each uint8 (n, h, w, 3), into one clip with white gaps."""
    n, h, _, _ = clips[0].shape
    gap = np.full((n, h, GAP, 3), 255, np.uint8)
    parts = [part for clip in clips for part in (gap, clip)][1:]
    return np.concatenate(parts, axis=2)
