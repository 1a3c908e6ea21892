"""Planes of the structure that are left out in training: keyed draws, stored latents where all are kept."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

from data_tools.estimate import Estimators
from gen1_train.batch import Batch, Pool
from gen1_train.data.loader import BatchDataset, BatchPartition
from gen1_train.data.schedule import Schedule, Settings
from gen1_train.data.shards import ShardSet
from gen1_train.diffusion.schedule import NoiseConfig
from gen1_train.diffusion.structure import MAX_LEVEL, degrade
from gen1_train.frozen.autoencoder import Autoencoder, AutoencoderConfig
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.callbacks.compiling import Shape, zero_batch
from gen1_train.training.draws import Drawing, fixed_draw
from gen1_train.training.module import DiffusionConfig, Gen1Module, StageSpec
from gen1_train.training.network import OptimConfig
from tests.data_tools.small_source import quick_recipe
from tests.made import make_shard_set
from tests.training.test_module import AUTOENCODER, TINY
from tests.training.test_module_levels import estimated_sample

PLANES = 2


@pytest.fixture(scope="module")
def networks() -> Estimators:
    return Estimators(quick_recipe(structure="soft_edges+edges"), "cpu")


@pytest.fixture(scope="module")
def shards(networks: Estimators, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Clips and images whose structure has two planes, with its latents as gen1-data makes them."""
    make = partial(estimated_sample, networks)
    root = tmp_path_factory.mktemp("planes") / "set"
    return ShardSet(make_shard_set(root, clips=8, images=16, width=48, height=32, frames=2, shards=1, make=make))


def make_module(drop_planes: float, stored_level: int = MAX_LEVEL, seed: int = 3, max_level: int = MAX_LEVEL):
    torch.manual_seed(0)
    unet = SpatioTemporalUNet(UNetConfig(in_channels=12, **TINY))
    autoencoder = Autoencoder(AutoencoderConfig(str(AUTOENCODER)))
    stage = StageSpec(
        seed=seed,
        latent_scale=autoencoder.scale,
        structure=True,
        max_level=max_level,
        stored_level=stored_level,
        planes=PLANES,
        drop_planes=drop_planes,
    )
    module = Gen1Module(unet, OptimConfig(), DiffusionConfig(), stage, autoencoder)
    module.on_fit_start()
    return module


def read(shards: ShardSet, module: Gen1Module, step: int, world: int = 1, rank: int = 0, clips: int = 8) -> Batch:
    schedule = Schedule(shards, Settings(0, 0.0, clips))
    drawing = module.drawing
    partition = BatchPartition(rank, world, 1)
    fields = module.stage.fields
    dataset = BatchDataset(shards, schedule, partition, fields, drawing, drawing.level, drawing.drops)
    return dataset[step, 0].to(module.device)


def test_each_plane_is_left_out_with_its_probability_but_never_all() -> None:
    drawing = Drawing(3, NoiseConfig(), 7, 0.1, planes=3, drop_planes=0.4)
    drawn = np.array([drawing.strengths(step, slot) for step in range(200) for slot in range(20)])
    assert set(np.unique(drawn)) == {0, 1} and drawn.any(axis=1).all()
    expected = 0.4 - 0.4**3 / 3  # of all three at once, one is kept
    np.testing.assert_allclose(1 - drawn.mean(axis=0), expected, atol=0.03)
    others = dataclasses.replace(drawing, seed=4)
    assert any(others.strengths(0, slot) != drawing.strengths(0, slot) for slot in range(20))
    assert [drawing.drops(1, slot) for slot in range(9)] == [not all(drawing.strengths(1, slot)) for slot in range(9)]


@pytest.mark.parametrize(("planes", "rate"), [(1, 0.9), (3, 0.0)])
def test_a_single_plane_is_never_left_out(planes: int, rate: float) -> None:
    drawing = Drawing(3, NoiseConfig(), 7, 0.1, planes=planes, drop_planes=rate)
    assert all(drawing.strengths(0, slot) == (1.0,) * planes and not drawing.drops(0, slot) for slot in range(50))


