"""Structure latents of all levels: cached equals online, and only the drawn level is read."""

import dataclasses
from functools import cache, partial

import numpy as np
import pytest
import torch

from data_tools.estimate import Estimators
from gen1_train.batch import STRUCTURE_MAX, Batch, Pool, Sample, latent_field
from gen1_train.data.loader import BatchDataset, BatchPartition
from gen1_train.data.schedule import Schedule, Settings
from gen1_train.data.shards import ShardSet
from gen1_train.diffusion.structure import MAX_LEVEL, RELATIVE, degrade
from gen1_train.training.module import Gen1Module
from tests.data_tools.small_source import quick_recipe
from tests.made import make_sample, make_shard_set
from tests.training.test_module import batches, loss_and_gradients, make_module
from tests.video.files import picture

KINDS = ("video", "image")


@cache
def estimators(kind: str) -> Estimators:
    return Estimators(quick_recipe(structure=kind), "cpu")


@pytest.fixture(scope="module", params=["depth", "edges"])
def networks(request: pytest.FixtureRequest) -> Estimators:
    return estimators(request.param)


@pytest.fixture(scope="module")
def shards(networks: Estimators, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Clips and images whose structure and its latents are those that gen1-data makes."""

    root = tmp_path_factory.mktemp("levels") / "set"
    make = partial(estimated_sample, networks)
    return ShardSet(make_shard_set(root, clips=4, images=8, width=64, height=48, frames=2, shards=1, make=make))


def estimated_sample(networks: Estimators, key: str, pool: Pool, seed: int) -> Sample:
    """A random sample with the structure of pictures, and with its latents at all t_s as gen1-data makes them."""
    sample = make_sample(key, pool, seed)
    frames = torch.stack([torch.from_numpy(picture(seed + i)) for i in range(pool.frames)])
    (estimate,) = networks.maps(frames.numpy()[None, :, : pool.height, : pool.width])
    assert isinstance(estimate, tuple)
    latents = [networks.structure_latents(estimate[0], level) for level in range(MAX_LEVEL + 1)]
    degraded = dict(enumerate(latents[1:], start=1))
    return dataclasses.replace(sample, structure=estimate[0], structure_latent=latents[0], degraded_latents=degraded)


def modules() -> tuple[Gen1Module, Gen1Module]:
    """Stage 5 that reads the latents, and stage 5 that encodes them."""
    scale = estimators("depth").autoencoder.scale
    cached = make_module(max_level=MAX_LEVEL, stored_level=MAX_LEVEL, scale=scale)
    return cached, make_module(max_level=MAX_LEVEL, scale=scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", range(MAX_LEVEL + 1))
def test_cached_equals_online_at_every_level(shards, kind, level):
    """The latents that are read are those of the degraded maps, rounded to float16; the rest of the batch is equal."""
    cached, online = modules()
    assert cached.autoencoder is None and online.autoencoder is not None
    schedule = Schedule(shards, Settings(0, 0.5, 2))
    step = next(t for t in range(16) if schedule.kind(t) == kind)

    def read(module: Gen1Module):
        partition = BatchPartition(0, 1, schedule.at(step).size)  # one sample, as gen1-data encodes them
        dataset = BatchDataset(shards, schedule, partition, module.stage.fields, level=lambda step, slot: level)
        return dataset[step, 0].to(module.device)

    stored, maps = read(cached), read(online)
    assert stored.structure_levels == [level] and stored.structure is None and maps.structure_latents is None
    torch.testing.assert_close(stored.moments, maps.moments, rtol=0, atol=0)
    latents = cached.structure_latents(stored, [level])
    encoded = online.structure_latents(maps, [level])
    assert torch.equal(latents, encoded.half().float())
    assert torch.equal(encoded, online.autoencoder.encode_structure(degrade(maps.structure, [level])))
    with pytest.raises(AssertionError, match="was drawn"):
        cached.structure_latents(stored, [level + 1])


def test_a_stage_encodes_by_its_own_procedure_as_gen1_data_does(shards, networks):
    online = make_module(max_level=MAX_LEVEL, degradation=RELATIVE, scale=networks.autoencoder.scale)
    sample = shards.read("video-64x48", 0, ("structure",))
    maps = torch.from_numpy(sample.structure.astype(np.float32))[None] / STRUCTURE_MAX
    batch = Batch("video", 0, [0], [sample.key], None, torch.zeros(1, 2, 1), structure=maps)
    encoded = online.structure_latents(batch, [5])[0]
    np.testing.assert_array_equal(networks.structure_latents(sample.structure, 5, RELATIVE), encoded.half().numpy())
    assert not np.array_equal(networks.structure_latents(sample.structure, 5), encoded.half().numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_on_stored_levels_is_the_step_that_encodes_them(shards, kind):
    """The draws are equal; losses and gradients differ by the rounding of the latents to float16.

    At the lowest level of this UNet, a group norm sees a single pixel, which enlarges the rounding in the gradients.
    """
    cached, online = modules()
    ((read,), (maps,)) = (batches(shards, module, kind, 1) for module in (cached, online))
    draws = online.drawing.draw(maps)
    assert read.structure_levels == draws.rounds == cached.drawing.draw(read).rounds and len(set(draws.rounds)) > 1
    losses, gradients = loss_and_gradients(cached, read)
    others, other_gradients = loss_and_gradients(online, maps)
    torch.testing.assert_close(losses, others, rtol=1e-3, atol=0)
    assert (gradients - other_gradients).norm() <= 1e-2 * gradients.norm() and gradients.norm() > 0


def test_of_all_levels_only_the_drawn_one_is_read(shards, monkeypatch):
    cached, _ = modules()
    read: list[tuple[str, ...]] = []
    original = ShardSet.read

    def spy(self: ShardSet, pool: str, index: int, fields: tuple[str, ...]) -> Sample:
        read.append(fields)
        return original(self, pool, index, fields)

    monkeypatch.setattr(ShardSet, "read", spy)
    (batch,) = batches(shards, cached, "video", 1)
    levels = [cached.drawing.level(batch.step, slot) for slot in batch.slots]
    assert read == [("moments", "image_embedding", latent_field(level)) for level in levels]
    assert batch.structure_levels == levels
