"""The rows of metrics: sums and counts equal plain loops; two ranks equal one."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gen1_train.batch import Batch
from gen1_train.data.schedule import Schedule, Settings
from gen1_train.data.shards import ShardSet
from gen1_train.training.callbacks.clock import PHASES, Phase
from gen1_train.training.callbacks.tally import BINS, Tally
from tests.made import make_shard_set
from tests.training.pair import run_pair

TIMESTEPS = 1000


def micro_batch(kind: str, b: int, seed: int) -> tuple[Batch, dict[str, Tensor]]:
    """Returns a micro-batch and the outputs of training_step for it."""
    n = 1 if kind == "image" else 3
    made = torch.Generator().manual_seed(seed)
    outputs = {
        "losses": torch.rand(b, generator=made),
        "timesteps": torch.randint(TIMESTEPS, (b,), generator=made),
        "levels": torch.randint(8, (b,), generator=made),
        "dropped": torch.rand(b, generator=made) < 0.5,
    }
    return Batch(kind, 0, list(range(b)), [""] * b, None, torch.zeros(b, n, 4)), outputs


def spent(**seconds: float) -> dict[Phase, float]:
    return {phase: seconds.get(phase, 0.0) for phase in PHASES}


def row_of(tally: Tally, seconds: dict[Phase, float] | None = None, **more: Any) -> dict[str, float]:
    """Returns the row of a single rank."""
    return tally.row(seconds or spent(forward=1.0), more.get("memory", 0.0), more.get("gemm", 1.0), lambda own: own)


def test_losses_are_means_over_the_samples_of_each_bin() -> None:
    tally = Tally(timesteps=TIMESTEPS, max_level=7)
    bins: dict[str, list[float]] = {}
    dropped = []
    for seed, (kind, b) in enumerate([("image", 6), ("video", 2), ("video", 3), ("image", 1)] * 5):
        batch, outputs = micro_batch(kind, b, seed)
        tally.add(batch, outputs, 0)
        for i in range(b):
            loss, t, level = (outputs[name][i].item() for name in ("losses", "timesteps", "levels"))
            for name in ("loss", f"loss_{kind}", f"loss_t{t // 250 + 1}", f"loss_level_{level}"):
                bins.setdefault(name, []).append(loss)
            dropped.append(outputs["dropped"][i].item())
    row = row_of(tally)
    assert {name for name in row if name.startswith("loss")} == set(bins)
    for name, losses in bins.items():
        assert row[name] == pytest.approx(math.fsum(losses) / len(losses), rel=1e-12), name
    assert row["content_dropped"] == pytest.approx(sum(dropped) / len(dropped))


def test_a_bin_without_samples_has_no_column_and_levels_need_a_choice() -> None:
    batch, outputs = micro_batch("video", 3, 0)
    outputs |= {"timesteps": torch.tensor([0, 249, 999]), "levels": torch.zeros(3, dtype=torch.long)}
    for max_level, levels in ((0, set()), (7, {"loss_level_0"})):
        tally = Tally(timesteps=TIMESTEPS, max_level=max_level)
        tally.add(batch, outputs, 0)
        columns = {name for name in row_of(tally) if name.startswith("loss")}
        assert columns == {"loss", "loss_video", "loss_t1", "loss_t4"} | levels


def test_a_loss_that_is_not_finite_affects_only_its_bins() -> None:
    tally = Tally(timesteps=TIMESTEPS)
    batch, outputs = micro_batch("image", 2, 0)
    tally.add(batch, outputs | {"losses": torch.tensor([math.nan, 1.0]), "timesteps": torch.tensor([0, 999])}, 0)
    row = row_of(tally)
    assert math.isnan(row["loss"]) and math.isnan(row["loss_t1"]) and row["loss_t4"] == 1.0


def test_rates_count_all_ranks_and_mfu_is_per_rank() -> None:
    tally = Tally(timesteps=TIMESTEPS)
    for kind, b, flops in (("video", 2, 3 * 10**12), ("image", 6, 10**12)):
        tally.add(*micro_batch(kind, b, 0), flops)
    row = tally.row(spent(forward=1.5, other=0.5), 2e9, 8e12, lambda own: own.repeat(4, 1))
    assert row["seconds"] == 2.0 and row["memory_gigabytes"] == 2.0
    assert row["samples_per_second"] == 4 * 8 / 2 and row["frames_per_second"] == 4 * 12 / 2
    assert row["tflops_per_second"] == pytest.approx(8.0) and row["mfu"] == pytest.approx(0.25)
    assert "mfu_peak" not in row  # of a device without a data sheet
    row = tally.row(spent(forward=1.5, other=0.5), 2e9, 8e12, lambda own: own.repeat(4, 1), peak=16e12)
    assert row["mfu"] == pytest.approx(0.25) and row["mfu_peak"] == pytest.approx(0.125)


def test_shares_of_the_time_add_up_and_the_slowest_rank_is_named() -> None:
    tally = Tally(timesteps=TIMESTEPS)
    tally.add(*micro_batch("video", 2, 0), 0)
    ranks: list[Tensor] = []
    for waited, forward in ((0.0, 2.0), (1.0, 3.0), (0.0, 3.0)):
        keep = lambda own: ranks.append(own) or own  # noqa: E731
        tally.row(spent(data_wait=waited, forward=forward, backward=6.0 - waited - forward), 1.0, 1.0, keep)
    row = tally.row(spent(forward=1.0), 1.0, 1.0, lambda own: torch.stack(ranks))
    shares = {name: row[name] for name in ("data_wait", *(f"time_{phase}" for phase in PHASES[1:]))}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["data_wait"] == pytest.approx(1 / 18) and shares["time_forward"] == pytest.approx(8 / 18)
    assert row["slowest_rank"] == 1 and row["slowest_excess"] == pytest.approx(4 / 3 - 1)
    assert row["seconds"] == pytest.approx(6.0)


def test_replaced_samples_are_counted_by_reason() -> None:
    tally = Tally(timesteps=TIMESTEPS)
    batch, outputs = micro_batch("video", 3, 0)
    assert row_of_one(batch, outputs)["samples_replaced"] == 0
    tally.add(replace(batch, replaced_samples=[("a", "checksum"), ("b", "read"), ("c", "checksum")]), outputs, 0)
    row = row_of(tally)
    counts = {name: value for name, value in row.items() if "replaced" in name}
    assert counts == {"samples_replaced": 3, "replaced_checksum": 2, "replaced_read": 1}


def row_of_one(batch: Batch, outputs: dict[str, Tensor]) -> dict[str, float]:
    tally = Tally(timesteps=TIMESTEPS)
    tally.add(batch, outputs, 0)
    return row_of(tally)


@pytest.mark.parametrize(
    ("norms", "mean", "largest"),
    [([1.0, 3.0], 2.0, 3.0), ([1.0, math.nan], 1.0, math.inf), ([math.inf], math.nan, math.inf)],
)
def test_the_mean_norm_leaves_out_norms_that_are_not_finite(norms: list[float], mean: float, largest: float) -> None:
    tally = Tally(timesteps=TIMESTEPS)
    tally.add(*micro_batch("video", 1, 0), 0)
    assert "grad_norm" not in row_of(tally)
    for norm in norms:
        tally.gradient(norm)
    row = row_of(tally)
    assert row["grad_norm"] == pytest.approx(mean, nan_ok=True) and row["grad_norm_max"] == largest


def test_the_share_of_image_steps_counts_from_the_last_change_of_the_schedule(tmp_path: Path) -> None:
    shards = ShardSet(make_shard_set(tmp_path / "set"))
    for mix in ("exact", "independent"):
        schedule = Schedule(shards, Settings(0, 0.25, 4, mix=mix))
        kinds = [schedule.kind(step) for step in range(30)]
        for step in (1, 8, 30):
            assert schedule.image_share(step) == kinds[:step].count("image") / step
        later = Schedule(shards, schedule.settings, replace(schedule.start, step=10))
        assert later.image_share(30) == kinds[10:].count("image") / 20


def _halves(rank: int, folder: Path) -> None:
    """Each rank tallies every second micro-batch; both write the row over the two ranks."""
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    tally = Tally(timesteps=TIMESTEPS, max_level=7)
    for seed in range(rank, 8, 2):
        tally.add(*_seeded(seed), 10)
    gathered = SimpleNamespace(calls=0)

    def gather(own: Tensor) -> Tensor:
        gathered.calls += 1
        parts = [torch.empty_like(own) for _ in range(2)]
        torch.distributed.all_gather(parts, own)
        return torch.stack(parts)

    row = tally.row(spent(forward=1.0), 1.0, 1.0, gather)
    assert gathered.calls == 1
    (folder / f"{rank}.json").write_text(json.dumps(row))
    torch.distributed.destroy_process_group()


def _seeded(seed: int) -> tuple[Batch, dict[str, Tensor]]:
    """Micro-batches of several sizes, so that a mean of means would be wrong."""
    batch, outputs = micro_batch("image" if seed < 4 else "video", 1 + seed, seed)
    return replace(batch, replaced_samples=[("bad", "shape")] * (seed == 5)), outputs


@pytest.mark.slow
def test_the_sums_of_two_ranks_are_those_of_one(tmp_path: Path) -> None:
    codes, outputs = run_pair(_halves, tmp_path, tmp_path)
    assert codes == [0, 0], outputs
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    tally = Tally(timesteps=TIMESTEPS, max_level=7)
    for seed in range(8):
        tally.add(*_seeded(seed), 10)
    alone, together = row_of(tally), first
    assert alone.keys() == together.keys()
    for name in (*(f"loss_{name}" for name in BINS if f"loss_{name}" in alone), "loss", "content_dropped"):
        assert f"{together[name]:.9g}" == f"{alone[name]:.9g}", name
    assert together["samples_replaced"] == together["replaced_shape"] == 1
    for name in ("samples_per_second", "frames_per_second", "tflops_per_second", "seconds"):
        assert together[name] == alone[name], name
