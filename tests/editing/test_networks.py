"""The networks of an edit: called directly, compiled, in half precision, on large frames, and when they overflow."""

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gen1_train.editing import networks
from gen1_train.editing.networks import Denoiser, FrameCoder, place, to_channels_last
from gen1_train.editing.precision import Formats
from gen1_train.errors import UserError
from gen1_train.frozen.autoencoder import Autoencoder, AutoencoderConfig, to_pixels, to_signed
from gen1_train.model.compiling import compile_layers, release_layers
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from miniature.world.render import render_clip
from tests.running import WEIGHTS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def original() -> SpatioTemporalUNet:
    torch.manual_seed(0)
    small: dict[str, Any] = {"channels": [8, 16], "attention": [True, False], "heads": [2, 2], "layers": 1, "groups": 4}
    unet = SpatioTemporalUNet(UNetConfig(context_dim=8, content_dim=8, temporal_head_width=8, **small))
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "temporal" in name:
                weight.add_(0.05 * torch.randn_like(weight))
    return unet.eval().requires_grad_(False)


@pytest.fixture
def unet(original: SpatioTemporalUNet) -> SpatioTemporalUNet:
    return copy.deepcopy(original)


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    return Autoencoder(AutoencoderConfig(str(WEIGHTS / "autoencoder")))


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 3, 4, 8, 12, generator=generator)
    return latents, torch.tensor([500, 500]), torch.randn(2, 1, 8, generator=generator)


@pytest.mark.parametrize("temporal", [True, False])
def test_fp32_has_the_bits_of_the_unet_itself(
    unet: SpatioTemporalUNet, inputs: tuple[Tensor, Tensor, Tensor], temporal: bool
) -> None:
    expected = unet(*inputs, temporal)
    denoiser = Denoiser(unet, Formats(), CPU)
    assert torch.equal(denoiser(*inputs, temporal), expected)
    with torch.autocast("cpu", torch.bfloat16):  # as in the code of a caller
        assert torch.equal(denoiser(*inputs, temporal), expected)
    denoiser.check()


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 3e-2), ("fp16", 4e-3)])
def test_half_precision_is_close_and_float32_in_and_out(
    unet: SpatioTemporalUNet, inputs: tuple[Tensor, Tensor, Tensor], precision: str, bound: float
) -> None:
    expected = unet(*inputs)
    formats = Formats(precision)
    place(unet, CPU, formats.unet)
    assert {weight.dtype for weight in unet.parameters()} == {formats.unet}
    v = Denoiser(unet, formats, CPU)(*inputs, True)
    assert v.dtype == torch.float32
    assert 0 < (v - expected).abs().max() < bound * expected.abs().max()


