"""DeepSpeed ZeRO as a Lightning strategy, and what differs here from either."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import DeepSpeedStrategy
from torch import Tensor
from torch.distributed.constants import default_pg_timeout
from torch.nn import Parameter
from torch.optim import Optimizer
from typing_extensions import override

from gen1_train.training.checkpoints.state import assigned, saved, state_of
from gen1_train.training.strategies.config import ZERO_STAGES, StrategyConfig
from gen1_train.training.strategies.groups import limit_all_groups
from gen1_train.training.strategies.host import norm_of, streams_wait

# Gradients are reduced in buckets of this many elements. Where communication overlaps with computation, two buckets are
# in memory: 4 GB in fp32 with DeepSpeed's default of 5e8. This value is above the largest weight of Stable Diffusion's
# UNet (29.5 M), so that no weight needs a bucket of its own, and 100 MB of bfloat16 are enough to fill any link.
REDUCE_BUCKET_ELEMENTS = 50_000_000
# Gathered weights that ZeRO-3 keeps in memory, in elements. With DeepSpeed's default of 1e9 it would keep almost all of
# a UNet of 1.08e9 parameters, because no weight is unused for longer between its forward and its backward pass.
LIVE_ELEMENTS = 200_000_000


def zero_config(config: StrategyConfig, micro_batch: int, gpu: bool) -> dict[str, Any]:
    """Returns DeepSpeed's config. Lightning adds accumulation, clipping and precision from the Trainer's settings."""
    zero: dict[str, Any] = {
        "stage": ZERO_STAGES[config.name],
        # copies each gradient into the bucket at once, so that its memory is free again and does not fragment
        "contiguous_gradients": True,
        # NCCL reduces one bucket while the next one fills; gloo has no streams and would only hold two buckets
        "overlap_comm": gpu,
        "reduce_bucket_size": REDUCE_BUCKET_ELEMENTS,
        # only ZeRO-3 reads these; it prefetches 5e7 elements by default
        "stage3_max_live_parameters": LIVE_ELEMENTS,
        "stage3_max_reuse_distance": LIVE_ELEMENTS,
        "stage3_param_persistence_threshold": config.persist_below,
    }
    if config.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": gpu}
    if config.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": gpu}
    formats: dict[str, Any] = {}  # by default, gradients are sent and summed in the number format of the weights
    if config.reduce == "fp32":
        formats = {"communication_data_type": "fp32", "data_types": {"grad_accum_dtype": "fp32"}}
    return {
        "train_micro_batch_size_per_gpu": micro_batch,  # DeepSpeed uses it for its throughput log only
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's AdamW
        # torch's fused AdamW: DeepSpeed's CPU optimizer has to be compiled and gains little, see docs/strategies.md
        "zero_force_ds_cpu_optimizer": False,
        "timers": {"throughput": {"enabled": False}},  # it waits for the device twice in every micro-batch
        **formats,
    }


@contextmanager
def _stage_1_as_stage_2() -> Iterator[None]:
    """Lets DeepSpeed run ZeRO-1 with float32 sums as it runs ZeRO-2, and ZeRO-1 with other sums.

    It would choose its BF16_Optimizer, which keeps float32 gradients of all weights even without accumulation, and
    reduces none of them before the end of the backward pass. Its ZeRO-1 sums in float32 too; with offload it is chosen.
    """
    from deepspeed.runtime.engine import BFLOAT16, ZERO_OPTIMIZATION, DeepSpeedEngine

    choose = DeepSpeedEngine._do_optimizer_sanity_check

    def chosen(engine: Any, optimizer: Any) -> Any:
        return ZERO_OPTIMIZATION if (choice := choose(engine, optimizer)) == BFLOAT16 else choice

    DeepSpeedEngine._do_optimizer_sanity_check = chosen
    try:
        yield
    finally:
        DeepSpeedEngine._do_optimizer_sanity_check = choose


def _unchanged(data: Any) -> Any:
    return data


class ZeroStrategy(DeepSpeedStrategy):
    """DeepSpeed ZeRO; unlike Lightning's class it also runs on CPU processes, with gloo."""

    def __init__(self, config: dict[str, Any], timeout: timedelta = default_pg_timeout) -> None:
        # WARNING and up: its banners would bury the project's lines
        super().__init__(config=config, logging_level=30, timeout=timeout)
        self._collective_timeout = timeout
        self.frozen: dict[Parameter, Tensor] = {}  # in float32, the frozen weights that this rank writes, see ZeroState

    @override
    def setup_environment(self) -> None:
        # Lightning would round the batch to bfloat16 on the host, and un-pin it. The data reach the step as they are
        # stored, under this strategy as under every other, and Batch.to widens them on the device.
        self.precision_plugin.convert_input = _unchanged  # type: ignore[method-assign]
        if not isinstance(self.accelerator, CPUAccelerator):
            super().setup_environment()
            return
        from deepspeed.ops import __compatible_ops__ as compatible

        # a shared-memory collective that DeepSpeed would compile for a minute at every start; gloo does the same
        compatible["deepspeed_shm_comm"] = False
        assert self.parallel_devices is not None
        # Lightning and DeepSpeed both want an index on every device
        self.parallel_devices = [torch.device("cpu", i) for i in range(len(self.parallel_devices))]
        super(DeepSpeedStrategy, self).setup_environment()  # DeepSpeedStrategy's own only checks for CUDA

    @override
    def setup(self, trainer: Trainer) -> None:
        """Keeps the weights as loaded: DeepSpeed would create its float32 masters from their bfloat16 copy."""
        assert self.model is not None
        weights = saved(self.model)
        frozen = {name: weight.numel() for name, weight in weights.items() if not weight.requires_grad}
        mine = assigned(frozen, self.global_rank, self.world_size)
        kept = {*weights} - {*frozen} if self.precision_plugin.precision == "bf16-mixed" else set()
        loaded = {name: weights[name].detach().cpu().clone() for name in (*kept, *mine)}
        with _stage_1_as_stage_2():
            super().setup(trainer)
        limit_all_groups(self._collective_timeout)
        zero = self.deepspeed_engine.optimizer
        if not self.zero_stage_3:
            zero.get_grad_norm_direct = partial(norm_of, zero)
        state = state_of(self)
        for name, weight in self.deepspeed_engine.module.named_parameters():
            if name in mine:  # it has no master
                self.frozen[weight] = loaded[name]
            elif name in loaded:
                state.put(weight, None, loaded[name])

    @override
    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Keeps DeepSpeed from dividing the loss by the number of micro-batches, which Lightning has done already."""
        waiting = nullcontext() if self.zero_stage_3 else streams_wait(self.deepspeed_engine.optimizer)
        with waiting:
            return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    @override
    def pre_backward(self, closure_loss: Tensor) -> None:
        super().pre_backward(closure_loss)
        engine = self.deepspeed_engine
        if engine.micro_steps % engine.gradient_accumulation_steps() == 0:
            for gradient in self._kept_gradients():
                gradient.zero_()

    def _kept_gradients(self) -> list[Tensor]:
        """Returns the gradient buffers that DeepSpeed keeps from step to step and writes only for layers in use.

        Without zeroing them, a layer that a step leaves out would be updated with its gradient of the step before
        (measured: the losses diverge after the first image step). Where the optimizer is offloaded, ZeRO-1 and ZeRO-2
        also keep the float32 sums of a skipped step, and would add the next step's to them.
        """
        zero = self.deepspeed_engine.optimizer
        if self.zero_stage_3:
            partitions = list(zero._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition.values())
            offloaded = zero.offload_optimizer
            masters = zero.fp32_partitioned_groups_flat
        else:
            sums = zero.averaged_gradients.values()  # between steps there are none, except after a skipped one
            partitions = [group.flat_partition for group in sums if group is not None]
            offloaded = zero.cpu_offload
            masters = zero.single_partition_of_fp32_groups
        return partitions + [master.grad for master in masters if offloaded]
