"""Runs clips through the networks into members of a tar, with threads for each network and for the encoding.

    reader threads -> structure ─┬─> encoder threads -> samples, in the order in which the clips came
                   -> latents  <─┘
                   -> captions -> CLIP

So the slowest of them sets the pace. No queue is long: memory is bounded by a few batches.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch

from data_tools.estimate import LAYERS, Estimators
from data_tools.stats import CAPTIONED_BY
from gen1_train.batch import Pool, Sample, SampleError, encode_sample, latent_level, validate
from gen1_train.frozen.structure.combined import count_empty
from gen1_train.system.processes import cores

EMPTY_FRAMES = "empty_frames"  # in a sample's meta: how many of its frames have a structure of only 0
AHEAD = 3  # batches that may be in progress at a time


@dataclass
class Clip:
    """Frames that become a sample; an image is a clip of one frame."""

    key: str
    pool: Pool
    frames: np.ndarray  # uint8 (n, h, w, 3), of the pool's size
    caption: str | None
    meta: dict[str, Any]
    structure: np.ndarray | None = None  # uint16 (n, h, w) or (n, p, h, w); given if it is not to be estimated
    kept: dict[str, bytes] = field(default_factory=dict)  # existing members that stay as they are


@dataclass
class ProcessedClip:
    """A clip that went through the networks: its members as bytes, or the error."""

    clip: Clip
    members: dict[str, bytes] = field(default_factory=dict)
    error: SampleError | None = None
    empty_frames: int | None = None  # with a structure of only 0; None: not counted, see `StructureEstimator.subject`
    made_caption: bool = False  # whether a network made the caption


class Pipeline:
    """Context manager that holds a thread for each network and several for encoding."""

    def __init__(
        self,
        estimators: Estimators,
        jpeg_quality: int,
        layers: Collection[str] = LAYERS,
        encoders: int | None = None,
    ) -> None:
        """`layers`: what to compute; the rest is not touched. `encoders`: number of threads; None: up to four."""
        self.estimators = estimators
        self.jpeg_quality = jpeg_quality
        makes = {"latents": estimators.recipe.latents, "caption": estimators.captioner is not None}
        self.layers = [name for name in layers if makes.get(name, True)]
        self._encoders = encoders or min(4, cores())
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._structure = self._threads(1)
        self._clip = self._threads(1)
        self._captions = self._threads(1)
        self._latents = self._threads(1)
        self._encode = self._threads(self._encoders)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _threads(self, count: int) -> ThreadPoolExecutor:
        """Returns threads in which torch uses one core each.

        Sums then have one order, so the bytes are the same for any number of workers. Threads that share cores would
        also wait for each other, which costs ten times the work.
        """
        pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
        self._stack.callback(pool.shutdown, cancel_futures=True)
        return pool

    def run(self, items: Iterable[Clip | Any]) -> Iterator[ProcessedClip | Any]:
        """Yields a ProcessedClip for every Clip and every other item as it is, in the order of the input."""
        waiting: deque[Callable[[], list[Any]]] = deque()
        batch: list[Clip] = []

        def flush() -> None:
            if batch:
                futures = self._submit(list(batch))
                waiting.append(lambda: [future.result() for future in futures])
                batch.clear()

        for item in items:
            if not isinstance(item, Clip):
                flush()
                waiting.append(lambda item=item: [item])  # type: ignore[misc]
            else:
                if batch and batch[0].pool != item.pool:
                    flush()
                batch.append(item)
                if len(batch) == self.estimators.batch:
                    flush()
            while len(waiting) > AHEAD:
                yield from waiting.popleft()()
        flush()
        while waiting:
            yield from waiting.popleft()()

    def _submit(self, clips: list[Clip]) -> list[Future[ProcessedClip]]:
        """Submits a batch of one pool to all threads."""
        estimators = self.estimators
        frames = np.stack([clip.frames for clip in clips])
        shared: dict[str, Future[Any]] = {}
        texts: dict[str, Future[Any]] = {}
        if "structure" in self.layers:
            shared["structure"] = self._structure.submit(estimators.maps, frames)
        if "latents" in self.layers:
            shared["moments"] = self._latents.submit(estimators.moments, frames)
        if "clip" in self.layers:
            shared["image_embedding"] = self._clip.submit(estimators.image_embeddings, frames)
            captions = sorted({clip.caption for clip in clips if clip.caption is not None})
            texts = {caption: self._clip.submit(estimators.text_embedding, caption) for caption in captions}
        if "caption" in self.layers and (rows := [row for row, clip in enumerate(clips) if clip.caption is None]):
            shared["captions"] = self._captions.submit(lambda: dict(zip(rows, estimators.captions(frames[rows]))))
        return [self._encode.submit(self._process, clip, row, shared, texts) for row, clip in enumerate(clips)]

    def _process(
        self, clip: Clip, row: int, shared: dict[str, Future[Any]], texts: dict[str, Future[Any]]
    ) -> ProcessedClip:
        """Waits for the networks, checks the sample against the contract and encodes its new members."""
        try:
            sample = self._sample(clip, row, shared, texts)
            validate(replace(sample, frames=clip.frames), clip.pool)
            kept = clip.kept
            if sample.structure_latent is not None:  # of another structure or autoencoder, or at more t_s than now
                kept = {name: data for name, data in kept.items() if latent_level(name.removesuffix(".npy")) is None}
            members = {**kept, **encode_sample(sample, self.jpeg_quality)}
            meta = sample.meta or {}
            made_caption = clip.caption is None and CAPTIONED_BY in meta
            return ProcessedClip(clip, members, empty_frames=meta.get(EMPTY_FRAMES), made_caption=made_caption)
        except SampleError as error:
            return ProcessedClip(clip, error=error)

    def _sample(self, clip: Clip, row: int, shared: dict[str, Future[Any]], texts: dict[str, Future[Any]]) -> Sample:
        """Returns the new fields of one sample. Raises SampleError."""
        estimators = self.estimators
        sample = Sample(clip.key, None if clip.kept else clip.frames, meta=clip.meta)
        sample.caption = None if clip.kept else clip.caption
        structure = clip.structure
        if "structure" in shared:
            result = shared["structure"].result()[row]
            if isinstance(result, SampleError):
                raise result
            structure, extent = result
            kind, normalise = estimators.recipe.structure, estimators.structure.normalisation
            sample.meta = {**clip.meta, "structure": kind, "normalise": normalise, "structure_range": extent}
            sample.meta.pop(EMPTY_FRAMES, None)  # of an earlier structure
            if (empty := count_empty(estimators.structure, torch.from_numpy(structure > 0))) is not None:
                sample.meta[EMPTY_FRAMES] = empty
            sample.structure = structure
        if structure is not None and estimators.recipe.latents and {"structure", "latents"} & set(self.layers):
            recipe = estimators.recipe
            encoded = [
                self._latents.submit(estimators.structure_latents, structure, level, recipe.degradation)
                for level in range(recipe.stored_level + 1)
            ]
            sample.structure_latent, *degraded = (future.result() for future in encoded)
            sample.degraded_latents = dict(enumerate(degraded, start=1))
        for name in ("moments", "image_embedding"):
            if name in shared:
                setattr(sample, name, shared[name].result()[row])
        if clip.caption in texts:
            sample.text_embedding = texts[clip.caption].result()
        if "captions" in shared and (caption := shared["captions"].result().get(row)):
            sample.caption = caption
            sample.text_embedding = self._clip.submit(estimators.text_embedding, caption).result()
            sample.meta = {**(sample.meta or {}), CAPTIONED_BY: estimators.recipe.caption}
        return sample
