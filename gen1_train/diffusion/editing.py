"""A video in the content of an embedding: network, guidance, windows and sampler put together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gen1_train import keyed
from gen1_train.diffusion.content import content_tokens
from gen1_train.diffusion.guidance import GuidanceConfig, Term, terms
from gen1_train.diffusion.sampler import SOLVERS, timesteps
from gen1_train.diffusion.schedule import NoiseSchedule
from gen1_train.diffusion.structure import level_channels
from gen1_train.diffusion.windows import window_starts, window_weights

# network(latents (b, n, c, h, w), timesteps (b,), content (b, 1, d), temporal) -> v (b, n, c, h, w)
Network = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


@dataclass
class SamplingConfig:
    """All values are ours: the paper gives none."""

    steps: int = 50  # of the sampler
    solver: str = "ddim"  # or dpm++: the same quality in fewer steps
    t_s: int = 0  # rounds of blur on the structure, 0..7: higher is freer
    seed: int = 0  # of the noise: same seed, same frames
    init_strength: float = 1.0  # 1: from pure noise; less: from the input, noised for that share of the steps
    temporal: bool = True  # false: each frame alone, the temporal layers are off in all terms
    overlap: int = 4  # frames that two neighbouring windows share, in videos longer than a window
    batch: int = 4  # windows that go through the UNet at a time: bounds memory, changes no picture
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)


@dataclass(frozen=True)
class Scene:
    """What sampling has of the input, all for n frames."""

    noise: Tensor  # (n, c, h, w)
    structure: Tensor | None = None  # its latents at t_s, (n, c, h, w); None before stage 4
    latents: Tensor | None = None  # of the input itself, (n, c, h, w): for init_strength and masks
    mask: Tensor | None = None  # (n, 1, h, w): 1 where it is edited, 0 where the input stays; None: everywhere 1


def shared_noise(frames: int, window: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """(frames, *shape) standard normal noise that comes again every `window` frames, so that all windows share it.

    Whichever frames a full window holds, it holds each of the `window` draws once: its noise is as independent as in
    training, and what depends on the noise is alike from window to window. Ours.
    """
    draws = torch.stack([keyed.normal(shape, seed, "edit", i) for i in range(min(frames, window))])
    return draws[torch.arange(frames) % window]


def sample_video(
    network: Network,
    scene: Scene,
    contents: Tensor,
    schedule: NoiseSchedule,
    config: SamplingConfig,
    window: int,
    negative: Tensor | None = None,
    on_step: Callable[[], object] = lambda: None,
    on_frames: Callable[[int], object] = lambda frames: None,
) -> Tensor:
    """Contents (k, d) -> k videos of the scene's structure, latents (k, n, c, h, w).

    The network takes `window` frames at once. `negative`, an embedding (d,), stands where Eq. 8 has no content.
    `on_step` is called once a step, `on_frames` after each call of the network with the frames that it was given.
    """
    passes = Passes(network, scene, contents, config, window, negative, on_frames)
    times = timesteps(schedule, config.steps, config.init_strength)
    k, noise = len(contents), scene.noise

    def at(t: int) -> Tensor:
        """The input's latents at timestep t."""
        assert scene.latents is not None
        return schedule.add_noise(scene.latents, noise, torch.full((len(noise),), t, device=noise.device))

    def after(z: Tensor, t: int | None) -> Tensor:
        on_step()
        if scene.mask is None or scene.latents is None:
            return z
        return torch.lerp(scene.latents if t is None else at(t), z, scene.mask)

    start = noise if config.init_strength >= 1 else at(times[0])
    z = start.expand(k, *start.shape).contiguous()
    return SOLVERS[config.solver](passes, z, schedule, times, after)


