"""The random draws of a training step, keyed by (seed, step, slot, purpose): see gen1_train.keyed."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gen1_train.batch import Batch
from gen1_train.keyed import integer, key, normal, uniform


@dataclass
class Choices:
    """The draws that are one number per sample."""

    frames: Tensor  # long (b,): the frame of each clip whose embedding is its content (paper section 3.3)
    timesteps: Tensor  # long (b,): one noise level per clip, uniform
    levels: Tensor  # long (b,): t_s, uniform over 0..max_level (paper section 3.3)
    dropped: Tensor  # bool (b,): content left out, for guidance


@dataclass
class Draws(Choices):
    noise: Tensor  # float32 (b, n, c, h, w): independent per frame
    posterior: Tensor  # float32 (b, n, c, h, w): for the draw from the autoencoder's posterior

    rounds: list[int]  # `levels` on the host, which a device would have to be waited for

    @property
    def choices(self) -> Choices:
        return Choices(self.frames, self.timesteps, self.levels, self.dropped)

    def to(self, device: torch.device) -> "Draws":
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Draws":
        """Returns the draws in pinned memory, from which a copy to a GPU does not hold up the process."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Draws":
        tensors = {name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Drawing:
    """Makes the draws of the training batches, in the loader's processes: 0.7 ms for a clip of 8 frames of 448x256.

    A generator on the device would need no copy, but a float32 logarithm or cosine is rounded differently on a CPU and
    a GPU, so that its numbers would depend on the device: see `python benchmarks/train.py --suite draws`.
    """

    seed: int
    timesteps: int
    max_level: int
    drop_rate: float

    def __call__(self, batch: Batch) -> Batch:
        """Adds the draws to a batch, unless it has no moments, which give their shape."""
        return batch if batch.moments is None else replace(batch, draws=self.draw(batch))

    def level(self, step: int, slot: int) -> int:
        """Returns the t_s of a sample, before it is read."""
        return draw_level(self.max_level, (self.seed, step, slot))

    def draw(self, batch: Batch) -> Draws:
        return draw(self.seed, batch, self.timesteps, self.max_level, self.drop_rate)


def draw(seed: int, batch: Batch, timesteps: int, max_level: int, drop_rate: float) -> Draws:
    """Returns the draws for one micro-batch; they do not depend on the rank."""
    assert batch.moments is not None
    _, n, moments, h, w = batch.moments.shape
    keys = [(seed, batch.step, slot) for slot in batch.slots]
    shape = (n, moments // 2, h, w)
    rounds = [draw_level(max_level, key) for key in keys]
    return Draws(
        frames=torch.tensor([integer(n, *key, "frame") for key in keys]),
        timesteps=torch.tensor([integer(timesteps, *key, "timestep") for key in keys]),
        levels=torch.tensor(rounds),
        dropped=torch.tensor([uniform(*key, "drop") < drop_rate for key in keys]),
        noise=torch.stack([normal(shape, *key, "noise") for key in keys]),
        posterior=torch.stack([normal(shape, *key, "posterior") for key in keys]),
        rounds=rounds,
    )


def draw_level(max_level: int, key: tuple[int, int, int]) -> int:
    return integer(max_level + 1, *key, "level")


def fixed_level(max_level: int, step: int) -> int:
    """Returns the t_s of a validation clip, which `fixed_draw` draws for the batch of this step."""
    return step % (max_level + 1)


def fixed_draw(drawing: Drawing, batch: Batch) -> Draws:
    """Returns the draws for validation, the same for any seed.

    The copies of a clip have timesteps in the middle of equal parts of 0..T-1. They share the frame and t_s, which
    follow from the batch's step, and all have content.
    """
    timesteps, max_level = drawing.timesteps, drawing.max_level
    draws = draw(key("validation"), batch, timesteps, max_level, 0.0)
    copies = len(batch.slots)
    draws.timesteps = torch.tensor([(2 * i + 1) * timesteps // (2 * copies) for i in range(copies)])
    draws.rounds = [fixed_level(max_level, batch.step)] * copies
    draws.levels = torch.tensor(draws.rounds)
    draws.frames = draws.frames[:1].expand(copies)
    return draws
