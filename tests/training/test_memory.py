from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.memory import SMALL, Case, measured, planned
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.memory import Layout, Planner, ZeroSettings
from gen1_train.training.tracing import Buckets, Numbers, Tracer, Work
from tests.model.comparing import saved_bytes

TINY = replace(
    SMALL, channels=[32, 64], attention=[True] * 2, heads=[2] * 2
)  # heads as wide as on a GPU, where none are filled up
WORKS = {"image": Work("image", 3, 1, 8, 12), "video": Work("video", 2, 4, 8, 12)}
FP32, BF16, AUTOCAST = (
    Numbers(torch.float32, False),
    Numbers(torch.bfloat16, False),
    Numbers(torch.float32, True),
)
ZERO = ZeroSettings(bucket=1000, overlap=True, live=10**9, persistent=0)


def checkpointed(config: UNetConfig, yes: bool) -> UNetConfig:
    return replace(config, checkpointing=[yes] * len(config.channels))


@pytest.mark.parametrize("kind", WORKS)
@pytest.mark.parametrize("numbers", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_those_that_autograd_keeps_of_real_tensors(kind, numbers, checkpointing):
    config, work = checkpointed(TINY, checkpointing), WORKS[kind]
    unet = SpatioTemporalUNet(config).to(numbers.dtype)
    shape = work.samples, work.frames, 4, work.height, work.width
    latents, timesteps = torch.randn(shape).to(numbers.dtype), torch.zeros(work.samples)
    content = torch.randn(work.samples, 1, config.content_dim).to(numbers.dtype)
    weights = list(unet.parameters())
    real = saved_bytes(lambda: unet(latents, timesteps, content, temporal=kind == "video"), without=weights)
    traced = Tracer(config, numbers).trace(work).activations
    assert real <= traced <= 1.02 * real  # the loss keeps a little, and it is traced with it


def test_a_trace_is_the_same_again_and_leaves_nothing():
    tracer = Tracer(TINY, FP32)
    first = tracer.trace(WORKS["video"])
    tracer.trace(WORKS["image"])
    assert tracer.trace(WORKS["video"]) == first
    assert all(weight.grad is None for weight in tracer.unet.parameters())


def test_a_pass_of_one_process_ends_with_all_gradients_and_one_of_zero_with_none():
    """Where activations are few, the peak of a pass is the gradients; ZeRO holds its buckets and its part instead."""
    wide = checkpointed(replace(TINY, channels=[256] * 2, context_dim=256), True)
    tracer, work = Tracer(wide, FP32), Work("image", 1, 1, 4, 4)
    weights = sum(tracer.sizes)
    used = sum(p.numel() for name, p in tracer.unet.named_parameters() if "temporal" not in name)
    assert tracer.trace(work).peak >= 4 * weights  # of the step before, in the forward pass
    part = 4 * (weights // 2)
    reduced = tracer.trace(work, Buckets(size=10**5, held=2 * 10**5, part=weights // 2)).peak
    assert part < reduced < part + used
    accumulated = tracer.trace(work, standing=True).peak
    assert accumulated < 0.2 * weights * 4  # they are counted with what stands


def test_autocast_keeps_norms_in_float32_and_copies_the_weights():
    plain, autocast, bf16 = (Tracer(TINY, numbers).trace(WORKS["video"]) for numbers in (FP32, AUTOCAST, BF16))
    assert bf16.activations < autocast.activations
    assert autocast.peak < plain.peak + 2 * sum(Tracer(TINY, FP32).sizes)


def test_activations_grow_with_the_batch_by_equal_steps():
    tracer = Tracer(TINY, FP32)
    one, two, three = (tracer.trace(replace(WORKS["image"], samples=n)).activations for n in (1, 2, 3))
    assert abs((three - two) - (two - one)) <= 1e-3 * one


@pytest.mark.parametrize("strategy", ["single", "ddp", "zero1", "zero2", "zero3"])
def test_what_stands_is_the_zero_papers_formula(strategy):
    """Section 3: 2 + 2 + 12 bytes a weight in mixed precision, of which each stage divides some by the ranks."""
    world = 1 if strategy == "single" else 4
    planner = Planner(TINY, Layout(strategy, "bf16-mixed", world, ema=1, zero=ZERO))
    standing, weights = planner.standing(), planner.weights
    part = -(-weights // 4)
    sharded = {"moments": 8 * part, "EMA": 4 * part, "masters": 4 * part}
    expected = {
        "single": {"weights": 4 * weights, "moments": 8 * weights, "EMA": 4 * weights},
        "ddp": {"weights": 4 * weights, "moments": 8 * weights, "EMA": 4 * weights, "DDP's buckets": 4 * weights},
        "zero1": {"weights": 2 * weights, **sharded, "ZeRO's buckets": 4 * ZERO.bucket},
        "zero2": {"weights": 2 * weights, **sharded, "ZeRO's buckets": 4 * ZERO.bucket},
        "zero3": {
            **{"weights": 2 * part, **sharded, "gradients": 2 * part},
            "ZeRO's buckets": 2 * ZERO.bucket,
        },
    }
    assert standing == expected[strategy]


def test_weights_without_a_gradient_are_counted_as_missing():
    """What an image step leaves out: the temporal layers; and by one content token: queries, keys and their norm."""
    unet = Tracer(TINY, FP32).unet
    sizes = {name: weight.numel() for name, weight in unet.named_parameters()}
    left_out = ("attn2.to_q", "attn2.to_k", ".transformer_blocks.0.norm2.")
    always = sum(n for name, n in sizes.items() if any(part in name for part in left_out))
    temporal = sum(n for name, n in sizes.items() if "temporal" in name)
    for buckets in (None, Buckets(1000, 2000, 1000)):
        tracer = Tracer(TINY, FP32)
        assert tracer.trace(WORKS["video"], buckets).missing == always
        assert tracer.trace(WORKS["image"], buckets).missing == always + temporal


@pytest.mark.slow
def test_more_ranks_take_less_under_zero_alone():
    totals = {
        (strategy, world): Planner(TINY, Layout(strategy, "32-true", world, zero=ZERO)).plan([WORKS["image"]]).total
        for strategy in ("ddp", "zero1", "zero2", "zero3")
        for world in (1, 8)
    }
    assert totals["ddp", 1] == totals["ddp", 8]
    for strategy in ("zero1", "zero2", "zero3"):
        assert totals[strategy, 1] > totals[strategy, 8]


def test_gradients_stand_where_micro_batches_are_accumulated():
    plans = {
        strategy: Planner(TINY, Layout(strategy, "bf16-mixed", 4, accumulate=2, zero=ZERO)).standing()["gradients"]
        for strategy in ("ddp", "zero1", "zero2")
    }
    weights = sum(Tracer(TINY, BF16).sizes)
    assert plans == {"ddp": 4 * weights, "zero1": 2 * weights, "zero2": 2 * -(-weights // 4)}


@pytest.mark.slow
def test_stable_diffusions_size_is_planned_without_its_memory():
    full = UNetConfig(in_channels=12)
    plan = Planner(full, Layout("single", "32-true", 1)).plan([Work("video", 1, 8, 32, 56)])
    assert plan.weights == 1_079_841_604
    assert 7.4e9 < plan.peaks[0].activations < 7.7e9


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("strategy", "world"), [("single", 1), ("zero2", 2)])
def test_the_plan_is_within_a_tenth_of_the_measured_peak(tmp_path: Path, strategy, world, checkpointing):
    """Of steps of images and of videos; buckets small enough that they do not hide the rest."""
    case = Case(strategy, world, checkpointing, bucket=2_000_000)
    plan, peaks = planned(case), measured(case, tmp_path)
    assert plan.keys() == peaks.keys() == {"image", "video"}
    for kind, peak in peaks.items():
        assert abs(plan[kind] - peak) <= 0.1 * peak, f"{kind}: {plan[kind]} planned, {peak} measured"
