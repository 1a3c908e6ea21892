from dataclasses import replace

import pytest
import torch

from gen1_train.batch import Batch
from gen1_train.data.loader import BatchDataset, BatchPartition
from gen1_train.data.schedule import Schedule, Settings
from gen1_train.data.shards import ShardSet
from gen1_train.diffusion.loss import LossConfig
from gen1_train.diffusion.prediction import FORMS, noise_from_v, target, v_from, x_from_v
from gen1_train.diffusion.schedule import NoiseConfig, NoiseSchedule
from gen1_train.diffusion.structure import PIXELS
from gen1_train.frozen.autoencoder import Autoencoder, AutoencoderConfig, to_signed
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training import module as training_module
from gen1_train.training.draws import Drawing, TimestepConfig
from gen1_train.training.module import DiffusionConfig, Gen1Module, Prediction, StageSpec, fill_missing_gradients
from gen1_train.training.network import OptimConfig
from tests.made import WIDTH, make_shard_set
from tests.running import WEIGHTS

AUTOENCODER = WEIGHTS / "autoencoder"
BLACK = torch.zeros(1, 1, 16, 32, 3, dtype=torch.uint8)
TINY = {"channels": [8, 16, 16, 16], "heads": [2, 2, 2, 2], "groups": 8, "context_dim": WIDTH, "content_dim": WIDTH}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return ShardSet(make_shard_set(tmp_path_factory.mktemp("set") / "shards"))


def make_module(
    structure: bool = True,
    max_level: int = 0,
    drop: float = 0.1,
    cached: bool = True,
    scale: float = 0.5,
    stored_level: int = 0,
    degradation: str = PIXELS,
) -> Gen1Module:
    torch.manual_seed(0)
    unet = SpatioTemporalUNet(UNetConfig(in_channels=12 if structure else 4, **TINY))
    for parameter in unet.parameters():  # not at the identity: the temporal layers must matter
        parameter.data += 0.05 * torch.randn_like(parameter)
    stage = StageSpec(
        seed=3,
        latent_scale=scale,
        structure=structure,
        max_level=max_level,
        cached=cached,
        stored_level=stored_level,
        degradation=degradation,
    )
    autoencoder = Autoencoder(AutoencoderConfig(str(AUTOENCODER))) if stage.encodes_structure else None
    module = Gen1Module(unet, OptimConfig(), DiffusionConfig(drop_content=drop), stage, autoencoder)
    module.on_fit_start()
    return module


@pytest.mark.parametrize(("factor", "expected"), [(1.0, torch.float16), (1e6, torch.float32)])
def test_the_precision_of_the_autoencoder_is_chosen_once_at_the_start(monkeypatch, caplog, factor, expected):
    """As on a GPU, where it encodes in fp16 unless it overflows there; a step does not look at its values."""
    formats = {"fp16": torch.float16, "fp32": torch.float32, "auto": torch.float16}

    def autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
        return torch.autocast("cpu", formats[precision], enabled=precision != "fp32")

    monkeypatch.setattr(training_module, "resolve_precision", lambda device: "fp16")
    monkeypatch.setattr(training_module, "autocast", autocast)
    module = make_module(cached=False)
    assert module.autoencoder is not None
    module.autoencoder.kl.encoder.conv_in.weight.mul_(factor)
    module.on_fit_start()
    seen: list[torch.dtype] = []
    module.autoencoder.kl.encoder.conv_in.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    moments = module.moments(Batch("image", 0, [0], [""], None, torch.zeros(1, 1, WIDTH), frames=BLACK))
    assert seen == [expected] and moments.isfinite().all() and moments.dtype == torch.float32
    assert ("overflows in fp16: it encodes in fp32" in caplog.text) == (expected == torch.float32)


