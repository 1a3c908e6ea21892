"""The memory plan: the bytes that one rank holds, from the config alone (ZeRO: arXiv 1910.02054, section 3).

A formula gives the resident memory, which a rank holds from step to step. A trace (tracing.py) gives what a forward and
backward pass adds, and another formula what the optimizer adds after it. The peak of a step is the resident memory plus
the larger of the two. tests/training/planning/test_memory.py compares it with measured peaks; the plans of ZeRO-3 and
FSDP are upper bounds. Not included: the GPU's context, and workspaces of NCCL and of kernels.

For P trained weights on N ranks, with s bytes per number of the model (2 under ZeRO in bf16-mixed, else 4) and g of the
gradients' sums (s with strategy.reduce=bf16, else 4); frozen weights (stage.trains, or an adapter's base) take what the
column of weights says, and nothing else:

|       | weights | masters         | moments | EMA, each | gradients: resident, in the passes, in the optimizer  |
|-------|---------|-----------------|---------|-----------|-------------------------------------------------------|
| plain | 4 P     |                 | 8 P     | 4 P       | -, 4 P, 4 P: those of a step live until the next one  |
| ddp   | 4 P     |                 | 8 P     | 4 P       | 4 P, 4 P, 4 P: DDP's buckets are a second copy        |
| zero2 | s P     | 4 P/N           | 8 P/N   | 4 P/N     | -, buckets + g P/N, 2 g P/N (+ 4 P/N if g is 2)       |
| zero3 | s P/N   | 4 P/N if s is 2 | 8 P/N   | 4 P/N     | g P/N + bucket, scratch, g P/N (+ 4 P/N if g is 2)    |
| fsdp  | 4 P/N   |                 | 8 P/N   | 4 P/N     | -, 4 P/N + those of a layer, 4 P/N                    |

The row of zero2 applies to zero1 too, except that without `overlap_comm` (on CPUs) ZeRO-1 keeps all gradients of a pass
until its end (g P more). Where s is 2 and g is 4, both sum the rank's part in one flat tensor, which the optimizer
takes without a copy (g P/N), and each reduction copies its bucket. When micro-batches are accumulated, ZeRO-1's
gradients are resident as a whole (g P), and ZeRO-2's in parts. Both keep masters in addition to the weights even in
float32, gather the new weights into a copy under gloo (s P), and on more than one rank keep the buckets of the last
pass during the next one (measured). ZeRO-3 and FSDP gather weights too, see `Planner._gathered`. With strategy.offload,
moments, masters and EMA (with `all` also the weights) are in CPU memory and not counted; this case has not been
compared with measurements.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gen1_train.model.unet import UNetConfig
from gen1_train.system.device import MAX_MAP
from gen1_train.training.checkpoints.state import trainable
from gen1_train.training.planning.tracing import Adapt, Buckets, MicroBatch, NumberFormat, Tracer
from gen1_train.training.strategies.config import CASTING, FSDP, ZERO_STAGES
from gen1_train.training.strategies.sharded import divided_layers

BLOCK = 256  # elements of a moment of 8 bits with a common scale in float32 (torchao)
LEAST = 4096  # elements of a weight whose moments take 8 bits


@dataclass(frozen=True)
class ZeroSettings:
    """The settings of DeepSpeed's section `zero_optimization` that affect memory, in elements."""

    bucket: int  # gradients that are reduced at once
    overlap: bool  # one bucket fills while another is reduced, so there are two
    live: int  # ZeRO-3: weights that are gathered at the same time
    persistent: int  # ZeRO-3: smaller weights stay whole on every rank

    @property
    def buckets(self) -> int:
        return self.bucket * (2 if self.overlap else 1)

    @classmethod
    def read(cls, section: Mapping[str, Any]) -> "ZeroSettings":
        """Reads the section that DeepSpeed gets, with its defaults for missing settings."""
        stage3 = section.get("stage") == 3
        return cls(
            int(section.get("reduce_bucket_size", 5e8)),
            bool(section.get("overlap_comm", stage3)),
            int(section.get("stage3_max_live_parameters", 1e9)),
            int(section.get("stage3_param_persistence_threshold", 1e5)),
        )


