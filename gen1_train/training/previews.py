"""Edits of validation clips while training, for people to look at.

RUN/samples/step-00005000/clip0.mp4    from left to right: the clip, its structure, an edit towards its own content, an
                                       edit towards the next clip's content

All ranks take their share; structure and content come from the shards, so neither depth estimator nor CLIP is needed.
"""

from collections.abc import Callable
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
from gen1_train.diffusion.schedule import NoiseSchedule
from gen1_train.model.autoencoder import Autoencoder, to_pixels
from gen1_train.sheet import GAP
from gen1_train.training.clock import Clock
from gen1_train.training.counters import is_due
from gen1_train.training.module import Gen1Module
from gen1_train.training.state import state_of
from gen1_train.training.validation import Turn, ValidationConfig, chosen, turns
from gen1_train.video.encode import write_video
from gen1_train.video.probe import VideoError

FPS = 8.0  # of the files; the clips do not tell how far apart their frames were


class Previews(Callback):
    """Edits some validation clips every so many steps by the first average, or the weights if there is none."""

    def __init__(
        self,
        config: ValidationConfig,
        shards: ShardSet,
        steps: int,
        average: str | None,
        autoencoder: Autoencoder,
        run: Path,
        say: Callable[[str], None],
        clock: Clock,
    ) -> None:
        self.config, self.shards, self.steps, self.average = config, shards, steps, average
        self.autoencoder, self.run, self.say, self.clock = autoencoder, run, say, clock
        self._turns: list[Turn] = []
        self._contents: list[Tensor] = []  # of all chosen clips, (d,)
        self._done = -1

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Gen1Module)
        self._done = trainer.global_step
        places = chosen(self.shards, "video", self.config.edits)
        fields = tuple(dict.fromkeys((*pl_module.fields, "structure")))
        self._turns = turns(self.shards, places, fields, trainer.global_rank, trainer.world_size)
        everyone = turns(self.shards, places, ("image_embedding",), 0, 1)
        self._contents = [torch.from_numpy(_embeddings(turn.sample)[0]).float() for turn in everyone]

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
                frames = self._pictures(trainer, pl_module, turn)  # of all turns: ZeRO-3 needs all ranks
                if turn.counts:
                    self._write(folder / f"clip{turn.number}.mp4", frames)
        if pl_module.autoencoder is not self.autoencoder:
            self.autoencoder.to("cpu")  # a GPU's memory is for training
        trainer.strategy.barrier()
        videos = {f"samples/clip{number}": folder / f"clip{number}.mp4" for number in range(len(self._contents))}
        for logger in trainer.loggers:
            if hasattr(logger, "log_videos"):
                logger.log_videos(step, {name: path for name, path in videos.items() if path.exists()})

    def _pictures(self, trainer: Trainer, module: Gen1Module, turn: Turn) -> np.ndarray:
        """The frames of the file: uint8 (n, h, w, 3)."""
        device = trainer.strategy.root_device
        batch = collate("video", turn.number, [0], [turn.sample]).to(device)
        moments = module.moments(batch)
        clean = moments[0].chunk(2, dim=1)[0] * module.latent_scale
        levels = torch.zeros(1, dtype=torch.long, device=device)
        structure = module.structure_latents(batch, levels)[0] if module.structure else None
        noise = keyed.normal(tuple(clean.shape), "preview", turn.number).to(device)
        schedule = NoiseSchedule(module.diffusion.noise, device)
        config = SamplingConfig(self.config.edit_steps, guidance=GuidanceConfig(self.config.omega))

        def network(latents: Tensor, timesteps: Tensor, content: Tensor, temporal: bool) -> Tensor:
            return trainer.strategy.predict_step(latents, timesteps, content, temporal)  # type: ignore[return-value]

        contents = [self._contents[(turn.number + other) % len(self._contents)] for other in (0, 1)]
        edits = sample_video(
            network, Scene(noise, structure), torch.stack(contents).to(device), schedule, config, len(clean)
        )
        pixels = [to_pixels(self.autoencoder.decode(latents)).cpu().numpy() for latents in (clean, *edits)]
        return side_by_side([pixels[0], _grey(turn.sample), *pixels[1:]])

    def _write(self, path: Path, frames: np.ndarray) -> None:
        """A file that cannot be written is said; it is no reason to stop training."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, frames, FPS)
        except (OSError, VideoError) as error:
            self.say(f"warning: {path} cannot be written: {error}")


def _embeddings(sample: Sample) -> np.ndarray:
    assert sample.image_embedding is not None
    return sample.image_embedding


def _grey(sample: Sample) -> np.ndarray:
    """The structure as pictures: uint8 (n, h, w, 3)."""
    assert sample.structure is not None
    grey = (sample.structure.astype(np.float32) * (255 / STRUCTURE_MAX)).round().astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def side_by_side(clips: list[np.ndarray]) -> np.ndarray:
    """Clips uint8 (n, h, w, 3) of one size -> one clip, with white between them."""
    n, h, _, _ = clips[0].shape
    gap = np.full((n, h, GAP, 3), 255, np.uint8)
    parts = [part for clip in clips for part in (gap, clip)][1:]
    return np.concatenate(parts, axis=2)
