"""Pairs of CLIP embeddings, of a caption and its frames, read once into memory: the training data of the prior.

Every sample of a shard set that has a caption is a pair. Captions are held out by a key, with all pairs that share
them: the clips of a video share its caption, so splitting them would leak the training data into validation.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from gen1_train.batch import SampleError, members_of
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError, check_positive
from gen1_train.keyed import generator, key, normal, permutation, uniforms
from gen1_train.system.console import progress

FIELDS = ("text_embedding", "image_embedding")
MIN_CAPTIONS = 20  # distinct captions that a set must have, so that some can be held out; ours
HELD_OUT_DIVISOR = 10  # at most one in ten pairs is held out; ours

logger = logging.getLogger(__name__)


@dataclass
class PairsConfig:
    root: str | None = None  # the shard set, a folder
    batch: int = 1024  # pairs of an optimizer step
    max_pairs: int = 1_000_000  # read into memory, a keyed choice if there are more; 8 frames take 14 KB at d = 768
    held_out: int = 1000  # pairs to validate on, at most; never over a tenth of all, but one caption's at least

    def check(self) -> None:
        """Raises UserError for an invalid setting."""
        check_positive(data__batch=self.batch, data__max_pairs=self.max_pairs, data__held_out=self.held_out)


@dataclass(frozen=True)
class Pairs:
    """p captioned samples; pair i has frames starts[i] to starts[i + 1] - 1."""

    texts: Tensor  # float16 (p, d), as CLIP returns them
    frames: Tensor  # float16 (frames of all pairs, d), as CLIP returns them
    starts: np.ndarray  # int64 (p + 1,)
    unreadable: int = 0  # samples that could not be read and were left out

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def hash(self) -> str:
        """sha256 over all embeddings and their assignment to pairs."""
        digest = hashlib.sha256(self.starts.tobytes())
        for part in (self.texts, self.frames):
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()

    def middle_frames(self) -> Tensor:
        """Returns the embedding of each pair's middle frame: float16 (p, d)."""
        return self.frames[torch.from_numpy((self.starts[:-1] + self.starts[1:]) // 2)]

    def take(self, indices: np.ndarray) -> "Pairs":
        """Returns the pairs at these indices, in their order."""
        counts = np.diff(self.starts)[indices]
        starts = np.concatenate([[0], counts.cumsum()])
        rows = np.repeat(self.starts[indices] - starts[:-1], counts) + np.arange(starts[-1])
        return Pairs(self.texts[torch.from_numpy(indices)], self.frames[torch.from_numpy(rows)], starts)


def find_captioned(shards: ShardSet) -> list[tuple[str, int]]:
    """Returns pool and index of each captioned sample, from the shards' indices. Raises UserError if there is none."""
    (member,) = members_of("text_embedding", 1)
    total = sum(pool.samples for pool in shards.manifest.pools.values())
    captioned = []
    with progress(title="captions", unit="sample", total=total, keep=False) as bar:
        for name, pool in sorted(shards.manifest.pools.items()):
            for index in range(pool.samples):
                try:
                    if member in shards.entry(*shards.locate(name, index)).members:
                        captioned.append((name, index))
                except SampleError:
                    pass  # a sample whose row cannot be read is not a pair; `gen1-data verify` reports it
                bar.update()
    if not captioned:
        raise UserError(
            f"no sample of {shards.root} has a caption, but a prior needs captions: add them to the source (clip.txt "
            "next to clip.mp4, or a list with a caption column) and make the set again with gen1-data, or let a "
            "network make them: gen1-data refresh layer=caption recipe.caption=blip"
        )
    return captioned


def read_pairs(shards: ShardSet, samples: Sequence[tuple[str, int]], config: PairsConfig) -> Pairs:
    """Reads the pairs of `samples` (pool, index), or of a keyed choice of max_pairs of them.

    Samples that cannot be read are counted and left out. Raises UserError if embeddings have different widths, or if no
    sample can be read.
    """
    if len(samples) > config.max_pairs:
        order = permutation(len(samples), "pairs")
        samples = [samples[i] for i in sorted(map(order, range(config.max_pairs)))]
    texts = []
    images = []
    unreadable = 0
    for pool, index in progress(samples, title="pairs", unit="pair", keep=False):
        try:
            sample = shards.read(pool, index, FIELDS)
        except SampleError as error:
            unreadable += 1
            logger.warning(f"a pair is left out: {error}")
            continue
        assert sample.text_embedding is not None and sample.image_embedding is not None
        check_widths(shards, sample.text_embedding.shape[-1], sample.image_embedding.shape[-1])
        texts.append(sample.text_embedding)
        images.append(sample.image_embedding)
    if not texts:
        raise UserError(f"none of the {len(samples)} pairs of {shards.root} can be read: copy the set again")
    starts = np.cumsum([0, *map(len, images)])
    return Pairs(torch.from_numpy(np.stack(texts)), torch.from_numpy(np.concatenate(images)), starts, unreadable)


def check_widths(shards: ShardSet, text: int, image: int) -> None:
    """Raises UserError unless both embeddings have the width of the set's CLIP."""
    width = shards.manifest.estimators["clip"]["width"]
    if not text == image == width:
        raise UserError(
            f"in {shards.root} a text embedding has width {text} and an image embedding {image}, but its CLIP has "
            f"{width}: they must come from the same CLIP model, make the set again with gen1-data"
        )


def split(pairs: Pairs, held_out: int) -> tuple[Pairs, Pairs]:
    """Splits pairs into training and validation pairs that share no caption, the same way in every run.

    At most `held_out` pairs, and a tenth of all, are held out, but at least those of one caption. Raises UserError for
    too few captions.
    """
    captions = [hashlib.sha256(text.tobytes()).hexdigest() for text in pairs.texts.numpy()]
    order = sorted(set(captions), key=lambda caption: key("held out", caption))
    if len(order) < MIN_CAPTIONS:
        raise UserError(
            f"{len(pairs)} pairs with {len(order)} different captions are too few to train a prior and to hold some "
            f"out: caption more samples, with at least {MIN_CAPTIONS} different captions"
        )
    limit = max(1, min(held_out, len(pairs) // HELD_OUT_DIVISOR))
    members: dict[str, list[int]] = {caption: [] for caption in order}
    for number, caption in enumerate(captions):
        members[caption].append(number)
    chosen: list[int] = []
    for caption in order:
        if chosen and len(chosen) + len(members[caption]) > limit:
            break
        chosen += members[caption]
    validating = np.isin(np.arange(len(pairs)), chosen)
    training = np.flatnonzero(~validating)
    return pairs.take(training), pairs.take(np.flatnonzero(validating))


@lru_cache(maxsize=2)
def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """Returns a keyed permutation of range(size): int64 (size,)."""
    return np.argsort(uniforms(0, size, seed, "pairs", epoch), kind="stable")


def pair_indices(size: int, seed: int, step: int, batch: int) -> np.ndarray:
    """Returns the indices, below `size`, of the pairs that a step reads: int64 (batch,).

    Every pair comes once per epoch, for any batch size.
    """
    uses = np.arange(step * batch, (step + 1) * batch)
    return np.concatenate(
        [epoch_order(size, seed, e)[uses[uses // size == e] % size] for e in np.unique(uses // size).tolist()]
    )


class PairBatches(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Maps a step to its batch, a pure function of (seed, step). All random draws of a training step are made here."""

    def __init__(self, pairs: Pairs, seed: int, batch: int, timesteps: int, drop_text: float) -> None:
        """`timesteps` of the noise schedule; `drop_text`: share of the texts that are dropped."""
        self.pairs = pairs
        self.seed = seed
        self.batch = batch
        self.timesteps = timesteps
        self.drop_text = drop_text

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """Returns texts and images, (b, d) float32 as from CLIP; timesteps (b,); dropped (b,) bool; noise (b, d)."""
        b = self.batch
        step_key = (self.seed, step)
        indices = pair_indices(len(self.pairs), self.seed, step, b)
        first, end = self.pairs.starts[indices], self.pairs.starts[indices + 1]
        # a keyed frame of each pair; limited, because numbers just below 1 round to 1.0 in float64
        frames = np.minimum(first + (uniforms(0, b, *step_key, "frame") * (end - first)).astype(np.int64), end - 1)
        return {
            "texts": self.pairs.texts[torch.from_numpy(indices)].float(),
            "images": self.pairs.frames[torch.from_numpy(frames)].float(),
            "timesteps": torch.randint(self.timesteps, (b,), generator=generator(*step_key, "timestep")),
            "dropped": torch.from_numpy(uniforms(0, b, *step_key, "drop") < self.drop_text),
            "noise": normal((b, self.pairs.texts.shape[1]), *step_key, "noise"),
        }
