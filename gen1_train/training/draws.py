"""Every random choice of a training step, keyed by (seed, step, slot, purpose): see gen1_train.keyed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gen1_train.batch import Batch
from gen1_train.keyed import integer, key, normal, uniform


@dataclass
class Choices:
    """What is drawn as one number a sample."""

    frames: Tensor  # long (b,): the frame of each clip whose embedding is its content (paper section 3.2.2)
    timesteps: Tensor  # long (b,): one noise level per clip, uniform
    levels: Tensor  # long (b,): t_s, uniform over 0..max_level (paper section 3.2.1)
    dropped: Tensor  # bool (b,): content left out, for guidance


@dataclass
class Draws(Choices):
    noise: Tensor  # float32 (b, n, c, h, w): independent per frame
    posterior: Tensor  # float32 (b, n, c, h, w): for the draw from the autoencoder's posterior

    @property
    def choices(self) -> Choices:
        return Choices(self.frames, self.timesteps, self.levels, self.dropped)

    def to(self, device: torch.device) -> "Draws":
        return Draws(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


def draw(seed: int, batch: Batch, timesteps: int, max_level: int, drop_rate: float) -> Draws:
    """The draws for one micro-batch, the same whichever rank makes them."""
    assert batch.moments is not None
    _, n, moments, h, w = batch.moments.shape
    keys = [(seed, batch.step, slot) for slot in batch.slots]
    shape = (n, moments // 2, h, w)
    return Draws(
        frames=torch.tensor([integer(n, *key, "frame") for key in keys]),
        timesteps=torch.tensor([integer(timesteps, *key, "timestep") for key in keys]),
        levels=torch.tensor([integer(max_level + 1, *key, "level") for key in keys]),
        dropped=torch.tensor([uniform(*key, "drop") < drop_rate for key in keys]),
        noise=torch.stack([normal(shape, *key, "noise") for key in keys]),
        posterior=torch.stack([normal(shape, *key, "posterior") for key in keys]),
    )


def fixed_draw(seed: int, batch: Batch, timesteps: int, max_level: int, drop_rate: float) -> Draws:
    """The draws for validation, the same for any seed: a clip's copies have timesteps in the middle of equal parts.

    All copies share frame and t_s, which go by the batch's step, and none is without content.
    """
    draws, copies = draw(key("validation"), batch, timesteps, max_level, 0.0), len(batch.slots)
    draws.timesteps = torch.tensor([(2 * i + 1) * timesteps // (2 * copies) for i in range(copies)])
    draws.levels = torch.full((copies,), batch.step % (max_level + 1))
    draws.frames = draws.frames[:1].expand(copies)
    return draws
