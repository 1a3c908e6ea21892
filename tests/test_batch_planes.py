"""Structures of several planes in samples and batches, and structures that only some samples of a batch need."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from gen1_train.batch import (
    Pool,
    SampleError,
    collate,
    decode_sample,
    encode_sample,
    members_of,
    split_planes,
    validate,
)
from tests.made import make_sample

VIDEO, IMAGE = Pool("video", 24, 16, 3), Pool("image", 24, 16, 1)


def with_planes(key: str, pool: Pool, seed: int, planes: int):
    shape = (pool.frames, planes, pool.height, pool.width)
    structure = np.random.default_rng(seed).integers(0, 65536, shape, dtype=np.uint16)
    return replace(make_sample(key, pool, seed), structure=structure)


@pytest.mark.parametrize("pool", [VIDEO, IMAGE])
@pytest.mark.parametrize("planes", [2, 3])
def test_planes_round_trip_exactly_in_one_picture_per_frame(pool: Pool, planes: int) -> None:
    sample = with_planes("k", pool, 5, planes)
    members = encode_sample(sample)
    assert [name for name in members if name.endswith(".png")] == members_of("structure", pool.frames)
    image = Image.open(io.BytesIO(members["structure00.png"]))
    assert (image.mode, image.size) == ("I;16", (24, planes * 16))
    decoded = decode_sample("k", members, pool)
    assert np.array_equal(decoded.structure, sample.structure) and decoded.structure.dtype == np.uint16
    validate(decoded, pool)


def test_a_single_plane_is_stored_as_ever() -> None:
    sample = make_sample("k", VIDEO, 1)
    decoded = decode_sample("k", encode_sample(sample), VIDEO)
    assert decoded.structure.shape == (3, 16, 24) and np.array_equal(decoded.structure, sample.structure)


@pytest.mark.parametrize("shape", [(3, 4, 16, 24), (3, 2, 15, 24), (3, 40, 24), (2, 2, 16, 24), (3, 2, 16, 23)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    maps = np.zeros(shape, np.uint16)
    with pytest.raises(SampleError, match="structure is uint16"):
        structure = split_planes(maps.reshape(len(maps), -1, shape[-1]), VIDEO)
        validate(replace(make_sample("k", VIDEO, 0), structure=structure), VIDEO)


def test_collate_stacks_the_structure_of_the_samples_that_have_it() -> None:
    samples = [with_planes(f"k{seed}", VIDEO, seed, 2) for seed in range(3)]
    whole = collate("video", 0, [0, 1, 2], samples)
    assert whole.structure.shape == (3, 3, 2, 16, 24) and whole.structure_rows is None
    some = collate("video", 0, [0, 1, 2], [replace(samples[0], structure=None), *samples[1:]])
    assert some.structure_rows == [1, 2] and torch.equal(some.structure, whole.structure[1:])
    assert torch.equal(some.structure_latents, whole.structure_latents)
    moved = some.to(torch.device("cpu"))
    assert moved.structure_rows == [1, 2] and 0 <= moved.structure.min() and moved.structure.max() <= 1
    none = collate("video", 0, [0], [replace(samples[0], structure=None)])
    assert none.structure is None and none.structure_rows is None
