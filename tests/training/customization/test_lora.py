"""An adapter starts without effect, is all that is trained, and is merged into ordinary checkpoints."""

import copy
from functools import partial
from unittest.mock import patch

import pytest
import torch
import yaml
from torch import Tensor

from gen1_train.cli.app import conf_dir
from gen1_train.errors import UserError
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.checkpoints.state import trainable
from gen1_train.training.customization import lora
from gen1_train.training.customization.customize import CustomizeConfig
from gen1_train.training.customization.lora import add_lora, load_base, load_trained, merged, save_base, scale_of
from gen1_train.training.planning.memory import Layout, Planner, ZeroSettings
from gen1_train.training.planning.tracing import MicroBatch

RANK = CustomizeConfig(lora_rank=4, lora_alpha=6.0)


@pytest.fixture(scope="module")
def plain() -> SpatioTemporalUNet:
    """A UNet without zeros in its weights."""
    config = UNetConfig(**yaml.safe_load((conf_dir() / "model" / "tiny.yaml").read_text()))
    torch.manual_seed(0)
    unet = SpatioTemporalUNet(config)
    with torch.no_grad():
        for weight in unet.parameters():
            weight += 0.02 * torch.randn_like(weight)
    return unet


def with_lora(plain: SpatioTemporalUNet, config: CustomizeConfig = RANK, moved: bool = False) -> SpatioTemporalUNet:
    unet = copy.deepcopy(plain)
    add_lora(unet, config, seed=1)
    if moved:
        torch.manual_seed(2)
        with torch.no_grad():
            for weight in trainable(unet).values():
                weight.copy_(0.1 * torch.randn_like(weight))
    return unet


def output(unet: SpatioTemporalUNet) -> Tensor:
    config = unet.config
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 3, config.in_channels, 8, 8, generator=generator)
    content = torch.randn(2, 1, config.content_dim, generator=generator)
    with torch.no_grad():
        return unet(latents, torch.tensor([10, 900]), content)


@pytest.mark.parametrize("temporal", [False, True])
def test_it_starts_without_effect_bit_for_bit(plain, temporal):
    config = CustomizeConfig(lora_rank=4, lora_temporal=temporal)
    unet = with_lora(plain, config)
    assert torch.equal(output(unet), output(plain))
    weights = plain.state_dict()
    same = merged(weights, trainable(unet), scale_of(config))
    assert same.keys() == weights.keys() and all(torch.equal(same[name], weights[name]) for name in weights)


@pytest.mark.parametrize("temporal", [False, True])
def test_all_attention_projections_in_use_have_an_adapter(plain, temporal):
    unet = with_lora(plain, CustomizeConfig(lora_rank=4, lora_temporal=temporal))
    names = list(trainable(unet))
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    layers = {name.partition(".lora_")[0] for name in names}
    ends = [".attn1.to_q", ".attn1.to_k", ".attn1.to_v", ".attn1.to_out.0", ".attn2.to_v", ".attn2.to_out.0"]
    if temporal:
        ends += [f".attn.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out")]
    wanted = {name for name, _ in plain.named_modules() if any(name.endswith(end) for end in ends)}
    assert layers == wanted and len(wanted) >= 3 * len(ends)
    assert sum(weight.numel() for weight in trainable(unet).values()) < 0.05 * sum(
        weight.numel() for weight in plain.parameters()
    )


def test_all_of_the_adapter_learns_and_nothing_else(plain):
    unet = with_lora(plain, moved=True)
    config = unet.config
    unet(
        torch.randn(1, 2, config.in_channels, 8, 8), torch.tensor([5]), torch.randn(1, 1, config.content_dim)
    ).sum().backward()
    for name, weight in unet.named_parameters():
        assert (weight.grad is not None and bool(weight.grad.any())) == (".lora_" in name), name


def test_merged_weights_equal_those_of_peft_and_compute_the_same(plain):
    unet = with_lora(plain, moved=True)
    weights = merged(plain.state_dict(), trainable(unet), scale_of(RANK))
    again = SpatioTemporalUNet(plain.config)
    again.load_state_dict(weights)
    torch.testing.assert_close(output(again), output(unet), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(output(again), output(plain), rtol=1e-2)
    for layer in unet.modules():
        if hasattr(layer, "merge"):
            layer.merge()  # peft's own
    theirs = {name.replace(".base_layer.", "."): weight for name, weight in unet.state_dict().items()}
    for name, weight in weights.items():
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=1e-7, msg=name)


def test_base_and_adapter_restore_the_unet_bit_for_bit(plain, tmp_path):
    unet = with_lora(plain, moved=True)
    save_base(tmp_path / "run", plain.state_dict())
    again = SpatioTemporalUNet(plain.config)
    load_base(again, tmp_path / "run", RANK, seed=9)
    load_trained(again, dict(trainable(unet)), "adapter")
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), unet.state_dict().values(), strict=True))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["base.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["single", "ddp", "zero2"])
def test_a_plan_counts_moments_and_gradients_of_the_adapter_only(plain, strategy):
    zero = ZeroSettings(bucket=1000, overlap=False, live=1000, persistent=0)
    layout = Layout(strategy, "32-true", 2 if strategy != "single" else 1, ema=1, zero=zero)
    adapted = partial(add_lora, config=RANK, seed=1)
    full, small = (Planner(plain.config, layout, adapt=adapt) for adapt in (None, adapted))
    unet, work = with_lora(plain), MicroBatch("video", 1, 2, 8, 8)
    trained = sum(weight.numel() for weight in trainable(unet).values())
    assert small.weights == full.weights + trained and small.trained == trained < 0.05 * full.trained
    held, all_ = small.resident(), full.resident()
    assert held["weights"] == 4 * small.weights and held["moments"] == 8 * layout.part(trained)
    assert sum(held.values()) < 0.45 * sum(all_.values())
    assert small.peak(work).backward < full.peak(work).backward


def test_another_adapter_is_refused(plain):
    unet = with_lora(plain)
    other = with_lora(plain, CustomizeConfig(lora_rank=2))
    with pytest.raises(UserError, match="of another shape"):
        load_trained(unet, dict(trainable(other)), "adapter")
    with pytest.raises(UserError, match="unexpected"):
        load_trained(unet, plain.state_dict(), "adapter")


def test_a_full_disk_is_reported(plain, tmp_path):
    full = OSError(28, "No space left on device")
    with (
        patch("gen1_train.system.files.sync", side_effect=full),
        pytest.raises(UserError, match=r"written \(No space left"),
    ):
        save_base(tmp_path, plain.state_dict())
    assert list(tmp_path.iterdir()) == []


def test_the_base_is_not_written_through_a_link(plain, tmp_path):
    (tmp_path / "victim").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    for name in (lora.BASE, f".{lora.BASE}.tmp"):
        (run / name).symlink_to(tmp_path / "victim")
    for _ in range(2):
        save_base(run, plain.state_dict())
    assert (tmp_path / "victim").read_text() == "mine" and not (run / lora.BASE).is_symlink()
