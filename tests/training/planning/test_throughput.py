"""The FLOPs computed from the config equal those that torch counts when the UNet runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gen1_train.batch import Batch
from gen1_train.data.manifest import Manifest
from gen1_train.data.schedule import Schedule, Settings
from gen1_train.data.shards import ShardSet
from gen1_train.frozen.autoencoder import Autoencoder, AutoencoderConfig
from gen1_train.frozen.levels import with_levels
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.reporting.rows import read_metrics
from gen1_train.training.callbacks import measure
from gen1_train.training.callbacks.measure import BatchFlops
from gen1_train.training.callbacks.metrics import MetricsCSV
from gen1_train.training.config import TrainConfig
from gen1_train.training.module import DiffusionConfig, Gen1Module, StageSpec
from gen1_train.training.network import OptimConfig
from gen1_train.training.planning.throughput import gemm_rate, step_cost, step_flops, unet_flops
from gen1_train.training.planning.workload import encoding_of
from gen1_train.training.stages import StageConfig
from tests.made import WIDTH, make_shard_set
from tests.running import WEIGHTS
from tests.training.test_module_waits import make_batch

SMALL = UNetConfig(
    channels=[32, 64],  # heads are 16 channels wide or more: a CPU fills narrower ones up
    attention=[True, False],
    heads=[2, 2],
    layers=1,
    groups=8,
    context_dim=24,
    content_dim=24,
)
THREE = {"channels": [32, 64, 96], "attention": [False, True, True], "heads": [1, 4, 2]}
SD1 = UNetConfig()
SD2 = UNetConfig(heads=[5, 10, 20, 20], context_dim=1024, content_dim=1024, linear_projection=True)
# changes of SMALL's config; height, width, frames and what else differs from a video with one token
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "video": ({}, {}),
    "odd": ({}, {"height": 7, "width": 9}),
    "odd further down": (THREE, {"height": 12, "width": 10}),
    "image": ({}, {"frames": 1, "temporal": False}),
    "frames alone": ({}, {"temporal": False}),
    "one frame": ({}, {"frames": 1}),
    "image UNet": ({"temporal": False}, {}),
    "tokens": ({}, {"tokens": 5}),
    "projected content": ({"content_dim": 16}, {}),
    "projected tokens": ({"content_dim": 16}, {"tokens": 5}),
    "structure": ({"in_channels": 12, "linear_projection": True}, {}),
    "deeper": ({"layers": 2, "temporal_kernel": 5, "temporal_expansion": 2, "temporal_head_width": 32}, {}),
    "checkpointing": ({"checkpointing": [True, True]}, {}),
    "some checkpointing": ({"checkpointing": [True, False], "layers": 2}, {"tokens": 5, "height": 7}),
    "coarse checkpointing": ({"checkpointing": [False, True], "layers": 2}, {}),
    "image checkpointing": ({"checkpointing": [True, True]}, {"frames": 1, "temporal": False}),
}


def shape_of(case: dict[str, Any]) -> dict[str, Any]:
    return {"height": 8, "width": 8, "frames": 3, "tokens": 1, "temporal": True, **case}


def counted(
    unet: SpatioTemporalUNet, clips: int, height: int, width: int, frames: int, tokens: int, temporal: bool
) -> tuple[int, int]:
    """Returns torch's counts for the forward pass, and for forward and backward pass."""
    device = unet.conv_in.weight.device
    latents = torch.zeros(clips, frames, unet.config.in_channels, height, width, device=device)
    content = torch.zeros(clips, tokens, unet.config.content_dim, device=device)
    with FlopCounterMode(display=False) as counter:
        out = unet(latents, torch.zeros(clips, dtype=torch.long, device=device), content, temporal)
        forward = counter.get_total_flops()
        out.sum().backward()
        return forward, counter.get_total_flops()