def batches(shards: ShardSet, module: Gen1Module, kind: str, world: int, accumulate: int = 1) -> list[Batch]:
    """All micro-batches of the first step of a kind, in the order of their slots."""
    schedule = Schedule(shards, Settings(0, 0.125, 4))
    step = next(t for t in range(16) if schedule.kind(t) == kind)
    return [
        BatchDataset(shards, schedule, partition, module.stage.fields, level=module.drawing.level)[step, micro].to(
            module.device
        )
        for partition in (BatchPartition(rank, world, accumulate) for rank in range(world))
        for micro in range(accumulate)
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
    first, again = (Drawing(3, NoiseConfig(), 7, 0.5).draw(batch) for _ in range(2))
    assert first.rounds == again.rounds == first.levels.tolist()
    for name, value in vars(first.choices).items():
        assert torch.equal(value, getattr(again, name)), name
    assert torch.equal(first.noise, again.noise) and torch.equal(first.posterior, again.posterior)
    assert len(set(first.timesteps.tolist())) > 1
    assert not torch.equal(first.noise[0], first.noise[1])
    assert not torch.equal(first.noise, first.posterior)
    assert not torch.equal(first.noise, Drawing(4, NoiseConfig(), 7, 0.5).draw(batch).noise)


def test_draws_cover_their_ranges():
    many = Batch("video", 0, list(range(2000)), [""] * 2000, torch.zeros(2000, 4, 2, 1, 1), torch.zeros(2000, 4, 1))
    draws = Drawing(0, NoiseConfig(), 7, 0.1).draw(many)
    assert set(draws.levels.tolist()) == set(range(8))
    assert set(draws.frames.tolist()) == set(range(4))
    assert draws.timesteps.min() < 20 and draws.timesteps.max() > 980
    assert 0.07 < draws.dropped.float().mean() < 0.13


def test_structure_from_the_shards_equals_structure_encoded_while_training(shards):
    """Cached equals online: what stage 4 reads is what stage 5 makes at t_s = 0."""
    cached, online = make_module(max_level=0), make_module(max_level=7)
    batch = batches(shards, online, "video", 1)[0]
    encoded = online.structure_latents(batch, [0] * 4)
    batch.structure_latents = online._autoencoder[0].encode_structure(
        batch.structure
    )  # as data_tools does, before float16
    torch.testing.assert_close(encoded, cached.structure_latents(batch, [0] * 4))
    blurred = online.structure_latents(batch, [7] * 4)
    assert (blurred - encoded).abs().mean() > 0.01


def loss_and_gradients(module: Gen1Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    losses = module.losses(batch)
    losses.mean().backward()
    return losses.detach(), torch.cat([p.grad.flatten() for p in module.unet.parameters() if p.grad is not None])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "structure"), [("video", True), ("image", True), ("video", False)])
def test_a_set_without_latents_trains_as_one_with_them(tmp_path, kind, structure):
    """Cached equals online: to the rounding of float32 if the latents were stored so, else to that of float16."""
    # large enough that no group norm sees one pixel alone: it would make much of any rounding
    shards = ShardSet(make_shard_set(tmp_path / "set", clips=4, images=16, width=128, height=128, shards=1))
    scale = Autoencoder(AutoencoderConfig(str(AUTOENCODER))).scale
    online = make_module(structure, cached=False, scale=scale)
    (batch,) = batches(shards, online, kind, 1)
    assert batch.moments is None and batch.structure_latents is None and batch.frames.dtype == torch.uint8
    moments = online._autoencoder[0].encode_moments(to_signed(batch.frames))
    latents = online._autoencoder[0].encode_structure(batch.structure) if structure else None
    stored = replace(batch, moments=moments, structure_latents=latents, frames=None, structure=None)
    rounded = replace(
        stored,
        moments=moments.half().float(),
        structure_latents=latents if latents is None else latents.half().float(),
    )
    losses, gradients = loss_and_gradients(online, batch)
    for cached, bound in ((stored, 1e-6), (rounded, 1e-3)):
        same_losses, same_gradients = loss_and_gradients(make_module(structure, scale=scale), cached)
        torch.testing.assert_close(losses, same_losses, rtol=bound, atol=0)
        assert (gradients - same_gradients).norm() <= bound * gradients.norm() and gradients.norm() > 0


@pytest.mark.parametrize(
    ("structure", "max_level", "cached", "fields"),
    [
        (False, 0, True, {"moments"}),
        (True, 0, True, {"moments", "structure_latent"}),
        (True, 7, True, {"moments", "structure"}),
        (False, 0, False, {"frames"}),
        (True, 0, False, {"frames", "structure"}),
        (True, 7, False, {"frames", "structure"}),
    ],
)
def test_only_what_is_used_is_read(shards, structure, max_level, cached, fields):
    module = make_module(structure, max_level, cached=cached)
    assert set(module.stage.fields) == fields | {"image_embedding"}
    assert module.losses(batches(shards, module, "video", 1)[0]).isfinite().all()


def test_the_autoencoder_is_not_put_into_the_unet_s_bfloat16(shards):
    module = make_module(max_level=7, cached=False)
    (batch,) = batches(shards, module, "video", 1)
    levels = [0, 1, 3, 7]
    outside = module.moments(batch), module.structure_latents(batch, levels)
    with torch.autocast("cpu", torch.bfloat16):
        inside = module.moments(batch), module.structure_latents(batch, levels)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside))


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_is_that_of_the_prediction(shards, form):
    """A network that knows v has no loss: the target and the noisy input belong together."""
    module = make_module(structure=False)
    module.diffusion.noise.prediction = form
    module.on_fit_start()
    batch = batches(shards, module, "video", 1)[0]
    draws = Drawing(3, module.diffusion.noise, 0, 0.1).draw(batch)
    mean, log_variance = batch.moments.chunk(2, dim=2)
    latents = (mean + (log_variance / 2).exp() * draws.posterior) * 0.5
    schedule = NoiseSchedule(module.diffusion.noise)
    alpha, sigma = schedule.at(draws.timesteps, latents)
    seen = {}

    def perfect(z, timesteps, content, temporal):
        seen.update(z=z, temporal=temporal, content=content)
        return target(form, latents, (z - alpha * latents) / sigma, alpha, sigma)

    module.unet.forward = perfect
    assert module.losses(batch).max() < 1e-6
    assert module.observe(batch, judge=Prediction.errors_of_v).losses.max() < 1e-4  # divided by alpha and sigma
    torch.testing.assert_close(seen["z"], alpha * latents + sigma * draws.noise)
    assert seen["temporal"] is True
    assert torch.equal(seen["content"].abs().sum((1, 2)) == 0, draws.dropped)