def test_other_draws_do_not_depend_on_it(shards: ShardSet) -> None:
    batch = read(shards, make_module(0.0), 0)
    plain, dropping = (Drawing(3, NoiseConfig(), 7, 0.1, planes=2, drop_planes=rate).draw(batch) for rate in (0.0, 0.5))
    for name in ("frames", "timesteps", "levels", "dropped", "noise", "posterior"):
        assert torch.equal(getattr(plain, name), getattr(dropping, name)), name
    assert plain.planes == [(1.0, 1.0)] * 8 and plain.planes != dropping.planes


def test_samples_with_all_planes_use_the_stored_latents_and_others_are_encoded(shards: ShardSet) -> None:
    stored, online = make_module(0.4), make_module(0.4, stored_level=0)
    batch, maps = read(shards, stored, 1), read(shards, online, 1)
    planes = batch.draws.planes
    assert planes == maps.draws.planes and batch.draws.rounds == maps.draws.rounds
    lost = [row for row, kept in enumerate(planes) if not all(kept)]
    kept = [row for row in range(8) if row not in lost]
    assert 1 < len(lost) < 7 and batch.structure_rows == lost
    assert maps.structure.shape == (8, 2, PLANES, 32, 48) and torch.equal(batch.structure, maps.structure[lost])
    latents = stored.structure_latents(batch, batch.draws.rounds, planes)
    encoded = online.structure_latents(maps, maps.draws.rounds, planes)
    assert torch.equal(latents[kept], batch.structure_latents[kept])
    torch.testing.assert_close(latents[lost], encoded[lost], rtol=1e-5, atol=1e-6)
    for row in kept:  # one at a time, as gen1-data encodes them
        level = batch.draws.rounds[row]
        alone = degrade(maps.structure[row : row + 1], [level])
        fresh = online.autoencoder.encode_structure(alone, several=True)[0]
        assert torch.equal(latents[row], fresh.half().float())
    for row in lost:  # a plane that is left out is 0
        cleared = maps.structure[row : row + 1].clone()
        for plane, strength in enumerate(planes[row]):
            if not strength:
                cleared[:, :, plane] = 0
        wanted = online.autoencoder.encode_structure(degrade(cleared, [batch.draws.rounds[row]]), several=True)[0]
        torch.testing.assert_close(latents[row], wanted, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(latents[row], batch.structure_latents[row], atol=1e-3)


def test_without_leaving_out_nothing_is_encoded(shards: ShardSet) -> None:
    module = make_module(0.0)
    batch = read(shards, module, 1)
    assert batch.structure is None and batch.structure_rows is None
    latents = module.structure_latents(batch, batch.draws.rounds, batch.draws.planes)
    assert latents is batch.structure_latents


def test_two_ranks_and_a_resumed_run_see_the_same(shards: ShardSet) -> None:
    """The draws are keyed, so that a start at a later step makes the same ones."""
    module = make_module(0.4)
    for step in (1, 5):
        whole = read(shards, module, step)
        halves = [read(shards, make_module(0.4), step, world=2, rank=rank) for rank in range(2)]
        assert whole.draws.planes == [kept for half in halves for kept in half.draws.planes]
        losses = torch.cat([module.losses(half) for half in halves])
        torch.testing.assert_close(losses, module.losses(whole), rtol=1e-4, atol=1e-5)


def test_a_step_trains_and_validation_keeps_all_planes(shards: ShardSet) -> None:
    module = make_module(0.4)
    batch = read(shards, module, 1)
    loss = module.training_step(batch, 0)["loss"]
    loss.backward()
    assert loss.isfinite() and module.unet.conv_in.weight.grad.abs().sum() > 0
    held = dataclasses.replace(batch, draws=None, structure=None, structure_rows=None)
    assert fixed_draw(module.drawing, held).planes == [(1.0, 1.0)] * 8


def test_batches_of_zeros_are_read_like_real_ones(shards: ShardSet) -> None:
    module = make_module(0.4)
    real = read(shards, module, 0)
    shape = Shape(Pool("video", 48, 32, 2), 8, 8)
    zeros = zero_batch(
        shape, module.unet.config, module.stage.fields, module.drawing.level, PLANES, module.drawing.drops
    ).to(module.device)
    assert zeros.structure_rows == real.structure_rows and zeros.structure.shape == real.structure.shape