def counted_per_clip(device: str, config: UNetConfig, **shape: Any) -> tuple[int, int]:
    """Returns the cost of one more clip. It excludes the kernels that UpsamplingConv computes once per pass."""
    with torch.device(device):
        unet = SpatioTemporalUNet(config)
    (one_forward, one), (two_forward, two) = (counted(unet, clips, **shape) for clips in (1, 2))
    if config.channels == SD1.channels:
        assert one == pytest.approx(two - one, rel=0.005)  # they are next to nothing
    return two_forward - one_forward, two - one


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_flops_equal_torch_s_counts(case):
    """On a CPU, attention is fused: the backward pass computes queries times keys again, as on a GPU."""
    change, differs = CASES[case]
    config, shape = replace(SMALL, **change), shape_of(differs)
    forward, step = counted_per_clip("cpu", config, **shape)
    assert unet_flops(config, **shape).total == forward
    assert step_flops(config, **shape, recomputed=True).total == step


@pytest.mark.slow
@pytest.mark.parametrize("case", ["video", "projected tokens"])
def test_without_recomputation_flops_equal_those_of_unfused_attention(case):
    """On the meta device, attention is not fused."""
    change, differs = CASES[case]
    config, shape = replace(SMALL, **change), shape_of(differs)
    assert step_flops(config, **shape).total == counted_per_clip("meta", config, **shape)[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "size", "more"),
    [
        (SD1, (32, 56), {}),
        (replace(SD1, in_channels=12), (40, 40), {}),
        (SD1, (40, 48), {"tokens": 5}),
        (SD1, (33, 55), {}),
        (SD1, (40, 40), {"frames": 1, "temporal": False}),
        (SD2, (32, 56), {"tokens": 5}),
    ],
)
def test_flops_of_stable_diffusion_equal_torch_s_counts(config, size, more):
    shape = shape_of({"height": size[0], "width": size[1], "frames": 8, **more})
    forward, step = counted_per_clip("meta", config, **shape)
    assert unet_flops(config, **shape).total == forward
    assert step_flops(config, **shape).total == step


@pytest.mark.parametrize("case", CASES)
def test_without_temporal_layers_all_flops_are_spatial(case):
    change, differs = CASES[case]
    config, shape = replace(SMALL, **change), shape_of(differs)
    alone = {**shape, "temporal": False}
    for flops in (unet_flops, step_flops):
        assert flops(config, **shape).spatial == flops(config, **alone).total
        assert flops(config, **alone).temporal == 0
        assert (flops(config, **shape).temporal > 0) == (config.temporal and shape["temporal"])


def test_checkpointing_costs_at_most_one_more_forward_pass():
    forward, step = unet_flops(SD1, 32, 56, 8), step_flops(SD1, 32, 56, 8)
    all_again = replace(SD1, checkpointing=[True] * 4)
    assert step_flops(all_again, 32, 56, 8) == step  # utilisation does not grow with what is done twice
    kept, again = (step_flops(config, 32, 56, 8, recomputed=True).total for config in (SD1, all_again))
    assert 2.99 * forward.total < step.total < kept < again < kept + forward.total


def batch(kind: str, b: int, n: int) -> Batch:
    return Batch(kind, 0, list(range(b)), [""] * b, torch.zeros(b, n, 8, 8, 6), torch.zeros(b, n, 24))


def test_a_batch_costs_its_samples_and_each_shape_is_computed_once(monkeypatch):
    calls = []
    monkeypatch.setattr(measure, "step_flops", lambda *args, **more: calls.append(args) or step_flops(*args, **more))
    flops = BatchFlops(SMALL, 8)
    assert flops(batch("video", 2, 3)) == 2 * step_flops(SMALL, 8, 6, 3).total
    assert flops(batch("video", 5, 3)) == 5 * step_flops(SMALL, 8, 6, 3).total
    assert flops(batch("image", 4, 1)) == 4 * step_flops(SMALL, 8, 6, 1, temporal=False).total
    assert len(calls) == 2
    frames = torch.zeros(5, 3, 64, 48, 3, dtype=torch.uint8)  # a set without latents: 8 pixels per latent
    online = replace(batch("video", 5, 3), moments=None, frames=frames)
    assert flops(online) == flops(batch("video", 5, 3)) and len(calls) == 2


