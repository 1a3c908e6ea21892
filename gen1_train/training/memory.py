"""The memory plan: bytes that one rank holds, from the config alone (ZeRO: arXiv 1910.02054, section 3).

What stands from step to step is a formula, what a pass adds is traced (gen1_train.training.tracing), and what the
optimizer adds after it is a formula again; the peak of a step is the larger of the two on top of what stands. Compared
with measured peaks in tests/training/test_memory.py; ZeRO-3's is too low. Not in it: the GPU's context, NCCL's and
kernels' workspaces.

With P trained weights on N ranks, where a number of the model has s bytes (2 under ZeRO in bf16-mixed, else 4); weights
that stand still beside an adapter have s bytes each and no more:

|       | weights | masters         | moments | EMA, each | gradients: standing, in the passes, in the optimizer  |
|-------|---------|-----------------|---------|-----------|-------------------------------------------------------|
| plain | 4 P     |                 | 8 P     | 4 P       | -, 4 P, 4 P: those of a step live into the next one   |
| ddp   | 4 P     |                 | 8 P     | 4 P       | 4 P, 4 P, 4 P: DDP's buckets are a second copy        |
| zero2 | s P     | 4 P/N           | 8 P/N   | 4 P/N     | -, buckets + s P/N, 2 s P/N (+ 4 P/N if s is 2)       |
| zero3 | s P/N   | 4 P/N if s is 2 | 8 P/N   | 4 P/N     | s P/N + bucket, scratch, s P/N (+ 4 P/N if s is 2)    |

zero2 stands for zero1 too; where micro-batches are accumulated ZeRO-1's gradients stand whole, s P, ZeRO-2's in parts.
Both hold the masters beside the weights in float32 as well, under gloo gather the new weights into a copy, s P, and on
more ranks than one keep the last pass's buckets beside the next one's (measured). ZeRO-3 gathers weights too, see
`Planner._gathered`. With strategy.offload moments, masters and EMA (and with `all` the weights) stand in CPU memory and
are not counted; that is not compared with anything measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gen1_train.model.unet import UNetConfig
from gen1_train.training.strategy import ZERO_STAGES
from gen1_train.training.tracing import Adapt, Buckets, Numbers, Tracer, Work


@dataclass(frozen=True)
class ZeroSettings:
    """What of DeepSpeed's section `zero_optimization` costs memory, in elements."""

    bucket: int  # of gradients that are reduced at a time
    overlap: bool  # one bucket fills while another is reduced: two of them
    live: int  # ZeRO-3: weights that are gathered at a time
    persistent: int  # ZeRO-3: weights of fewer elements stay whole in every rank

    @property
    def buckets(self) -> int:
        return self.bucket * (2 if self.overlap else 1)

    @classmethod
    def read(cls, section: Mapping[str, Any]) -> "ZeroSettings":
        """From the section as Lightning and we give it; what is not in it has DeepSpeed's defaults."""
        stage3 = section.get("stage") == 3
        return cls(
            int(section.get("reduce_bucket_size", 5e8)),
            bool(section.get("overlap_comm", stage3)),
            int(section.get("stage3_max_live_parameters", 1e9)),
            int(section.get("stage3_param_persistence_threshold", 1e5)),
        )


