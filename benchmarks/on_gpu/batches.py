"""Random training batches, complete with their draws, as a loader's worker hands them out."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from gen1_train.batch import Batch
from gen1_train.diffusion.structure import LEVEL_CHANNELS
from gen1_train.model.unet import UNetConfig
from gen1_train.training.module import Gen1Module


@dataclass(frozen=True)
class Clips:
    """The shape of all batches of a run."""

    samples: int
    frames: int  # 1: images
    height: int  # of the latents
    width: int

    @property
    def kind(self) -> str:
        return "video" if self.frames > 1 else "image"


def with_structure(config: UNetConfig) -> UNetConfig:
    """Returns the UNet of stages 4 and 5, whose input has the structure and its level."""
    return UNetConfig(**{**vars(config), "in_channels": 2 * config.out_channels + LEVEL_CHANNELS})


class PreparedBatches(Dataset[Batch]):
    """Batches in memory, pinned for a GPU, so that a run never waits for data. A few repeat; their steps do not."""

    def __init__(self, module: Gen1Module, clips: Clips, steps: int, different: int = 4) -> None:
        self._steps = steps
        batches = [self._make(module, clips, step) for step in range(min(steps, different))]
        self._batches = [batch.pin_memory() if torch.cuda.is_available() else batch for batch in batches]

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Batch:
        if step >= self._steps:
            raise IndexError(step)
        batch = self._batches[step % len(self._batches)]
        return Batch(**{**vars(batch), "step": step})

    def _make(self, module: Gen1Module, clips: Clips, step: int) -> Batch:
        config = module.unet.config
        b, n, size = clips.samples, clips.frames, (clips.height, clips.width)
        latents = b, n, config.out_channels, *size
        embeddings = stored(step, b, 1, config.content_dim).expand(b, n, config.content_dim).contiguous()
        log_variances = stored(step, *latents) - 6  # small, as an autoencoder's are
        batch = Batch(
            clips.kind,
            step,
            slots=list(range(b)),
            keys=[""] * b,
            moments=torch.cat([moving_latents(embeddings, latents), log_variances], dim=2),
            embeddings=embeddings,
            structure_latents=stored(step + 1, *latents) if module.stage.structure else None,
        )
        return module.drawing(batch)


def stored(seed: int, *shape: int) -> Tensor:
    """Returns standard normal numbers as they are in a shard: float16."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).half()


def moving_latents(embeddings: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns latents (b, n, c, h, w) that a network can learn: waves that the embeddings choose, and that move."""
    _, frames, channels, height, width = shape
    waves = embeddings[:, 0, : 3 * channels].float().view(-1, 1, 3, channels, 1, 1)
    phase, across, down = waves.unbind(2)
    time = torch.arange(frames).view(1, -1, 1, 1, 1) / 4
    x = torch.arange(width).view(1, 1, 1, 1, -1) / width
    y = torch.arange(height).view(1, 1, 1, -1, 1) / height
    return torch.sin(3 * (phase + time + across * x + down * y)).half()
