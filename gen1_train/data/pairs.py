"""Pairs of CLIP embeddings, a caption's and its frames', read once into memory: what the prior learns from.

A sample of a shard set that has a caption is a pair; one without is none. Some captions are held out, by a key, with
all pairs that share them: clips of one video have one caption, and would tell each other.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from gen1_train.batch import SampleError, members_of
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError
from gen1_train.keyed import generator, key, normal, permutation, uniforms

FIELDS = ("text_embedding", "image_embedding")
CAPTIONS = 20  # distinct ones that a set must have, so that some can be held out
SHARE = 10  # at most one of so many pairs is held out


@dataclass
class PairsConfig:
    root: str | None = None  # the shard set, a folder
    batch: int = 1024  # pairs of an optimizer step
    max_pairs: int = 1_000_000  # read into memory; of more a keyed choice. A clip of 8 frames takes 14 KB at d = 768
    held_out: int = 1000  # pairs to validate on, at most; at most a tenth of all


@dataclass(frozen=True)
class Pairs:
    """p captioned samples; pair i has the frames starts[i] to starts[i + 1]."""

    texts: Tensor  # float16 (p, d), as the tower gives them
    frames: Tensor  # float16 (frames of all, d), as the tower gives them
    starts: np.ndarray  # int64 (p + 1,)
    left_out: int = 0  # samples that could not be read

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def hash(self) -> str:
        """sha256 over everything that a batch is made of."""
        digest = hashlib.sha256(self.starts.tobytes())
        for part in (self.texts, self.frames):
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()

    def middle_frames(self) -> Tensor:
        """The embedding of the frame in the middle of each pair: float16 (p, d)."""
        return self.frames[torch.from_numpy((self.starts[:-1] + self.starts[1:]) // 2)]

    def take(self, chosen: np.ndarray) -> "Pairs":
        """The pairs of these numbers, in their order."""
        counts = np.diff(self.starts)[chosen]
        starts = np.concatenate([[0], counts.cumsum()])
        rows = np.repeat(self.starts[chosen] - starts[:-1], counts) + np.arange(starts[-1])
        return Pairs(self.texts[torch.from_numpy(chosen)], self.frames[torch.from_numpy(rows)], starts)


def captioned(shards: ShardSet) -> list[tuple[str, int]]:
    """Pool and number of each sample with a caption, from the indices. Raises UserError when there is none."""
    (member,) = members_of("text_embedding", 1)
    total = sum(pool.samples for pool in shards.manifest.pools.values())
    found = []
    with tqdm(total=total, desc="captions", unit="sample", mininterval=1.0, leave=False) as bar:
        for name, pool in sorted(shards.manifest.pools.items()):
            for index in range(pool.samples):
                try:
                    if member in shards.entry(*shards.locate(name, index)).members:
                        found.append((name, index))
                except SampleError:
                    pass  # a row that cannot be read is no pair; `gen1-data verify` tells of it
                bar.update()
    if not found:
        raise UserError(
            f"no sample of {shards.root} has a caption, so there is nothing to learn a prior from: give the source "
            "captions (clip.txt beside clip.mp4, or a list with a caption column) and make the set again with gen1-data"
        )
    return found


def read_pairs(shards: ShardSet, places: Sequence[tuple[str, int]], config: PairsConfig) -> Pairs:
    """Reads the pairs at these places, or a keyed choice of max_pairs of them.

    Samples that cannot be read are counted and left out. Raises UserError when the widths differ, or too few are left.
    """
    if len(places) > config.max_pairs:
        order = permutation(len(places), "pairs")
        places = [places[i] for i in sorted(map(order, range(config.max_pairs)))]
    texts, images, left_out = [], [], 0
    for place in tqdm(places, desc="pairs", unit="pair", mininterval=1.0, leave=False):
        try:
            sample = shards.read(*place, FIELDS)
        except SampleError as error:
            left_out += 1
            print(f"gen1-train: warning: a pair is left out: {error}", flush=True)
            continue
        assert sample.text_embedding is not None and sample.image_embedding is not None
        check_widths(shards, sample.text_embedding.shape[-1], sample.image_embedding.shape[-1])
        texts.append(sample.text_embedding)
        images.append(sample.image_embedding)
    if not texts:
        raise UserError(f"none of the {len(places)} pairs of {shards.root} can be read: copy the set again")
    starts = np.cumsum([0, *map(len, images)])
    return Pairs(torch.from_numpy(np.stack(texts)), torch.from_numpy(np.concatenate(images)), starts, left_out)


def check_widths(shards: ShardSet, text: int, image: int) -> None:
    """Raises UserError when embeddings are not of the width that the set's CLIP has, which is one for both."""
    width = shards.manifest.estimators["clip"]["width"]
    if not text == image == width:
        raise UserError(
            f"in {shards.root} a text embedding has width {text} and an image embedding {image}, its CLIP has {width}: "
            "they have to be of one CLIP model; make the set again with gen1-data"
        )


