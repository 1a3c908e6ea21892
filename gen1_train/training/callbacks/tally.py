"""Sums and counts of each rank since the last row of metrics, and the row over all ranks."""

import math
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gen1_train.batch import REASONS, Batch
from gen1_train.diffusion.structure import MAX_LEVEL
from gen1_train.training.callbacks.clock import PHASES, Phase

KINDS = ("image", "video")
QUARTERS = 4  # of the timesteps; the first has the least noise
LEVELS = MAX_LEVEL + 1
BINS = (*KINDS, *(f"t{i + 1}" for i in range(QUARTERS)), *(f"level_{i}" for i in range(LEVELS)))
COUNTED = ("samples", "frames", "flops", *REASONS)
HOST = (*COUNTED, "memory", *PHASES)  # the numbers of each rank besides the losses


class Tally:
    """Accumulates the losses on their device, so that no step waits for the device until the row is made."""

    def __init__(self, device: torch.device | str = "cpu", timesteps: int = 1000, max_level: int = 0) -> None:
        """`timesteps`: of the noise schedule; `max_level`: the highest t_s that is drawn, 0 if it is always 0."""
        self.device = torch.device(device)
        self.timesteps = timesteps
        self.max_level = max_level
        # the sum of the losses and the number of samples of each of BINS, and the number of dropped contents; float64,
        # so that the printed digits do not depend on the number of ranks
        self._losses = torch.zeros(2 * len(BINS) + 1, dtype=torch.float64, device=device)
        self._host: Counter[str] = Counter()
        self._norms: list[float] = []

    def add(self, batch: Batch, outputs: Mapping[str, Tensor], flops: int) -> None:
        """Adds a micro-batch and the outputs of `training_step` for it; `flops`: of the model, see BatchFlops."""
        b, n = batch.embeddings.shape[:2]
        self._host.update(samples=b, frames=b * n, flops=flops)
        self._host.update(reason for _, reason in batch.replaced_samples)
        timesteps = outputs["timesteps"]
        bins = torch.cat(
            [
                torch.full_like(timesteps, KINDS.index(batch.kind)),
                len(KINDS) + timesteps * QUARTERS // self.timesteps,
                len(KINDS) + QUARTERS + outputs["levels"],
            ]
        )
        losses = outputs["losses"].double().repeat(3)
        self._losses.index_add_(0, bins, losses)
        self._losses.index_add_(0, bins + len(BINS), torch.ones_like(losses))
        self._losses[-1] += outputs["dropped"].sum()

    def gradient(self, norm: float) -> None:
        """Adds the norm of a step's whole gradient, the same on all ranks."""
        self._norms.append(norm)

    def row(
        self,
        seconds: Mapping[Phase, float],
        memory: float,
        gemm: float,
        gather: Callable[[Tensor], Tensor],
        peak: float | None = None,
    ) -> dict[str, float]:
        """Returns the columns of a row, the same on all ranks. A collective: `gather` stacks a tensor of every rank.

        `seconds`: this rank's wall time by phase. `memory`: its peak in bytes. `gemm`: the FLOP/s of a rank's matrix
        products; `mfu` is the model's FLOP/s as a share of it. `peak`: the rate in the data sheet, of which `mfu_peak`
        is the share; None if it is not known.
        """
        times = [seconds[phase] for phase in PHASES]
        counts = [self._host[name] for name in COUNTED]
        numbers = torch.tensor([*counts, memory, *times], dtype=torch.float64, device=self.device)
        own = torch.cat([self._losses, numbers])
        ranks = gather(own).reshape(-1, len(own)).cpu()
        losses, hosts = ranks.split([len(self._losses), len(HOST)], dim=1)
        by_rank = dict(zip(HOST, hosts.T))
        return {
            **self._loss_columns(losses.sum(0)),
            **self._gradient_columns(),
            **_replaced_columns(by_rank),
            **_speed_columns(by_rank, gemm, peak),
            **_time_columns(by_rank),
            "memory_gigabytes": float(by_rank["memory"].max()) / 1e9,
        }

    def _loss_columns(self, totals: Tensor) -> dict[str, float]:
        """Returns the mean over all samples, and over those of each bin that has any."""
        sums, counts, (dropped,) = totals.split([len(BINS), len(BINS), 1])
        shown = len(KINDS) + QUARTERS + (self.max_level + 1 if self.max_level else 0)
        means = {f"loss_{BINS[i]}": float(sums[i] / counts[i]) for i in range(shown) if counts[i]}
        samples = counts[: len(KINDS)].sum()
        loss = float(sums[: len(KINDS)].sum() / samples)
        return {"loss": loss, **means, "content_dropped": float(dropped / samples)}

    def _gradient_columns(self) -> dict[str, float]:
        """Returns the mean of the finite norms, and the largest norm: infinity if one is not finite."""
        if not self._norms:
            return {}
        finite = [norm for norm in self._norms if math.isfinite(norm)]
        mean = sum(finite) / len(finite) if finite else math.nan
        return {"grad_norm": mean, "grad_norm_max": max(finite) if len(finite) == len(self._norms) else math.inf}


def _replaced_columns(by_rank: Mapping[str, Tensor]) -> dict[str, float]:
    counts = {reason: int(by_rank[reason].sum()) for reason in REASONS}
    return {
        "samples_replaced": sum(counts.values()),
        **{f"replaced_{reason}": count for reason, count in counts.items() if count},
    }


def _speed_columns(by_rank: Mapping[str, Tensor], gemm: float, peak: float | None) -> dict[str, float]:
    world = len(by_rank["samples"])
    seconds = sum(float(by_rank[phase].mean()) for phase in PHASES)
    samples, frames, flops = (float(by_rank[name].sum()) for name in ("samples", "frames", "flops"))
    return {
        "seconds": seconds,
        "samples_per_second": samples / seconds,
        "frames_per_second": frames / seconds,
        "tflops_per_second": flops / seconds / 1e12,
        "mfu": flops / world / seconds / gemm,
        **({"mfu_peak": flops / world / seconds / peak} if peak is not None else {}),
    }


def _time_columns(by_rank: Mapping[str, Tensor]) -> dict[str, float]:
    """Returns each phase's share of the wall time, and the rank for which the others wait.

    Each rank waits for data and runs the forward pass on its own; then all ranks synchronize for the gradients.
    """
    means = {phase: float(by_rank[phase].mean()) for phase in PHASES}
    seconds = sum(means.values())
    names = {phase: phase if phase == "data_wait" else f"time_{phase}" for phase in PHASES}
    own = by_rank["data_wait"] + by_rank["forward"]
    return {
        **{names[phase]: mean / seconds for phase, mean in means.items()},
        "slowest_rank": int(own.argmax()),
        "slowest_excess": float(own.max() / own.mean() - 1),
    }
