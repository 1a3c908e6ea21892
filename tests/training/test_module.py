from pathlib import Path

import pytest
import torch

from gen1_train.batch import Batch
from gen1_train.data.loader import BatchDataset, Place
from gen1_train.data.schedule import Schedule
from gen1_train.data.shards import ShardSet
from gen1_train.diffusion.prediction import v_from
from gen1_train.diffusion.schedule import NoiseSchedule
from gen1_train.model.autoencoder import Autoencoder, AutoencoderConfig
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.draws import draw
from gen1_train.training.module import DiffusionConfig, Gen1Module, OptimConfig, fill_missing_gradients, warmup
from tests.made import WIDTH, make_shard_set

WEIGHTS = Path(__file__).parents[2] / "miniature" / "weights" / "autoencoder"
TINY = {"channels": [8, 16, 16, 16], "heads": [2, 2, 2, 2], "groups": 8, "context_dim": WIDTH, "content_dim": WIDTH}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return ShardSet(make_shard_set(tmp_path_factory.mktemp("set") / "shards"))


def make_module(structure: bool = True, max_level: int = 0, drop: float = 0.1) -> Gen1Module:
    torch.manual_seed(0)
    unet = SpatioTemporalUNet(UNetConfig(in_channels=12 if structure else 4, **TINY))
    for parameter in unet.parameters():  # not at the identity: the temporal layers must matter
        parameter.data += 0.05 * torch.randn_like(parameter)
    module = Gen1Module(
        unet,
        OptimConfig(),
        DiffusionConfig(drop_content=drop),
        seed=3,
        structure=structure,
        max_level=max_level,
        latent_scale=0.5,
        autoencoder=Autoencoder(AutoencoderConfig(str(WEIGHTS))) if max_level else None,
    )
    module.on_fit_start()
    return module


def batches(shards: ShardSet, module: Gen1Module, kind: str, world: int, accumulate: int = 1) -> list[Batch]:
    """All micro-batches of the first step of a kind, in the order of their slots."""
    schedule = Schedule(shards, 0, 0.125, 4)
    step = next(t for t in range(16) if schedule.kind(t) == kind)
    return [
        BatchDataset(shards, schedule, Place(rank, world, accumulate), module.fields)[step, micro]
        for micro in range(accumulate)
        for rank in range(world)
    ]


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (4, 1), (2, 2)])
def test_each_sample_has_the_same_loss_however_the_batch_is_split(shards, kind, world, accumulate):
    # the UNet in float64: a group norm over two nearly equal values, as in maps of one pixel, makes float32's rounding
    # large, and kernels round by the size of the batch
    module = make_module().double()
    with torch.no_grad():
        whole = torch.cat([module.losses(batch) for batch in batches(shards, module, kind, 1)])
        split = torch.cat([module.losses(batch) for batch in batches(shards, module, kind, world, accumulate)])
    torch.testing.assert_close(split, whole, rtol=1e-6, atol=0)


def test_draws_differ_between_slots_steps_and_seeds_but_not_between_calls(shards):
    batch = batches(shards, make_module(), "video", 1)[0]
    first, again = (draw(3, batch, 1000, 7, 0.5) for _ in range(2))
    for name, value in vars(first).items():
        assert torch.equal(value, getattr(again, name)), name
    assert len(set(first.timesteps.tolist())) > 1
    assert not torch.equal(first.noise[0], first.noise[1])
    assert not torch.equal(first.noise, first.posterior)
    assert not torch.equal(first.noise, draw(4, batch, 1000, 7, 0.5).noise)


def test_draws_cover_their_ranges():
    many = Batch("video", 0, list(range(2000)), [""] * 2000, torch.zeros(2000, 4, 2, 1, 1), torch.zeros(2000, 4, 1))
    draws = draw(0, many, 1000, 7, 0.1)
    assert set(draws.levels.tolist()) == set(range(8))
    assert set(draws.frames.tolist()) == set(range(4))
    assert draws.timesteps.min() < 20 and draws.timesteps.max() > 980
    assert 0.07 < draws.dropped.float().mean() < 0.13


def test_structure_from_the_shards_equals_structure_encoded_while_training(shards):
    """Cached equals online: what stage 4 reads is what stage 5 makes at t_s = 0."""
    cached, online = make_module(max_level=0), make_module(max_level=7)
    batch = batches(shards, online, "video", 1)[0]
    encoded = online.structure_latents(batch, torch.zeros(4, dtype=torch.long))
    batch.structure_latents = online._autoencoder[0].encode_structure(
        batch.structure
    )  # as data_tools does, before float16
    torch.testing.assert_close(encoded, cached.structure_latents(batch, torch.zeros(4, dtype=torch.long)))
    blurred = online.structure_latents(batch, torch.full((4,), 7))
    assert (blurred - encoded).abs().mean() > 0.01


def test_the_loss_is_that_of_v_prediction(shards):
    """A network that knows v has no loss: the target and the noisy input belong together."""
    module = make_module(structure=False)
    batch = batches(shards, module, "video", 1)[0]
    draws = draw(3, batch, 1000, 0, 0.1)
    mean, log_variance = batch.moments.chunk(2, dim=2)
    latents = (mean + (log_variance / 2).exp() * draws.posterior) * 0.5
    schedule = NoiseSchedule(module.diffusion.noise)
    alpha, sigma = schedule.at(draws.timesteps, latents)
    seen = {}

    def perfect(z, timesteps, content, temporal):
        seen.update(z=z, temporal=temporal, content=content)
        return v_from(latents, (z - alpha * latents) / sigma, alpha, sigma)

    module.unet.forward = perfect
    assert module.losses(batch).max() < 1e-6
    torch.testing.assert_close(seen["z"], alpha * latents + sigma * draws.noise)
    assert seen["temporal"] is True
    assert torch.equal(seen["content"].abs().sum((1, 2)) == 0, draws.dropped)


def test_images_leave_the_temporal_layers_out_and_every_parameter_gets_a_gradient(shards):
    module = make_module()
    module.losses(batches(shards, module, "image", 1)[0]).mean().backward()
    without = {name for name, p in module.unet.named_parameters() if p.grad is None}
    unused = [name for name in without if ".temporal_" not in name]
    assert len(unused) < len(without) and all(name.split(".")[-2] in ("norm2", "to_q", "to_k") for name in unused)
    fill_missing_gradients(module.unet)
    assert all(p.grad is not None for p in module.unet.parameters())


def test_the_frozen_autoencoder_is_neither_trained_nor_saved():
    module = make_module(max_level=7)
    assert all(name.startswith("unet.") for name, _ in module.named_parameters())
    assert all(name.startswith("unet.") for name in module.state_dict())


def test_warmup_reaches_the_rate_and_keeps_it():
    factor = warmup(4)
    assert [factor(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warmup(0)(0) == 1.0