def split(pairs: Pairs, held_out: int) -> tuple[Pairs, Pairs]:
    """Pairs to train on and pairs to validate on, no caption in both; a set's captions are the same ones in every run.

    As many captions as make `held_out` pairs, or a tenth of all. Raises UserError when there are too few captions.
    """
    captions = [hashlib.sha256(text.tobytes()).hexdigest() for text in pairs.texts.numpy()]
    order = sorted(set(captions), key=lambda caption: key("held out", caption))
    if len(order) < CAPTIONS:
        raise UserError(
            f"{len(pairs)} pairs with {len(order)} different captions are too few to train a prior and to hold some "
            f"out: caption more samples, at least {CAPTIONS} differently"
        )
    wanted = max(1, min(held_out, len(pairs) // SHARE))
    members: dict[str, list[int]] = {caption: [] for caption in order}
    for number, caption in enumerate(captions):
        members[caption].append(number)
    chosen: list[int] = []
    for caption in order:
        if chosen and len(chosen) + len(members[caption]) > wanted:
            break
        chosen += members[caption]
    validating = np.isin(np.arange(len(pairs)), chosen)
    training = np.flatnonzero(~validating)
    return pairs.take(training), pairs.take(np.flatnonzero(validating))


@lru_cache(maxsize=2)
def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """A keyed permutation of range(size): int64 (size,)."""
    return np.argsort(uniforms(0, size, seed, "pairs", epoch), kind="stable")


def numbers_at(size: int, seed: int, step: int, batch: int) -> np.ndarray:
    """The pairs that a step reads, of `size`: int64 (batch,). Every pair comes once an epoch, whatever the batch."""
    places = np.arange(step * batch, (step + 1) * batch)
    return np.concatenate(
        [epoch_order(size, seed, e)[places[places // size == e] % size] for e in np.unique(places // size).tolist()]
    )


class PairBatches(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Step -> its batch, a pure function of (seed, step): all that is random about a training step is drawn here."""

    def __init__(self, pairs: Pairs, seed: int, batch: int, timesteps: int, drop_text: float) -> None:
        self.pairs, self.seed, self.batch = pairs, seed, batch
        self.timesteps, self.drop_text = timesteps, drop_text

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """texts, images (b, d) float32 as CLIP has them; timesteps (b,); dropped (b,) bool; noise (b, d)."""
        b, drawn = self.batch, (self.seed, step)
        numbers = numbers_at(len(self.pairs), self.seed, step, b)
        first, end = self.pairs.starts[numbers], self.pairs.starts[numbers + 1]
        # a keyed frame of each; a number next to 1 is 1 in float64
        frames = np.minimum(first + (uniforms(0, b, *drawn, "frame") * (end - first)).astype(np.int64), end - 1)
        return {
            "texts": self.pairs.texts[torch.from_numpy(numbers)].float(),
            "images": self.pairs.frames[torch.from_numpy(frames)].float(),
            "timesteps": torch.randint(self.timesteps, (b,), generator=generator(*drawn, "timestep")),
            "dropped": torch.from_numpy(uniforms(0, b, *drawn, "drop") < self.drop_text),
            "noise": normal((b, self.pairs.texts.shape[1]), *drawn, "noise"),
        }