def test_an_overflow_is_one_line_that_names_the_remedy(
    unet: SpatioTemporalUNet, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    unet.conv_in.weight.mul_(2e5)  # the group norms behind it bring the values back, except for those that are infinite
    expected = unet(*inputs)
    assert expected.isfinite().all()
    for precision, remedy in (("bf16", None), ("fp16", "use precision=bf16, on GPUs that have it, or precision=fp32")):
        half = copy.deepcopy(unet).to(Formats(precision).unet)
        denoiser = Denoiser(half, Formats(precision), CPU)
        denoiser(*inputs, True)
        if remedy is None:
            denoiser.check()
            continue
        with pytest.raises(UserError) as error:
            denoiser.check()
        assert str(error.value) == f"the UNet returned values that are not finite in precision=fp16: {remedy}"


@pytest.mark.parametrize(
    ("precision", "remedy"), [("bf16", "use precision=fp32"), ("fp32", "or its training diverged: use another one")]
)
def test_damaged_weights_are_found_in_every_precision(
    unet: SpatioTemporalUNet, inputs: tuple[Tensor, Tensor, Tensor], precision: str, remedy: str
) -> None:
    unet.conv_out.bias[0] = float("nan")
    denoiser = Denoiser(unet.to(Formats(precision).unet), Formats(precision), CPU)
    denoiser(*inputs, True)
    with pytest.raises(UserError, match=f"not finite in precision={precision}: .*{remedy}$"):
        denoiser.check()


def test_channels_last_weights_change_rounding_only(
    unet: SpatioTemporalUNet, autoencoder: Autoencoder, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    """The GPU's format. On a CPU, `place` keeps the weights as they are, so that today's bits stay."""
    before = {name: weight.stride() for name, weight in unet.named_parameters()}
    place(unet, CPU, torch.float32)
    assert {name: weight.stride() for name, weight in unet.named_parameters()} == before
    expected = unet(*inputs)
    to_channels_last(unet)
    maps = [weight for weight in unet.parameters() if weight.ndim == 4]
    assert maps and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in maps)
    torch.testing.assert_close(unet(*inputs), expected, rtol=1e-4, atol=1e-5)
    frozen = copy.deepcopy(autoencoder)
    to_channels_last(frozen)
    assert frozen.fingerprint == autoencoder.fingerprint


@pytest.fixture
def fresh_compiler() -> Any:
    torch.compiler.reset()
    limits = torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit
    yield
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit = limits


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.timeout(600)
def test_compiled_layers_give_the_same_values_and_share_graphs(
    unet: SpatioTemporalUNet, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    expected = [unet(*inputs, temporal) for temporal in (True, False)]
    names = list(unet.state_dict())
    counter: Any = CompileCounterWithBackend("aot_eager")
    compile_layers(unet, counter)
    denoiser = Denoiser(unet, Formats(), CPU)
    for temporal, values in zip((True, False), expected):
        torch.testing.assert_close(denoiser(*inputs, temporal), values, rtol=1e-4, atol=1e-5)
    layers = sum(layer._compiled_call_impl is not None for layer in unet.modules())
    graphs = counter.frame_count
    assert list(unet.state_dict()) == names and layers and 0 < graphs < 2 * layers  # not one for each layer and mode
    denoiser(*inputs, True)
    assert counter.frame_count == graphs  # nothing is compiled in the steps after the first


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiler_that_fails_is_one_line_and_the_edit_runs_without_it(
    unet: SpatioTemporalUNet, inputs: tuple[Tensor, Tensor, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(graph: Any, example: Any) -> Any:
        raise RuntimeError("no C++ compiler\nwas found")

    expected = unet(*inputs)
    backend: Any = no_compiler
    compile_layers(unet, backend)
    denoiser = Denoiser(unet, Formats(), CPU)
    with caplog.at_level(logging.WARNING, "gen1_train"):
        assert torch.equal(denoiser(*inputs, True), expected)
        assert torch.equal(denoiser(*inputs, True), expected)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "compile=true: the UNet cannot be compiled (RuntimeError: no C++ compiler was found); it runs without"
    ]


def test_an_error_of_the_unet_is_not_taken_for_the_compiler_s(unet: SpatioTemporalUNet) -> None:
    with pytest.raises(RuntimeError):
        Denoiser(unet, Formats(), CPU)(torch.zeros(1, 2, 3, 8, 8), torch.tensor([1]), torch.zeros(1, 1, 8), True)
    release_layers(unet)


def test_fp32_has_the_bits_of_the_autoencoder_itself(autoencoder: Autoencoder) -> None:
    frames = render_clip(3, 3, 64, 112).frames
    coder = FrameCoder(autoencoder, Formats(), CPU)
    moments = autoencoder.encode_moments(to_signed(torch.from_numpy(frames)))
    latents = coder.encode(frames)
    assert torch.equal(latents, moments.chunk(2, dim=1)[0] * autoencoder.scale)
    structure = torch.rand(3, 64, 112, generator=torch.Generator().manual_seed(0))
    assert torch.equal(coder.encode_structure(structure), autoencoder.encode_structure(structure))
    assert np.array_equal(coder.decode(latents), to_pixels(autoencoder.decode(latents)).numpy())


def test_large_frames_come_few_at_a_time_and_keep_their_values(
    autoencoder: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = render_clip(3, 5, 64, 112).frames
    structure = torch.rand(5, 64, 112, generator=torch.Generator().manual_seed(0))
    coder = FrameCoder(autoencoder, Formats(), CPU)
    latents, maps, decoded = coder.encode(frames), coder.encode_structure(structure), coder.decode(coder.encode(frames))
    sizes: list[int] = []

    def counted(name: str) -> Any:
        call = getattr(autoencoder.kl, name)
        return lambda part, *rest: sizes.append(len(part)) or call(part, *rest)

    monkeypatch.setattr(networks, "PIXELS", 2 * 64 * 112)
    for name in ("encode", "decode"):
        monkeypatch.setattr(autoencoder.kl, name, counted(name))
    torch.testing.assert_close(coder.encode(frames), latents, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(coder.encode_structure(structure), maps, rtol=1e-4, atol=1e-5)
    assert np.abs(coder.decode(latents).astype(int) - decoded).max() <= 1
    assert sizes == [2, 2, 1] * 3
    monkeypatch.setattr(networks, "PIXELS", 64 * 112)
    assert coder.encode(frames).shape == latents.shape and sizes[9:] == [1] * 5


def test_frames_larger_than_a_call_come_in_tiles(autoencoder: Autoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = render_clip(3, 2, 96, 160).frames
    structure = torch.rand(2, 96, 160, generator=torch.Generator().manual_seed(0))
    coder = FrameCoder(autoencoder, Formats(), CPU)
    latents, maps = coder.encode(frames), coder.encode_structure(structure)
    decoded = coder.decode(latents).astype(int)
    monkeypatch.setattr(networks, "PIXELS", 96 * 80)
    for name in ("encode", "decode"):
        monkeypatch.delattr(type(autoencoder.kl), name)  # whole frames
    for tiled, whole in ((coder.encode(frames), latents), (coder.encode_structure(structure), maps)):
        assert 0 < (tiled - whole).square().mean().sqrt() < 0.02 * whole.std()
    tiled_frames = coder.decode(latents).astype(int)
    assert 0 < np.abs(tiled_frames - decoded).mean() < 1


def test_frames_that_overflow_in_fp16_are_decoded_again_in_fp32(autoencoder: Autoencoder) -> None:
    frozen = copy.deepcopy(autoencoder)
    latents = FrameCoder(frozen, Formats(), CPU).encode(render_clip(3, 1, 64, 112).frames)
    frozen.kl.decoder.conv_in.weight.mul_(1e6)
    expected = frozen.decode(latents)
    with torch.autocast("cpu", torch.float16):
        assert not frozen.kl.decode(latents / frozen.scale).sample.isfinite().all()
        assert torch.equal(frozen.decode(latents), expected) and expected.isfinite().all()
    half = autoencoder.decode(latents)
    with torch.autocast("cpu", torch.float16):
        assert autoencoder.decode(latents).dtype == half.dtype == torch.float32


def test_frames_that_are_not_finite_are_one_line(autoencoder: Autoencoder) -> None:
    latents = torch.full((1, 4, 8, 14), float("nan"))
    with pytest.raises(UserError, match=r"^the autoencoder returned frames that are not finite: use precision="):
        FrameCoder(autoencoder, Formats(), CPU).decode(latents)