ONLINE = {  # the levels that the set stores, whether it stores latents at all -> how often a frame is encoded
    "all stored": (7, True, 0),
    "structure encoded": (0, True, 1),
    "nothing stored": (0, False, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "case"), [("video", "all stored"), ("image", "structure encoded"), ("video", "nothing stored")]
)
def test_a_batch_costs_what_torch_counts_in_a_whole_training_step(kind, case):
    """Except for what a backward pass computes again, which utilization leaves out, and the blur of a t_s above 0."""
    stored_level, cached, maps = ONLINE[case]
    model = replace(SMALL, in_channels=12, content_dim=WIDTH, context_dim=WIDTH)
    config = TrainConfig(StageConfig("5", None, 1, temporal=True, structure=True, max_level=7, image_ratio=0.5), model)
    stage = StageSpec(0, 0.5, structure=True, max_level=7, cached=cached, stored_level=stored_level)
    autoencoder = Autoencoder(AutoencoderConfig(str(WEIGHTS / "autoencoder")))
    module = Gen1Module(SpatioTemporalUNet(model), OptimConfig(), DiffusionConfig(), stage, autoencoder)
    module.on_fit_start()
    manifest = Manifest({}, {}, {"autoencoder": with_levels({"stored": cached, "factor": 8}, stored_level)}, "made")
    encoding = encoding_of(config, manifest, autoencoder)
    flops = BatchFlops(model, 8, encoding)

    def counted(samples: int) -> tuple[int, int]:
        made = make_batch(kind, [0] * samples)
        frames = torch.zeros(samples, made.embeddings.shape[1], 32, 64, 3, dtype=torch.uint8)
        made = replace(made, structure_levels=[0] * samples, **{} if cached else {"moments": None, "frames": frames})
        made = made.to(torch.device("cpu"))
        with FlopCounterMode(display=False) as counter:
            module.training_step(made, 0)["loss"].backward()
        return counter.get_total_flops(), flops(made)

    one, two = counted(1), counted(2)
    shape = {"height": 4, "width": 8, "frames": 4 if kind == "video" else 1, "temporal": kind == "video"}
    once, again = (step_flops(model, **shape, recomputed=recomputed).total for recomputed in (False, True))
    encoded = maps * shape["frames"] * autoencoder.encoding_flops(32, 64)
    assert two[1] - one[1] == one[1] == once + encoded and (encoding is None) == (maps == 0)
    assert two[0] - one[0] == one[1] + again - once


def test_a_run_that_started_without_these_columns_resumes(tmp_path):
    before = MetricsCSV(tmp_path / "metrics.csv", 0)
    before.log_metrics({"loss": 1.0}, step=10)
    after = MetricsCSV(tmp_path / "metrics.csv", 10)
    after.log_metrics({"loss": 0.5, "tflops_per_second": 3.0, "mfu": float("nan")}, step=20)
    again = MetricsCSV(tmp_path / "metrics.csv", 20)
    again.log_metrics({"loss": 0.25, "tflops_per_second": 3.0, "mfu": 0.5}, step=30)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == ["10", "20", "30"]
    assert [row.get("mfu") for row in rows] == [None, "nan", "0.5"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_measuring_the_rate_does_not_change_the_run_s_random_numbers(dtype):
    state = torch.get_rng_state()
    assert 1e8 < gemm_rate("cpu", dtype) < 1e15  # an abacus, a data centre
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("ratio", "expected"), [(0.125, "a step of 4 clips of 32x16"), (1.0, "a step of 16 images")])
def test_a_run_reports_the_cost_of_a_step(tmp_path: Path, ratio, expected):
    shards = ShardSet(make_shard_set(tmp_path / "set"))
    config = replace(SMALL, context_dim=WIDTH, content_dim=WIDTH, temporal=ratio < 1)
    line = step_cost(config, Schedule(shards, Settings(0, ratio, 4)))
    assert line.startswith(expected) and (" (spatial " in line) == (ratio < 1)
    frames = {"frames": 4} if ratio < 1 else {"frames": 1, "temporal": False}
    total = step_flops(config, 2, 4, **frames).total * (4 if ratio < 1 else 16)
    assert f" is {total / 1e6:.1f} MFLOP" in line
    encoded = step_cost(config, Schedule(shards, Settings(0, ratio, 4)), lambda height, width: 10**6 * height * width)
    assert f" is {(total + 16e6 * 16 * 32) / 1e9:.1f} GFLOP (spatial" in encoded and "autoencoder 8.2)" in encoded
