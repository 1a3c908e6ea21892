"""Edits a video to the content of an embedding: combines network, guidance, windows and sampler."""

from collections.abc import Callable, Iterator, Sequence
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
from gen1_train.diffusion.windows import Window, consecutive, overlapping, windows_over

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
    area: tuple[int, int] | None = None,
    shorter: Sequence[int] = (),
) -> Tensor:
    """Samples k videos with the scene's structure: contents (k, d) -> latents (k, n, c, h, w).

    The network takes `window` frames at once, and of each the rows and columns of latents in `area` (None: all).
    `shorter`: numbers of frames that it has learned to take as well, see `window_places`.
    `negative`, an embedding (d,), replaces the missing content in Eq. 8.
    `on_step` is called once per step, `on_frames` after each call of the network with the number of frames in it.
    """
    predict = GuidedPrediction(network, scene, contents, config, window, negative, on_frames, area, shorter)
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
    """The guided prediction (paper Eq. 8) for videos of any length and size, in as few passes as possible.

    Passes run window by window and are blended. Those without the temporal layers treat each frame alone, so their
    windows do not overlap in time. `frames` counts the frames, or parts of frames, that went through the network.
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
        area: tuple[int, int] | None = None,
        shorter: Sequence[int] = (),
    ) -> None:
        """`window`, `area`: frames, and rows and columns of latents, that the network takes at once; None: all.

        `shorter`: see `sample_video`.
        """
        self.network = network
        self.batch = config.batch
        self.rescale = config.guidance.rescale
        self.on_frames = on_frames
        n, _, height, width = scene.noise.shape
        self.terms = terms(config.guidance, config.temporal and n > 1)  # an image is a single frame: no temporal layers
        self.structure = structure_input(scene.structure, config.t_s)
        self.windows = {
            temporal: [
                Window(each.part, each.weights.to(scene.noise.device))
                for each in windows_of((n, height, width), window, area, config, temporal, shorter)
            ]
            for temporal in {term.temporal for term in self.terms}
        }
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
            jobs = list(self._jobs(chosen, temporal))
            for part in _equal_parts(jobs, self.batch):
                self._run(part, temporal, z, times, guided, positive)
        return guided if positive is None else rescaled(guided, positive, self.rescale)

    def _jobs(self, chosen: list[Term], temporal: bool) -> Iterator["_Job"]:
        for video in range(len(self.tokens)):
            for window in self.windows.get(temporal, []):
                for term in chosen:
                    yield _Job(term, video, window)

    def _run(
        self, jobs: list["_Job"], temporal: bool, z: Tensor, times: Tensor, guided: Tensor, positive: Tensor | None
    ) -> None:
        """Runs the jobs as one batch and adds their weighted predictions: all to `guided`, mu(z, c) to `positive`."""
        inputs = torch.stack([part_of(z[job.video], job.window) for job in jobs])
        if self.structure is not None:
            structure = torch.stack([part_of(self.structure, job.window) for job in jobs])
            inputs = torch.cat([inputs, structure], dim=2)
        tokens = torch.stack([(self.tokens if job.term.content else self.empty)[job.video] for job in jobs])
        predictions = self.network(inputs, times[:1].expand(len(jobs)), tokens, temporal)
        self.frames[temporal] += inputs.shape[0] * inputs.shape[1]
        self.on_frames(inputs.shape[0] * inputs.shape[1])
        for job, prediction in zip(jobs, predictions):
            part_of(guided[job.video], job.window).add_(job.term.weight * job.window.weights * prediction)
            if positive is not None and job.term.content:
                part_of(positive[job.video], job.window).add_(job.window.weights * prediction)


def part_of(video: Tensor, window: Window) -> Tensor:
    """Returns the view of a video (n, c, h, w) in a window."""
    frames, rows, columns = window.part
    return video[frames, :, rows, columns]


def windows_of(
    shape: tuple[int, int, int],
    window: int,
    area: tuple[int, int] | None,
    config: SamplingConfig,
    temporal: bool,
    shorter: Sequence[int] = (),
) -> Iterator[Window]:
    """Yields the windows over a video of `shape`: frames, rows and columns of latents.

    `window`, `area`, `shorter`: see `sample_video`. Without the `temporal` layers, frames do not see each other, so
    windows do not overlap in time.
    """
    time = overlapping(shape[0], window, config.overlap, shorter) if temporal else consecutive(shape[0], window)
    rows, columns = (
        overlapping(length, side, min(side - 1, round(config.space_overlap * side)))
        for length, side in zip(shape[1:], area or shape[1:])
    )
    return windows_over(time, rows, columns)


def frames_per_step(
    shape: tuple[int, int, int],
    videos: int,
    config: SamplingConfig,
    window: int,
    area: tuple[int, int] | None = None,
    shorter: Sequence[int] = (),
) -> int:
    """Returns how many frames go through the network in a step, over all terms, windows and videos of a shape.

    `shape`: frames, rows and columns of latents. Parts of a frame in several windows count as frames of their own.
    """
    chosen = terms(config.guidance, config.temporal and shape[0] > 1)
    counts = {
        temporal: sum(len(window.weights) for window in windows_of(shape, window, area, config, temporal, shorter))
        for temporal in {term.temporal for term in chosen}
    }
    return videos * sum(counts[term.temporal] for term in chosen)


@dataclass(frozen=True)
class _Job:
    """One clip through the network."""

    term: Term  # of Eq. 8
    video: int  # index among the k videos
    window: Window


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
        if part and (len(part) == most or len(job.window.weights) != len(part[0].window.weights)):
            yield part
            part = []
        part.append(job)
    if part:
        yield part
