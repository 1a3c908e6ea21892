"""Tests of attention across frames as GPUs compute it, on a CPU: against torch's fused attention in float64."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gen1_train.model import temporal
from gen1_train.model.temporal import ExplicitAttention, attend_frames
from tests.model.comparing import agree, gradients, leaf, relative_error, saved_bytes
from tests.model.fake_gpu import backward, fake_gpu

B = 2
HEADS = 15
explicit = ExplicitAttention.apply


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def example(frames: int, width: int = 64, dtype: torch.dtype = torch.float64, heads: int = HEADS) -> list[Tensor]:
    """Returns q, k and v (b, heads, n, d) in the layout of TemporalAttention; the logits have a deviation of 4."""
    return [leaf((2 * torch.randn(B, frames, heads, width)).to(dtype).transpose(1, 2)) for _ in range(3)]


@pytest.fixture(params=["whole", "in parts"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Some tests run also as if a few heads of one clip were all that fits."""
    if request.param == "in parts":
        monkeypatch.setattr(temporal, "MAX_HEADS", 8)
    yield request.param


@pytest.mark.parametrize("width", [4, 64])
@pytest.mark.parametrize("frames", [2, 3, 8, 16, 32])
def test_explicit_products_are_fused_attention(frames: int, width: int, parts: str) -> None:
    inputs = example(frames, width)
    actual = gradients(explicit, *inputs)
    agree(actual, gradients(F.scaled_dot_product_attention, *inputs), 1e-12)
    assert actual[0].transpose(1, 2).is_contiguous()


def test_a_single_frame_attends_to_itself() -> None:
    """The gradients of queries and keys are exactly zero, not rounding noise, of which Adam would make whole steps."""
    q, k, v = example(1)
    y, to_q, to_k, to_v = gradients(explicit, q, k, v)
    assert torch.equal(y, v) and not to_q.any() and not to_k.any() and to_v.any()


@pytest.mark.parametrize("frames", [2, 8, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_explicit_products_round_no_worse_than_fused_attention(dtype: torch.dtype, frames: int) -> None:
    inputs = example(frames, dtype=dtype)
    exact = gradients(F.scaled_dot_product_attention, *(leaf(x.double()) for x in inputs))
    fused, ours = (gradients(f, *inputs) for f in (F.scaled_dot_product_attention, explicit))
    for name, actual, theirs, expected in zip("yqkv", ours, fused, exact, strict=True):
        assert actual.dtype == dtype
        bound = 1.5 * relative_error(theirs, expected) + 2 * torch.finfo(dtype).eps
        assert relative_error(actual, expected) < bound, name


def test_the_softmax_is_in_float32_under_autocast() -> None:
    inputs = example(8, dtype=torch.float32)
    exact = gradients(F.scaled_dot_product_attention, *(leaf(x.double()) for x in inputs))
    with torch.autocast("cpu", torch.bfloat16):
        actual = gradients(explicit, *inputs)
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(actual, exact, strict=True))


def test_gradients_pass_gradcheck(parts: str) -> None:
    assert torch.autograd.gradcheck(explicit, example(3, width=2, heads=5))


def test_only_the_inputs_are_saved() -> None:
    inputs = example(8, dtype=torch.float32)
    assert saved_bytes(lambda: explicit(*inputs)) == sum(x.nbytes for x in inputs)


# 448x256 and 1280x720 pixels with 320 channels, and more clips than fit on a GPU
@pytest.mark.parametrize("frames", [8, 32, 33, 64])
@pytest.mark.parametrize(("clips", "pixels"), [(32, 32 * 56), (4, 90 * 160), (1, 90 * 160), (100, 32 * 56)])
def test_no_product_on_a_gpu_exceeds_the_limits_of_its_kernels(clips: int, pixels: int, frames: int) -> None:
    """Runs forward and backward on fake tensors, and watches every call of a kernel that has such limits."""
    sizes: list[tuple[int, int]] = []
    matmul, fused = torch.Tensor.__matmul__, []

    def watched(a: Tensor, b: Tensor) -> Tensor:
        result = matmul(a, b)
        sizes.append((a.shape[0] * a.shape[1], max(x.numel() for x in (a, b, result))))
        return result

    with fake_gpu(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "__matmul__", watched)
        flash = F.scaled_dot_product_attention

        def counted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            padded = -(-q.shape[2] // 128) * 128
            fused.append((q.shape[0] * q.shape[1], q.numel() // q.shape[2] * padded))
            return flash(q, k, v)

        patch.setattr(F, "scaled_dot_product_attention", counted)
        q, k, v = (torch.empty(clips, frames, pixels * 5, 64).transpose(1, 2).requires_grad_() for _ in range(3))
        result = attend_frames(q, k, v)
        assert result.shape == q.shape and result.transpose(1, 2).is_contiguous()
        if frames <= temporal.MAX_EXPLICIT_FRAMES:
            backward(result)
    assert bool(fused) == (frames > temporal.MAX_EXPLICIT_FRAMES) != bool(sizes)
    assert all(heads <= 65535 and elements < 2**31 for heads, elements in sizes + fused)


@pytest.mark.parametrize("heads", [5, 8, 15])
def test_long_clips_are_attended_to_in_parts(monkeypatch: pytest.MonkeyPatch, heads: int) -> None:
    """The branch for long clips on a GPU, run on a CPU."""
    monkeypatch.setattr(temporal, "MAX_HEADS", 8)
    monkeypatch.setattr(temporal, "on_gpu", lambda x: True)
    inputs = example(temporal.MAX_EXPLICIT_FRAMES + 1, 4, heads=heads)
    actual = gradients(attend_frames, *inputs)
    agree(actual, gradients(F.scaled_dot_product_attention, *inputs), 1e-12)


@pytest.mark.slow
def test_a_compiler_takes_it_as_one_graph() -> None:
    inputs = example(8, dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(explicit, backend="aot_eager", fullgraph=True)
    agree(gradients(compiled, *inputs), gradients(F.scaled_dot_product_attention, *inputs), 1e-5)
    torch._dynamo.reset()
