"""Edits a video to the content of an embedding: combines network, guidance, windows and sampler."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gen1_train import keyed
from gen1_train.diffusion.content import content_tokens
from gen1_train.diffusion.guidance import Term, rescaled, terms
from gen1_train.diffusion.prediction import as_v
from gen1_train.diffusion.sampler import SOLVERS, timesteps
from gen1_train.diffusion.sampling import SamplingConfig
from gen1_train.diffusion.schedule import NoiseSchedule, with_common_noise
from gen1_train.diffusion.structure import level_channels
from gen1_train.diffusion.windows import window_starts, window_weights

# network(latents (b, n, c, h, w), timesteps (b,), content (b, 1, d), temporal) -> prediction (b, n, c, h, w)
Network = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


@dataclass(frozen=True)
class Scene:
    """The input of sampling, all for n frames."""

    noise: Tensor  # (n, c, h, w)
    structure: Tensor | None = None  # structure latents at t_s, (n, c, h, w); None before stage 4
    latents: Tensor | None = None  # latents of the input itself, (n, c, h, w): for init_strength and masks
    mask: Tensor | None = None  # (n, 1, h, w): 1 is edited, 0 keeps the input; None: 1 everywhere


def shared_noise(frames: int, window: int, shape: tuple[int, ...], seed: int, shared: float = 0.0) -> Tensor:
    """Returns (frames, *shape) standard normal noise that repeats every `window` frames, so that all windows share it.

    A full window holds each of the `window` draws exactly once, wherever it starts: its noise is as independent as in
    training, and whatever depends on the noise is consistent from window to window. Ours. `shared`: see NoiseConfig.
    """
    draws = torch.stack([keyed.normal(shape, seed, "edit", i) for i in range(min(frames, window))])
    draws = with_common_noise(draws, shared, seed, "edit", "shared")
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
    """Samples k videos with the scene's structure: contents (k, d) -> latents (k, n, c, h, w).

    The network takes `window` frames at once. `negative`, an embedding (d,), replaces the missing content in Eq. 8.
    `on_step` is called once per step, `on_frames` after each call of the network with the number of frames in it.
    """
    predict = GuidedPrediction(network, scene, contents, config, window, negative, on_frames)
    times = timesteps(schedule, config.steps, config.init_strength)
    k, noise = len(contents), scene.noise

    def denoise(z: Tensor, now: Tensor) -> Tensor:
        return as_v(schedule.prediction, z, predict(z, now), *schedule.at(now, z))

    def noised_input(t: int) -> Tensor:
        assert scene.latents is not None
        return schedule.add_noise(scene.latents, noise, torch.full((len(noise),), t, device=noise.device))

    def after_step(z: Tensor, t: int | None) -> Tensor:
        on_step()
        if scene.mask is None or scene.latents is None:
            return z
        return torch.lerp(scene.latents if t is None else noised_input(t), z, scene.mask)

    start = noise if config.init_strength >= 1 else noised_input(times[0])
    z = start.expand(k, *start.shape).contiguous()
    return SOLVERS[config.solver](denoise, z, schedule, times, after_step)


class GuidedPrediction:
    """The guided prediction (paper Eq. 8) for videos of any length, in as few passes as possible.

    Passes with the temporal layers run window by window and are blended. Passes without them treat each frame alone,
    so they need no windows and process each frame once. `frames` counts the frames that went through the network.
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
        self.network = network
        self.batch = config.batch
        self.rescale = config.guidance.rescale
        self.window = window
        self.on_frames = on_frames
        n = len(scene.noise)
        self.terms = terms(config.guidance, config.temporal and n > 1)  # an image is a single frame: no temporal layers
        self.structure = structure_input(scene.structure, config.t_s)
        self.starts = window_starts(n, window, config.overlap)
        self.weights = window_weights(self.starts, window, n).to(scene.noise.device)
        self.tokens = content_tokens(contents)  # k 1 d
        empty = torch.zeros_like(self.tokens[:1]) if negative is None else content_tokens(negative[None])
        self.empty = empty.expand_as(self.tokens)
        self.frames = {True: 0, False: 0}  # with and without the temporal layers

    def __call__(self, z: Tensor, times: Tensor) -> Tensor:
        """z (k, n, c, h, w), timesteps (k,) -> the network's prediction of the same shape."""
        guided = torch.zeros_like(z)
        positive = torch.zeros_like(z) if self.rescale and any(term.content for term in self.terms) else None
        for temporal in (True, False):
            chosen = [term for term in self.terms if term.temporal == temporal]
            jobs = list(self._jobs(chosen, temporal, z.shape[1]))
            for part in _equal_parts(jobs, self.batch):
                self._run(part, temporal, z, times, guided, positive)
        return guided if positive is None else rescaled(guided, positive, self.rescale)

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

    def _run(
        self, jobs: list["_Job"], temporal: bool, z: Tensor, times: Tensor, guided: Tensor, positive: Tensor | None
    ) -> None:
        """Runs the jobs as one batch and adds their weighted predictions: all to `guided`, mu(z, c) to `positive`."""
        inputs = torch.stack([z[job.video, job.part] for job in jobs])
        if self.structure is not None:
            inputs = torch.cat([inputs, torch.stack([self.structure[job.part] for job in jobs])], dim=2)
        tokens = torch.stack([(self.tokens if job.term.content else self.empty)[job.video] for job in jobs])
        predictions = self.network(inputs, times[:1].expand(len(jobs)), tokens, temporal)
        self.frames[temporal] += inputs.shape[0] * inputs.shape[1]
        self.on_frames(inputs.shape[0] * inputs.shape[1])
        for job, prediction in zip(jobs, predictions):
            guided[job.video, job.part] += job.term.weight * job.weights[:, None, None, None] * prediction
            if positive is not None and job.term.content:
                positive[job.video, job.part] += job.weights[:, None, None, None] * prediction


def frames_per_step(n: int, videos: int, config: SamplingConfig, window: int) -> int:
    """Returns how many frames go through the network in a step, over all terms, windows and videos of n frames."""
    windowed = len(window_starts(n, window, config.overlap)) * min(window, n)
    return videos * sum(windowed if term.temporal else n for term in terms(config.guidance, config.temporal and n > 1))


@dataclass(frozen=True)
class _Job:
    """One clip through the network."""

    term: Term  # of Eq. 8
    video: int  # index among the k videos
    part: slice  # its frames
    weights: Tensor  # (frames,)


def structure_input(structure: Tensor | None, level: int) -> Tensor | None:
    """Returns the network's input next to z: structure latents (n, c, h, w) -> (n, c + 4, h, w) with the t_s channels.

    None if there is no structure.
    """
    if structure is None:
        return None
    n, _, h, w = structure.shape
    levels = level_channels(torch.tensor([level], device=structure.device), (n, h, w))[0]
    return torch.cat([structure, levels.to(structure.dtype)], dim=1)


def _equal_parts(jobs: list[_Job], most: int) -> Iterator[list[_Job]]:
    """Splits the jobs, in order, into batches of at most `most` clips that all have the same length."""
    part: list[_Job] = []
    for job in jobs:
        if part and (len(part) == most or len(job.weights) != len(part[0].weights)):
            yield part
            part = []
        part.append(job)
    if part:
        yield part