@dataclass(frozen=True)
class Layout:
    """How a run is divided among its ranks."""

    strategy: str  # single, ddp, zero1, zero2, zero3, fsdp
    precision: str  # bf16-mixed or 32-true
    world: int  # ranks
    accumulate: int = 1  # micro-batches per optimizer step
    ema: int = 0  # averages of the weights, one for each decay
    zero: ZeroSettings | None = None
    offload: str = "none"  # what ZeRO keeps in CPU memory: none, optimizer, all
    gloo: bool = False  # ranks on CPUs, where new weights are gathered into a copy first; NCCL needs no copy
    reduce: str = "fp32"  # strategy.reduce: in which ZeRO sums gradients, and DDP and FSDP send them
    eight_bit: bool = False  # moments of 8 bits, see eight_bit.py
    copies: int = 1  # of the state, each divided among world / copies ranks; above 1 only under FSDP

    @property
    def number_format(self) -> NumberFormat:
        bf16 = self.precision == "bf16-mixed"
        if self.strategy in CASTING:
            return NumberFormat(torch.bfloat16 if bf16 else torch.float32, autocast=False)
        return NumberFormat(torch.float32, autocast=bf16)

    @property
    def gradient_size(self) -> int:
        """Bytes per number of the gradients' sums."""
        wide = self.strategy not in ZERO_STAGES or self.reduce == "fp32"
        return 4 if wide else self.number_format.dtype.itemsize

    @property
    def widens(self) -> bool:
        """Whether ZeRO sums bfloat16 gradients in float32, in one flat tensor that the optimizer reads in place."""
        return self.strategy in ZERO_STAGES and self.gradient_size > self.number_format.dtype.itemsize

    def part(self, elements: int) -> int:
        """Returns how many of `elements` one rank holds; only ZeRO and FSDP divide them."""
        return -(-elements * self.copies // self.world) if self.strategy in CASTING else elements


@dataclass(frozen=True)
class Peak:
    """The memory of a step on one pool, in bytes in addition to the resident memory."""

    micro_batch: MicroBatch
    activations: int
    backward: int  # the largest sum of activations, gradients and temporaries in the forward and backward pass
    optimizer: int  # gradients or gathered weights in the optimizer step, when no activations are left
    widest: int = 0  # elements of the largest map of a convolution

    @property
    def bytes(self) -> int:
        return max(self.backward, self.optimizer)

    @property
    def most_samples(self) -> int:
        """The samples whose largest map kernels can index; a map grows with them and with nothing else."""
        return MAX_MAP * self.micro_batch.samples // max(self.widest, 1)


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of one rank."""

    weights: int  # elements of the model
    resident: dict[str, int]  # bytes by kind, held from step to step
    peaks: list[Peak]  # one per pool

    @property
    def total(self) -> int:
        return sum(self.resident.values()) + max(peak.bytes for peak in self.peaks)


class Planner:
    """Plans the memory for training a UNet in one layout. The UNet is built once, without allocating memory."""

    def __init__(self, unet: UNetConfig, layout: Layout, frozen: int = 0, adapt: Adapt | None = None) -> None:
        """`frozen`: bytes of frozen networks on the device; `adapt`: see Tracer."""
        self.layout = layout
        self.frozen = frozen
        self._tracer = Tracer(unet, layout.number_format, adapt)
        self.weights = sum(self._tracer.sizes)
        self.trained = self._tracer.trained

    def plan(self, micro_batches: Sequence[MicroBatch]) -> MemoryPlan:
        return MemoryPlan(self.weights, self.resident(), [self.peak(micro_batch) for micro_batch in micro_batches])

    def resident(self) -> dict[str, int]:
        layout, zero = self.layout, self.layout.zero
        size, sums = layout.number_format.dtype.itemsize, layout.gradient_size
        whole, part, all_weights = self.trained, layout.part(self.trained), layout.part(self.weights)
        parts = {
            "weights": size * self.weights,
            "moments": self._quantized_moments() if layout.eight_bit else 8 * part,
            "EMA": 4 * part * layout.ema,
            "autoencoder": self.frozen,
        }
        if layout.strategy == "ddp":
            # with bfloat16 copies, all of which may wait to be sent
            parts["DDP's buckets"] = (4 if layout.reduce == "fp32" else 6) * whole
        if layout.strategy in ZERO_STAGES:
            assert zero is not None
            parts["masters"] = 4 * part
            if layout.gloo:  # with GPUs they are in CPU memory
                parts["frozen weights in float32"] = 4 * layout.part(self.weights - self.trained)
            bucket = size if layout.strategy == "zero2" else sums  # ZeRO-2 widens what it sends, not what waits for it
            parts["ZeRO's buckets"] = bucket * zero.buckets if layout.world > 1 else 0
        if layout.strategy == "zero3" and zero is not None:
            small = sum(elements for elements in self._tracer.sizes if elements < zero.persistent)
            parts["weights"] = size * (all_weights + small)
            # in float32 the rank's part is also its master, but not on CPUs, whose devices DeepSpeed takes for unequal
            parts["masters"] = 4 * part if size == 2 or layout.gloo else 0
            parts["gradients"] = sums * part
            parts["ZeRO's buckets"] = sums * zero.bucket
        if layout.strategy == FSDP:
            parts["weights"] = 4 * all_weights
        if layout.accumulate > 1:
            parts["gradients"] = sums * (part if layout.strategy in ("zero2", "zero3", FSDP) else whole)
        optimizer = ("moments", "masters", "EMA")
        offloaded = {"none": (), "optimizer": optimizer, "all": (*optimizer, "weights")}
        return {name: held for name, held in parts.items() if held and name not in offloaded[layout.offload]}

    def _quantized_moments(self) -> int:
        sizes = [weight.numel() for weight in trainable(self._tracer.unet).values()]
        return round(sum(2 * size * (1 + 4 / BLOCK if size >= LEAST and size % BLOCK == 0 else 4) for size in sizes))

    def trains(self, micro_batch: MicroBatch) -> bool:
        """Whether any weight gets a gradient."""
        return self._tracer.trains(micro_batch)

    def peak(self, micro_batch: MicroBatch) -> Peak:
        layout, size = self.layout, self.layout.number_format.dtype.itemsize
        whole, part = self.trained, layout.part(self.trained)
        whole_gradients = layout.strategy in ("single", "ddp")
        resident_gradients = layout.accumulate > 1 and layout.strategy in ("single", "ddp", "zero1")
        traced = self._tracer.trace(micro_batch, None if whole_gradients else self._buckets(), resident_gradients)
        backward = traced.peak + self._gathered()
        if whole_gradients:  # missing ones are filled with zeros
            optimizer = 0 if resident_gradients else 4 * whole
        elif layout.strategy == FSDP:
            optimizer = 0 if layout.accumulate > 1 else 4 * part
        elif layout.strategy == "zero3":
            optimizer = layout.gradient_size * part + (4 * part if layout.gradient_size == 2 else 0)
        elif layout.widens:
            optimizer = 0 if self._sums_are_resident else 4 * part
            # those that wait for the end of the pass do so in float32
            backward += (4 - size) * whole if self._buckets().late and not resident_gradients else 0
        else:  # its part of the gradients, zeros for missing ones, and a flat copy of the part
            optimizer = size * (2 * part + layout.part(traced.missing)) + (4 * part if size == 2 else 0)
        if layout.strategy in ("zero1", "zero2") and layout.gloo and layout.world > 1:
            optimizer = max(optimizer, size * whole)
        return Peak(micro_batch, traced.activations, backward, optimizer, traced.widest)

    @property
    def _sums_are_resident(self) -> bool:
        return self.layout.strategy == "zero2" and self.layout.accumulate > 1

    def _buckets(self) -> Buckets:
        zero, part = self.layout.zero, self.layout.part(self.trained)
        if self.layout.strategy == FSDP:
            # FSDP2 copies a layer's gradients to what it sends, and keeps this until the next layer's is sent
            size = self.layout.number_format.dtype.itemsize
            sent, sums = (4 if self.layout.reduce == "fp32" else 2) // size or 1, 4 // size
            held = 0 if self.layout.accumulate > 1 else sums * part
            return Buckets(self._largest, held=sent * self._largest, part=held, scratch=sent)
        assert zero is not None
        wide = 2 if self.layout.widens else 1  # a float32 number takes two of the model's bfloat16
        if self.layout.strategy == "zero3":
            return Buckets(zero.bucket, held=0, part=0, scratch=wide)
        late = self.layout.strategy == "zero1" and not zero.overlap  # stage_1_and_2.py: process_gradients
        if not self.layout.widens:
            return Buckets(zero.bucket, zero.buckets, part, late=late)
        # average_tensor concatenates a bucket's gradients; ZeRO-2's are in bfloat16, and then widened
        if self.layout.strategy == "zero1":
            return Buckets(zero.bucket, wide * zero.buckets, wide * part, scratch=wide, late=late)
        return Buckets(zero.bucket, zero.buckets, 0 if self._sums_are_resident else wide * part, scratch=1 + wide)

    def _gathered(self) -> int:
        """Returns the most bytes of weights that ZeRO-3 or FSDP gathers for a pass.

        FSDP2 gathers a layer into one flat tensor, copies the weights out of it, and gathers the next layer meanwhile;
        what lies between the layers is gathered throughout.

        ZeRO-3's are counted twice: all weights that DeepSpeed prefetches together are gathered into one flat tensor,
        which lives until the last of them is used, while each is copied out of it (zero/partition_parameters.py:
        _all_gather_dtype, AllGatherCoalescedHandle.wait). Measured: 70 to 84 MiB of each for 84 MiB of large weights.
        """
        zero = self.layout.zero
        if self.layout.strategy == FSDP:
            between = self.weights - sum(map(_elements, divided_layers(self._tracer.unet)))
            return self.layout.number_format.dtype.itemsize * (3 * self._largest + between)
        if self.layout.strategy != "zero3" or zero is None:
            return 0
        large = sum(elements for elements in self._tracer.sizes if elements >= zero.persistent)
        return 2 * self.layout.number_format.dtype.itemsize * min(large, zero.live)

    @property
    def _largest(self) -> int:
        """The elements of the largest layer that FSDP gathers at once."""
        return max(map(_elements, divided_layers(self._tracer.unet)))


def _elements(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
