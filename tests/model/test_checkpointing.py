"""Activation checkpointing by resolution: the same step to the bit, in less memory."""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from tests.model.comparing import leaf, saved_bytes
from tests.model.reference import SD1, SD2, inputs, perturb

CHOICES = {
    "none": [],
    "none, said": [False] * 4,
    "finest": [True, False, False, False],
    "coarsest": [False, False, False, True],
    "all": [True] * 4,
}


def unets(values: dict, *choices: str) -> Iterator[SpatioTemporalUNet]:
    """UNets of the same random weights, one for each choice."""
    for choice in choices:
        torch.manual_seed(0)
        unet = SpatioTemporalUNet(UNetConfig(**values, checkpointing=CHOICES[choice]))
        perturb(unet)
        yield unet


def step(unet: SpatioTemporalUNet, given: tuple[Tensor, ...], temporal: bool = True) -> dict[str, Tensor]:
    """The prediction and all gradients, also of latents and content."""
    latents, timesteps, content = leaf(given[0]), given[1], leaf(given[2])
    made = unet(latents, timesteps, content, temporal)
    made.float().square().mean().backward()
    gradients = {name: p.grad for name, p in unet.named_parameters() if p.grad is not None}
    assert latents.grad is not None and content.grad is not None
    return {"prediction": made.detach(), "latents": latents.grad, "content": content.grad, **gradients}


def assert_same(made: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[name], value) for name, value in expected.items())
    assert all(value.isfinite().all() for value in made.values())


@pytest.mark.parametrize("temporal", [True, False])
@pytest.mark.parametrize("tokens", [1, 3])
def test_a_checkpointed_step_is_the_same_to_the_bit(tokens: int, temporal: bool) -> None:
    plain, *others = unets(SD1, "none", "finest", "coarsest", "all")
    latents, timesteps, content = inputs(plain.config, tokens=tokens, size=(8, 10))
    given = latents.float(), timesteps, content.float()
    expected = step(plain, given, temporal)
    for other in others:
        assert_same(step(other, given, temporal), expected)
    left_out = {name for name, _ in plain.named_parameters()} - expected.keys()
    assert bool(left_out) == (tokens == 1 or not temporal)  # and stay without a gradient


@pytest.mark.parametrize("values", [SD2, {**SD1, "temporal": False}, {**SD1, "layers": 1}], ids=["2", "image", "short"])
def test_other_unets_too(values: dict) -> None:
    plain, other = unets(values, "none", "all")
    given = inputs(plain.config, tokens=2, size=(7, 5))
    assert_same(step(other.double(), given), step(plain.double(), given))


@pytest.mark.parametrize("choice", ["finest", "all"])
def test_two_backward_passes_add_up(choice: str) -> None:
    """As with accumulated micro-batches: graphs of several passes, held at the same time."""
    plain, other = unets(SD1, "none", choice)
    given = [inputs(plain.config, b=1) for _ in range(2)]
    sums = []
    for unet in (plain.double(), other.double()):
        losses = [unet(*batch).square().mean() for batch in given]
        for loss in losses:
            loss.backward()
        sums.append({name: p.grad for name, p in unet.named_parameters() if p.grad is not None})
    assert_same(sums[1], sums[0])


@pytest.mark.parametrize("tokens", [1, 3])
def test_under_autocast_the_step_is_the_same_and_finite(tokens: int) -> None:
    """Maps stay wider than a pixel where they are halved. Of such, oneDNN's convolution in bfloat16 leaves parts of the
    weights' gradient unwritten: whatever lay in that memory before, NaN too.
    """
    reference, plain, other = unets(SD1, "none", "none", "all")
    latents, timesteps, content = inputs(plain.config, tokens=tokens, size=(8, 10))
    given = latents.float(), timesteps, content.float()
    with torch.autocast("cpu", torch.bfloat16):
        expected, made = step(plain, given), step(other, given)
    assert made["prediction"].dtype == torch.bfloat16
    assert_same(made, expected)
    exact = step(reference, given)
    for name in ("prediction", "conv_in.weight", "up_blocks.0.resnets.0.conv1.weight", "conv_out.weight"):
        error = (made[name] - exact[name]).norm() / exact[name].norm()
        # bfloat16's rounding through sixty layers: up to 0.052 seen; what lay in unwritten memory was 1e38
        assert error < 0.1, f"{name}: {error:.1e}"


def test_without_gradients_nothing_is_checkpointed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, other = unets(SD1, "none", "all")
    monkeypatch.setattr("gen1_train.model.unet.checkpoint", lambda *_, **__: pytest.fail("checkpointed"))
    latents, timesteps, content = inputs(plain.config)
    given = latents.float(), timesteps, content.float()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            made, expected = other(*given), plain(*given)
        assert torch.equal(made, expected) and not made.requires_grad


def test_what_is_computed_twice_is_what_was_chosen() -> None:
    (unet,) = unets(SD1, "finest")
    seen: list[nn.Module] = []
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        for resnet in block.resnets:
            resnet.register_forward_hook(lambda module, *_: seen.append(module))
    latents, timesteps, content = inputs(unet.config, b=1)
    unet(latents.float(), timesteps, content.float()).sum().backward()
    twice = {module for module in seen if seen.count(module) == 2}
    assert twice == {*unet.down_blocks[0].resnets, *unet.up_blocks[-1].resnets}
    assert len(seen) == 22 + len(twice)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_more_is_checkpointed_the_less_is_kept(autocast: bool) -> None:
    kept = {}
    for choice, unet in zip(CHOICES, unets(SD1, *CHOICES)):
        latents, timesteps, content = inputs(unet.config, b=1, n=4, size=(16, 16))
        forward = partial(unet, latents.float(), timesteps, content.float())
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            kept[choice] = saved_bytes(forward, without=unet.parameters())
    assert kept["none, said"] == kept["none"]
    order = [kept[choice] for choice in ("none", "coarsest", "finest", "all")]
    assert all(more > less for more, less in pairwise(order)), kept
    assert kept["finest"] < 0.6 * kept["none"] and kept["all"] < 0.35 * kept["none"], kept