def test_images_leave_the_temporal_layers_out_and_every_parameter_gets_a_gradient(shards):
    module = make_module()
    module.losses(batches(shards, module, "image", 1)[0]).mean().backward()
    without = {name for name, p in module.unet.named_parameters() if p.grad is None}
    unused = [name for name in without if ".temporal_" not in name]
    assert len(unused) < len(without) and all(name.split(".")[-2] in ("norm2", "to_q", "to_k") for name in unused)
    fill_missing_gradients(module.configure_optimizers()["optimizer"])
    assert all(p.grad is not None for p in module.unet.parameters())


def test_the_frozen_autoencoder_is_neither_trained_nor_saved():
    module = make_module(max_level=7)
    assert all(name.startswith("unet.") for name, _ in module.named_parameters())
    assert all(name.startswith("unet.") for name in module.state_dict())


def test_errors_of_v_do_not_depend_on_the_form_of_the_prediction():
    torch.manual_seed(0)
    latents, noise, error = torch.randn(3, 2, 3, 4, 5, 6, dtype=torch.float64).unbind(0)
    angle = torch.tensor([0.3, 1.2], dtype=torch.float64).view(2, 1, 1, 1, 1)
    alpha, sigma = angle.cos(), angle.sin()
    z, v = alpha * latents + sigma * noise, v_from(latents, noise, alpha, sigma) + error
    outputs = {"v": v, "eps": noise_from_v(z, v, alpha, sigma), "x0": x_from_v(z, v, alpha, sigma)}
    for form, output in outputs.items():
        prediction = Prediction(form, output, z, latents, noise, alpha, sigma)
        torch.testing.assert_close(prediction.errors_of_v(), error.float().square().flatten(1).mean(1))
        for weighting in ("none", "min_snr"):
            weights = LossConfig(weighting).weights(form, alpha, sigma).flatten()
            wanted = target(form, latents, noise, alpha, sigma)
            expected = (output - wanted).square().flatten(1).mean(1) * weights
            torch.testing.assert_close(prediction.losses(LossConfig(weighting)).double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_frames_share_noise_of_the_same_variance(share):
    batch = Batch("video", 0, [0], [""], torch.zeros(1, 4, 8, 100, 100), torch.zeros(1, 4, 1))
    noise = Drawing(0, NoiseConfig(shared=share), 0, 0.0).draw(batch).noise[0]  # n c h w
    correlation = torch.corrcoef(noise.flatten(1))
    assert abs(float(noise.var()) - 1) < 0.02
    assert (correlation - share).masked_select(~torch.eye(4, dtype=bool)).abs().max() < 0.02


def test_offset_noise_is_one_number_for_a_channel_of_a_clip():
    batch = Batch("video", 0, list(range(200)), [""] * 200, torch.zeros(200, 2, 8, 3, 3), torch.zeros(200, 2, 1))
    plain, offset = (Drawing(0, NoiseConfig(offset=value), 0, 0.0).draw(batch) for value in (0.0, 0.1))
    added = offset.noise - plain.noise
    torch.testing.assert_close(added, added[:, :1, :, :1, :1].expand_as(added))
    assert 0.09 < float(added[:, 0, :, 0, 0].std()) < 0.11
    assert torch.equal(offset.posterior, plain.posterior) and torch.equal(offset.timesteps, plain.timesteps)


@pytest.mark.parametrize(
    ("config", "side", "median"),
    [
        (TimestepConfig("logit_normal"), 32, 500),
        (TimestepConfig("logit_normal", mean=1.0, deviation=0.5), 32, 731),  # 1 / (1 + exp(-1))
        (TimestepConfig("shifted"), 64, 500),  # as uniform
        (TimestepConfig("shifted"), 128, 667),  # 2 u / (1 + u) at u = 1 / 2
        (TimestepConfig("shifted"), 32, 333),
    ],
)
def test_timesteps_are_drawn_around_their_median(config, side, median):
    many = Batch("image", 0, list(range(2000)), [""] * 2000, torch.zeros(2000, 1, 2, 1, 1), torch.zeros(2000, 1, 1))
    drawing = Drawing(0, NoiseConfig(), 0, 0.0, config)
    drawn = torch.tensor([drawing._timestep((0, 0, slot), side, side) for slot in many.slots])
    assert abs(float(drawn.double().median()) - median) < 25
    assert drawn.min() >= 0 and drawn.max() <= 999
    assert torch.equal(drawing.draw(many).timesteps, drawing.draw(many).timesteps)