@dataclass(frozen=True)
class Layout:
    """How a run lies on its ranks."""

    strategy: str  # single, ddp, zero1, zero2, zero3
    precision: str  # bf16-mixed or 32-true
    world: int  # ranks
    accumulate: int = 1  # micro-batches per optimizer step
    ema: int = 0  # averages of the weights that are held, one for each decay
    zero: ZeroSettings | None = None
    offload: str = "none"  # what ZeRO keeps in CPU memory instead: none, optimizer, all
    gloo: bool = False  # ranks on CPUs, where new weights are gathered into a copy first; NCCL needs none

    @property
    def numbers(self) -> Numbers:
        bf16 = self.precision == "bf16-mixed"
        if self.strategy in ZERO_STAGES:
            return Numbers(torch.bfloat16 if bf16 else torch.float32, autocast=False)
        return Numbers(torch.float32, autocast=bf16)

    def part(self, elements: int) -> int:
        """Of so many elements, those of one rank, where ZeRO divides them."""
        return -(-elements // self.world) if self.strategy in ZERO_STAGES else elements


@dataclass(frozen=True)
class Peak:
    """One micro-batch of a pool, in bytes on top of what stands."""

    work: Work
    activations: int
    backward: int  # the largest sum of activations, gradients and transients in forward and backward pass
    optimizer: int  # gradients or gathered weights in the optimizer's step, when no activation is left

    @property
    def bytes(self) -> int:
        return max(self.backward, self.optimizer)


@dataclass(frozen=True)
class MemoryPlan:
    """Of one rank."""

    weights: int  # elements of the model
    standing: dict[str, int]  # bytes by what they are, from step to step
    peaks: list[Peak]  # of each pool

    @property
    def total(self) -> int:
        return sum(self.standing.values()) + max(peak.bytes for peak in self.peaks)


class Planner:
    """Plans the memory of a UNet that is trained in one way; the UNet is built once, without memory."""

    def __init__(self, unet: UNetConfig, layout: Layout, frozen: int = 0, adapt: Adapt | None = None) -> None:
        """`frozen`: bytes of frozen networks on the device; `adapt`: see Tracer."""
        self.layout, self.frozen = layout, frozen
        self._tracer = Tracer(unet, layout.numbers, adapt)
        self.weights, self.trained = sum(self._tracer.sizes), self._tracer.trained

    def plan(self, works: Sequence[Work]) -> MemoryPlan:
        return MemoryPlan(self.weights, self.standing(), [self.peak(work) for work in works])

    def standing(self) -> dict[str, int]:
        layout, zero, size = self.layout, self.layout.zero, self.layout.numbers.dtype.itemsize
        whole, part = self.trained, layout.part(self.trained)
        parts = {
            "weights": size * self.weights,
            "moments": 8 * part,
            "EMA": 4 * part * layout.ema,
            "autoencoder": self.frozen,
        }
        if layout.strategy == "ddp":
            parts["DDP's buckets"] = 4 * whole
        if layout.strategy in ZERO_STAGES:
            assert zero is not None
            parts["masters"] = 4 * part
            parts["ZeRO's buckets"] = size * zero.buckets if layout.world > 1 else 0
        if layout.strategy == "zero3" and zero is not None:
            small = sum(elements for elements in self._tracer.sizes if elements < zero.persistent)
            parts["weights"] = size * (part + small)
            parts["masters"] = 4 * part if size == 2 else 0  # in float32 the rank's part is its own master
            parts["gradients"] = size * part
            parts["ZeRO's buckets"] = size * zero.bucket
        if layout.accumulate > 1:
            parts["gradients"] = size * (part if layout.strategy in ("zero2", "zero3") else whole)
        away = {"none": (), "optimizer": ("moments", "masters", "EMA"), "all": ("moments", "masters", "EMA", "weights")}
        return {name: held for name, held in parts.items() if held and name not in away[layout.offload]}

    def peak(self, work: Work) -> Peak:
        layout, size = self.layout, self.layout.numbers.dtype.itemsize
        whole, part = self.trained, layout.part(self.trained)
        whole_gradients = layout.strategy in ("single", "ddp")
        standing = layout.accumulate > 1 and layout.strategy in ("single", "ddp", "zero1")
        traced = self._tracer.trace(work, None if whole_gradients else self._buckets(), standing)
        if whole_gradients:  # those that a pass leaves out are filled with zeros
            optimizer = 0 if standing else 4 * whole
        elif layout.strategy == "zero3":
            optimizer = size * part + (4 * part if size == 2 else 0)
        else:  # its part of the gradients, where zeros are made for those that are missing, and that part flat
            optimizer = size * (2 * part + layout.part(traced.missing)) + (4 * part if size == 2 else 0)
            optimizer = max(optimizer, size * whole if layout.gloo and layout.world > 1 else 0)
        return Peak(work, traced.activations, traced.peak + self._gathered(), optimizer)

    def _buckets(self) -> Buckets:
        zero = self.layout.zero
        assert zero is not None
        if self.layout.strategy == "zero3":
            return Buckets(zero.bucket, held=0, part=0, scratch=zero.bucket)
        return Buckets(zero.bucket, zero.buckets, self.layout.part(self.trained))

    def _gathered(self) -> int:
        """Bytes of the weights that ZeRO-3 gathers for a pass.

        Counted twice: fitted to two runs, not derived, and too little for a third (benchmarks/RESULTS.md).
        """
        zero = self.layout.zero
        if self.layout.strategy != "zero3" or zero is None:
            return 0
        large = sum(elements for elements in self._tracer.sizes if elements >= zero.persistent)
        return 2 * self.layout.numbers.dtype.itemsize * min(large, zero.live)