class Passes:
    """The guided prediction (paper Eq. 8) for videos of any length, in as few passes as it takes.

    Passes with the temporal layers go window by window and are blended. Those without see each frame alone, so that
    windows mean nothing to them and they take each frame once. `frames` counts frames that went through the network.
    """

    def __init__(
        self,
        network: Network,
        scene: Scene,
        contents: Tensor,
        config: SamplingConfig,
        window: int,
        negative: Tensor | None = None,
        on_frames: Callable[[int], object] = lambda frames: None,
    ) -> None:
        self.network, self.batch, self.window, self.on_frames = network, config.batch, window, on_frames
        n = len(scene.noise)
        self.terms = terms(config.guidance, config.temporal and n > 1)  # an image is a frame alone
        self.extra = condition(scene.structure, config.t_s)
        device = scene.noise.device
        self.starts = window_starts(n, window, config.overlap)
        self.weights = window_weights(self.starts, window, n).to(device)
        self.tokens = content_tokens(contents)  # k 1 d
        empty = torch.zeros_like(self.tokens[:1]) if negative is None else content_tokens(negative[None])
        self.empty = empty.expand_as(self.tokens)
        self.frames = {True: 0, False: 0}  # by whether the temporal layers took part

    def __call__(self, z: Tensor, times: Tensor) -> Tensor:
        """z (k, n, c, h, w), timesteps (k,) -> v of the same shape."""
        v = torch.zeros_like(z)
        for temporal in (True, False):
            chosen = [term for term in self.terms if term.temporal == temporal]
            jobs = list(self._jobs(chosen, temporal, z.shape[1]))
            for part in _equal_parts(jobs, self.batch):
                self._run(part, temporal, z, times, v)
        return v

    def _jobs(self, chosen: list[Term], temporal: bool, n: int) -> Iterator["_Job"]:
        for video in range(len(self.tokens)):
            if temporal:
                for start, weights in zip(self.starts, self.weights):
                    for term in chosen:
                        yield _Job(term, video, slice(start, min(start + self.window, n)), weights)
            else:
                for start in range(0, n, self.window):
                    for term in chosen:
                        part = slice(start, min(start + self.window, n))
                        yield _Job(term, video, part, torch.ones_like(self.weights[0])[: part.stop - part.start])

    def _run(self, jobs: list["_Job"], temporal: bool, z: Tensor, times: Tensor, v: Tensor) -> None:
        """Predicts what the jobs ask for, all at once, and adds it to `v`."""
        inputs = torch.stack([z[job.video, job.part] for job in jobs])
        if self.extra is not None:
            inputs = torch.cat([inputs, torch.stack([self.extra[job.part] for job in jobs])], dim=2)
        tokens = torch.stack([(self.tokens if job.term.content else self.empty)[job.video] for job in jobs])
        made = self.network(inputs, times[:1].expand(len(jobs)), tokens, temporal)
        self.frames[temporal] += inputs.shape[0] * inputs.shape[1]
        self.on_frames(inputs.shape[0] * inputs.shape[1])
        for job, prediction in zip(jobs, made):
            v[job.video, job.part] += job.term.weight * job.weights[:, None, None, None] * prediction


def frames_per_step(n: int, videos: int, config: SamplingConfig, window: int) -> int:
    """How many frames go through the network in a step, over all terms, windows and videos of n frames."""
    found = terms(config.guidance, config.temporal and n > 1)
    windows = len(window_starts(n, window, config.overlap)) * min(window, n)
    return videos * sum(windows if term.temporal else n for term in found)


@dataclass(frozen=True)
class _Job:
    """One clip through the network: which term of Eq. 8, of which video, which frames, and their weights (frames,)."""

    term: Term
    video: int
    part: slice
    weights: Tensor


def condition(structure: Tensor | None, level: int) -> Tensor | None:
    """What the network sees beside z: structure latents (n, c, h, w) and the channels of t_s, (n, c + 4, h, w)."""
    if structure is None:
        return None
    n, _, h, w = structure.shape
    levels = level_channels(torch.tensor([level], device=structure.device), (n, h, w))[0]
    return torch.cat([structure, levels.to(structure.dtype)], dim=1)


def _equal_parts(jobs: list[_Job], most: int) -> Iterator[list[_Job]]:
    """The jobs in their order, at most so many at a time, and in each part clips of one length."""
    part: list[_Job] = []
    for job in jobs:
        if part and (len(part) == most or len(job.weights) != len(part[0].weights)):
            yield part
            part = []
        part.append(job)
    if part:
        yield part
