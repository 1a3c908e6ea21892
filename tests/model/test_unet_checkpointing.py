"""Tests of activation checkpointing by resolution: exactly the same step in less memory."""

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
    "explicitly none": [False] * 4,
    "finest": [True, False, False, False],
    "coarsest": [False, False, False, True],
    "all": [True] * 4,
}


def unets(values: dict, *choices: str) -> Iterator[SpatioTemporalUNet]:
    """Yields a UNet for each choice, all with the same random weights."""
    for choice in choices:
        torch.manual_seed(0)
        unet = SpatioTemporalUNet(UNetConfig(**values, checkpointing=CHOICES[choice]))
        perturb(unet)
        yield unet


def step(unet: SpatioTemporalUNet, example: tuple[Tensor, ...], temporal: bool = True) -> dict[str, Tensor]:
    """Runs a step and returns the prediction and all gradients, including those of latents and content."""
    latents = leaf(example[0])
    timesteps = example[1]
    content = leaf(example[2])
    prediction = unet(latents, timesteps, content, temporal)
    prediction.float().square().mean().backward()
    gradients = {name: p.grad for name, p in unet.named_parameters() if p.grad is not None}
    assert latents.grad is not None and content.grad is not None
    return {"prediction": prediction.detach(), "latents": latents.grad, "content": content.grad, **gradients}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], value) for name, value in expected.items())
    assert all(value.isfinite().all() for value in actual.values())


@pytest.mark.slow
@pytest.mark.parametrize("temporal", [True, False])
@pytest.mark.parametrize("tokens", [1, 3])
def test_a_checkpointed_step_is_exactly_the_same(tokens: int, temporal: bool) -> None:
    plain, *others = unets(SD1, "none", "finest", "coarsest", "all")
    latents, timesteps, content = inputs(plain.config, tokens=tokens, size=(8, 10))
    example = latents.float(), timesteps, content.float()
    expected = step(plain, example, temporal)
    for other in others:
        assert_same(step(other, example, temporal), expected)
    no_gradient = {name for name, _ in plain.named_parameters()} - expected.keys()
    assert bool(no_gradient) == (tokens == 1 or not temporal)


@pytest.mark.parametrize("values", [SD2, {**SD1, "temporal": False}, {**SD1, "layers": 1}], ids=["2", "image", "short"])
def test_a_checkpointed_step_is_exactly_the_same_for_other_unets(values: dict) -> None:
    plain, other = unets(values, "none", "all")
    example = inputs(plain.config, tokens=2, size=(7, 5))
    assert_same(step(other.double(), example), step(plain.double(), example))


@pytest.mark.parametrize("choice", ["finest", "all"])
def test_gradients_of_two_backward_passes_accumulate(choice: str) -> None:
    """As with accumulated micro-batches, several graphs exist at the same time."""
    plain, other = unets(SD1, "none", choice)
    example = [inputs(plain.config, b=1) for _ in range(2)]
    sums = []
    for unet in (plain.double(), other.double()):
        losses = [unet(*batch).square().mean() for batch in example]
        for loss in losses:
            loss.backward()
        sums.append({name: p.grad for name, p in unet.named_parameters() if p.grad is not None})
    assert_same(sums[1], sums[0])


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 3])
def test_under_autocast_the_step_is_the_same_and_finite(tokens: int) -> None:
    """The maps stay wider than one pixel where they are halved. For narrower ones, oneDNN's convolution in bfloat16
    leaves parts of the weights' gradient unwritten, with arbitrary values, NaN included.
    """
    reference, plain, other = unets(SD1, "none", "none", "all")
    latents, timesteps, content = inputs(plain.config, tokens=tokens, size=(8, 10))
    example = latents.float(), timesteps, content.float()
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = step(plain, example), step(other, example)
    assert actual["prediction"].dtype == torch.bfloat16
    assert_same(actual, expected)
    exact = step(reference, example)
    for name in ("prediction", "conv_in.weight", "up_blocks.0.resnets.0.conv1.weight", "conv_out.weight"):
        error = (actual[name] - exact[name]).norm() / exact[name].norm()
        # bfloat16 rounding through sixty layers: observed up to 0.052; unwritten memory gave 1e38
        assert error < 0.1, f"{name}: {error:.1e}"


def test_without_gradients_nothing_is_checkpointed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, other = unets(SD1, "none", "all")
    monkeypatch.setattr("gen1_train.model.unet.checkpoint", lambda *_, **__: pytest.fail("checkpointed"))
    latents, timesteps, content = inputs(plain.config)
    example = latents.float(), timesteps, content.float()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            actual, expected = other(*example), plain(*example)
        assert torch.equal(actual, expected) and not actual.requires_grad


def test_only_the_chosen_resolutions_are_computed_twice() -> None:
    (unet,) = unets(SD1, "finest")
    calls: list[nn.Module] = []
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        for resnet in block.resnets:
            resnet.register_forward_hook(lambda module, *_: calls.append(module))
    latents, timesteps, content = inputs(unet.config, b=1)
    unet(latents.float(), timesteps, content.float()).sum().backward()
    twice = {module for module in calls if calls.count(module) == 2}
    assert twice == {*unet.down_blocks[0].resnets, *unet.up_blocks[-1].resnets}
    assert len(calls) == 22 + len(twice)


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True])
def test_checkpointing_more_resolutions_saves_more_memory(autocast: bool) -> None:
    saved = {}
    for choice, unet in zip(CHOICES, unets(SD1, *CHOICES)):
        latents, timesteps, content = inputs(unet.config, b=1, n=4, size=(16, 16))
        forward = partial(unet, latents.float(), timesteps, content.float())
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            saved[choice] = saved_bytes(forward, without=unet.parameters())
    assert saved["explicitly none"] == saved["none"]
    order = [saved[choice] for choice in ("none", "coarsest", "finest", "all")]
    assert all(more > less for more, less in pairwise(order)), saved
    assert saved["finest"] < 0.6 * saved["none"] and saved["all"] < 0.35 * saved["none"], saved
