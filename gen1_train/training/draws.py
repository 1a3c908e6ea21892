"""The random draws of a training step, keyed by (seed, step, slot, purpose): see gen1_train.keyed."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import torch
from torch import Tensor

from gen1_train.batch import Batch
from gen1_train.diffusion.planes import Strengths
from gen1_train.diffusion.schedule import NoiseConfig, with_common_noise
from gen1_train.errors import check_choice, check_positive
from gen1_train.keyed import integer, key, normal, uniform

Key = tuple[int, int, int]  # (seed, step, slot) of a sample
SAMPLINGS = ("uniform", "logit_normal", "shifted")
TINY = 1e-12  # of a share, whose logit would be infinite at 0


@dataclass
class Choices:
    """The draws that are one number per sample."""

    frames: Tensor  # long (b,): the frame of each clip whose embedding is its content (paper section 3.3)
    timesteps: Tensor  # long (b,): one noise level per clip, see TimestepConfig
    levels: Tensor  # long (b,): t_s, uniform over 0..max_level (paper section 3.3)
    dropped: Tensor  # bool (b,): content left out, for guidance


@dataclass
class Draws(Choices):
    noise: Tensor  # float32 (b, n, c, h, w): by default independent per frame, see NoiseConfig
    posterior: Tensor  # float32 (b, n, c, h, w): for the draw from the autoencoder's posterior

    rounds: list[int]  # `levels` on the host, which a device would have to be waited for
    planes: list[Strengths] = field(default_factory=list)  # of each sample: 0 for a plane of its structure left out

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


@dataclass
class TimestepConfig:
    """How often training sees which timestep. The paper does not say; all of it is ours."""

    sampling: str = "uniform"  # uniform, logit_normal (Esser et al. 2024, Eq. 19), or shifted by the latents' size
    mean: float = 0.0  # logit_normal: above 0 noisier
    deviation: float = 1.0  # logit_normal
    base: int = 64  # shifted: side of the square latents that uniform sampling suits; 64: Stable Diffusion's 512x512

    def check(self) -> None:
        """Raises UserError for an invalid setting."""
        check_choice("diffusion.timesteps.sampling", self.sampling, SAMPLINGS)
        check_positive(diffusion__timesteps__deviation=self.deviation, diffusion__timesteps__base=self.base)

    def at(self, share: float, height: int, width: int) -> float:
        """Maps a uniform share of [0, 1) to that of a timestep in T, for latents of a size.

        Larger latents need more noise to lose as much of what neighboring pixels have in common: `shifted` is the map
        of Esser et al. (2024, Eq. 23), with the square root of the ratio of pixels.
        """
        if self.sampling == "logit_normal":
            normal = NormalDist(self.mean, self.deviation).inv_cdf(min(max(share, TINY), 1 - TINY))
            return 1 / (1 + math.exp(-normal))
        if self.sampling == "shifted":
            shift = math.sqrt(height * width) / self.base
            return shift * share / (1 + (shift - 1) * share)
        return share


@dataclass(frozen=True)
class Drawing:
    """Makes the draws of the training batches, in the loader's processes: 0.7 ms for a clip of 8 frames of 448x256.

    A generator on the device would need no copy, but a float32 logarithm or cosine is rounded differently on a CPU and
    a GPU, so that its numbers would depend on the device: see `python benchmarks/train.py --suite draws`.
    """

    seed: int
    noise: NoiseConfig
    max_level: int
    drop_rate: float
    timesteps: TimestepConfig = field(default_factory=TimestepConfig)
    planes: int = 1  # of the structure
    drop_planes: float = 0.0  # probability with which each of several is left out, but never all

    def __call__(self, batch: Batch) -> Batch:
        """Adds the draws to a batch, unless it has no moments, which give their shape."""
        return batch if batch.moments is None else replace(batch, draws=self.draw(batch))

    def level(self, step: int, slot: int) -> int:
        """Returns the t_s of a sample, before it is read."""
        return draw_level(self.max_level, (self.seed, step, slot))

    def strengths(self, step: int, slot: int) -> Strengths:
        """Returns 1 for each plane of a sample's structure that it keeps, and 0 for those that are left out."""
        key = (self.seed, step, slot)
        kept = [uniform(*key, "plane", plane) >= self.drop_planes for plane in range(self.planes)]
        last = None if any(kept) else integer(self.planes, *key, "last plane")  # all would be left out
        return tuple(float(keep or plane == last) for plane, keep in enumerate(kept))

    def drops(self, step: int, slot: int) -> bool:
        """Whether a sample's structure loses planes, so that its stored latents cannot be used."""
        return not all(self.strengths(step, slot))

    def draw(self, batch: Batch) -> Draws:
        """Returns the draws for one micro-batch; they do not depend on the rank."""
        assert batch.moments is not None
        _, n, moments, h, w = batch.moments.shape
        keys = [(self.seed, batch.step, slot) for slot in batch.slots]
        shape = (n, moments // 2, h, w)
        rounds = [draw_level(self.max_level, key) for key in keys]
        return Draws(
            frames=torch.tensor([integer(n, *key, "frame") for key in keys]),
            timesteps=torch.tensor([self._timestep(key, h, w) for key in keys]),
            levels=torch.tensor(rounds),
            dropped=torch.tensor([uniform(*key, "drop") < self.drop_rate for key in keys]),
            noise=torch.stack([self._noise(key, shape) for key in keys]),
            posterior=torch.stack([normal(shape, *key, "posterior") for key in keys]),
            rounds=rounds,
            planes=[self.strengths(batch.step, slot) for slot in batch.slots],
        )

    def _timestep(self, key: Key, height: int, width: int) -> int:
        if self.timesteps.sampling == "uniform":
            return integer(self.noise.steps, *key, "timestep")
        share = self.timesteps.at(uniform(*key, "timestep"), height, width)
        return min(self.noise.steps - 1, int(share * self.noise.steps))

    def _noise(self, key: Key, shape: tuple[int, int, int, int]) -> Tensor:
        noise = with_common_noise(normal(shape, *key, "noise"), self.noise.shared, *key, "shared noise")
        if self.noise.offset:
            noise = noise + self.noise.offset * normal((shape[1], 1, 1), *key, "offset")
        return noise


def draw_level(max_level: int, key: Key) -> int:
    return integer(max_level + 1, *key, "level")


def fixed_level(max_level: int, step: int) -> int:
    """Returns the t_s of a validation clip, which `fixed_draw` draws for the batch of this step."""
    return step % (max_level + 1)


def fixed_draw(drawing: Drawing, batch: Batch) -> Draws:
    """Returns the draws for validation, the same for any seed.

    The copies of a clip have timesteps in the middle of equal parts of 0..T-1. They share the frame and t_s, which
    follow from the batch's step, and all have content and all planes of their structure.
    """
    draws = replace(drawing, seed=key("validation"), drop_rate=0.0, drop_planes=0.0).draw(batch)
    copies, steps = len(batch.slots), drawing.noise.steps
    draws.timesteps = torch.tensor([(2 * i + 1) * steps // (2 * copies) for i in range(copies)])
    draws.rounds = [fixed_level(drawing.max_level, batch.step)] * copies
    draws.levels = torch.tensor(draws.rounds)
    draws.frames = draws.frames[:1].expand(copies)
    return draws
