"""Compiled layers: the same values and gradients, shared graphs, and gradients that come during the backward pass."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gen1_train.model.compiling import compile_layers, layers_of, release_layers
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig

CONFIG = UNetConfig(
    channels=[8, 16], attention=[True, False], heads=[2, 2], groups=4, context_dim=8, content_dim=8, layers=1
)


@pytest.fixture(scope="module")
def backend() -> Iterator[Any]:
    """A backend that counts graphs, which all UNets here share: dynamo's are global in the process."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch.compiler.reset()
    limits = torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit
    yield CompileCounterWithBackend("aot_eager")
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit = limits


@pytest.fixture(autouse=True)
def usual_stance() -> Iterator[None]:
    yield
    torch.compiler.set_stance("default")


def make(config: UNetConfig = CONFIG) -> SpatioTemporalUNet:
    torch.manual_seed(0)
    unet = SpatioTemporalUNet(config)
    for weight in unet.parameters():  # none is zero, so every layer has a gradient
        torch.nn.init.normal_(weight, std=0.2)
    return unet


def inputs(frames: int, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(batch, frames, 4, 8, 8), torch.full((batch,), 7), torch.randn(batch, 2, 8)


def gradients(unet: SpatioTemporalUNet, frames: int) -> list[Tensor]:
    loss = unet(*inputs(frames), temporal=frames > 1).square().mean()
    return [loss.detach(), *torch.autograd.grad(loss, list(unet.parameters()), materialize_grads=True)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_values_and_gradients_are_those_of_the_plain_unet(backend: Any) -> None:
    """With and without checkpointing, which uses the same graphs."""
    for checkpointing in ([], [True, False]):
        config = replace(CONFIG, checkpointing=checkpointing)
        plain, unet = make(config), make(config)
        names = list(unet.state_dict())
        compile_layers(unet, backend)
        for frames in (4, 1):
            gradients(unet, frames)
        layers = len(layers_of(unet))
        # two modes: a graph for each kind and size of layer, not for each layer
        assert list(unet.state_dict()) == names and 0 < backend.frame_count < 2 * layers
        torch.compiler.set_stance("fail_on_recompile")
        for frames in (1, 4):
            for made, wanted in zip(gradients(unet, frames), gradients(plain, frames), strict=True):
                torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5)
        torch.compiler.set_stance("default")
        release_layers(unet)
        for made, wanted in zip(gradients(unet, 4), gradients(plain, 4), strict=True):
            assert torch.equal(made, wanted)


def test_gradients_come_while_the_backward_pass_runs(backend: Any) -> None:
    """So that DDP and ZeRO can communicate them meanwhile."""
    unet = make()
    compile_layers(unet, backend)
    done: set[str] = set()
    seen: list[set[str]] = []
    for name, weight in unet.named_parameters():
        weight.register_post_accumulate_grad_hook(lambda _, name=name: done.add(name))

    def watch(module: torch.nn.Module, arguments: object, output: Tensor) -> None:
        output.register_hook(lambda gradient: seen.append(set(done)))

    unet.mid_block.register_forward_hook(watch)
    unet(*inputs(4)).square().mean().backward()
    above = {name for name, _ in unet.named_parameters() if name.startswith(("up_blocks", "conv_norm_out", "conv_out"))}
    (at_the_middle,) = seen
    assert above <= at_the_middle and not any(name.startswith("down_blocks") for name in at_the_middle)
    assert done == {name for name, _ in unet.named_parameters()}
