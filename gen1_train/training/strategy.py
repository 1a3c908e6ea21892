"""How a run is spread over processes: one process, DDP, or DeepSpeed ZeRO, on GPUs or (for trying out) on CPUs."""

from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, Strategy
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from gen1_train.errors import UserError
from gen1_train.training.state import state_of

ZERO_STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
OFFLOADS = ("none", "optimizer", "all")
# Elements of gradients that are reduced at a time. Where communication overlaps two buckets are held: 4 GB in fp32 with
# DeepSpeed's 5e8. This is above the largest weight of Stable Diffusion's UNet (29.5 M), so none goes alone, and
# 100 MB of bfloat16: long enough for the bandwidth of any link.
BUCKET = 50_000_000
# Elements of gathered weights that ZeRO-3 holds at a time. By DeepSpeed's 1e9 it would let go of nothing of a UNet of
# 1.08e9: from its pass forward to its pass backward no weight rests for longer.
LIVE = 200_000_000


@dataclass
class StrategyConfig:
    name: str = "zero2"  # single, ddp, zero1, zero2, zero3
    offload: str = "none"  # to CPU memory, from GPUs: optimizer (zero1-3: masters, moments), all (zero3: weights too)
    persist_below: int = 100_000  # zero3: weights of fewer elements stay whole in every rank; 0: none


def build_strategy(config: StrategyConfig, processes: int, micro_batch: int, gpu: bool) -> Strategy | str:
    """The Lightning strategy by our name. Raises UserError for one that there is not."""
    check_strategy(config, processes)
    if config.name == "single":
        return "auto"
    if config.name == "ddp":
        # gradients are missing where layers are left out, see module.fill_missing_gradients
        return DDPStrategy(find_unused_parameters=True)
    return ZeroStrategy(zero_config(config, micro_batch, gpu))


def check_strategy(config: StrategyConfig, processes: int) -> None:
    """Raises UserError for an unknown strategy or offload, and where they do not go together."""
    if config.name not in ("single", "ddp", *ZERO_STAGES):
        raise UserError(f"there is no strategy {config.name!r}; choose from single, ddp, {', '.join(ZERO_STAGES)}")
    if config.name == "single" and processes > 1:
        raise UserError(f"strategy=single runs one process, not {processes}: choose strategy=ddp or strategy=zero2")
    if config.offload not in OFFLOADS:
        raise UserError(f"strategy.offload={config.offload} is not one of {', '.join(OFFLOADS)}")
    if config.offload == "all" and config.name != "zero3":
        raise UserError(
            f"strategy.offload=all needs strategy=zero3, not {config.name}: no other one gives weights away; "
            "strategy.offload=optimizer works with zero1 to zero3"
        )
    if config.offload == "optimizer" and config.name not in ZERO_STAGES:
        raise UserError(f"strategy.offload=optimizer needs {', '.join(ZERO_STAGES)}, not strategy={config.name}")
    if config.persist_below < 0:
        raise UserError(f"strategy.persist_below={config.persist_below} must be 0 or above")


def zero_config(config: StrategyConfig, micro_batch: int, gpu: bool) -> dict[str, Any]:
    """DeepSpeed's config, but for what Lightning adds from the Trainer's: accumulation, clipping, precision."""
    zero: dict[str, Any] = {
        "stage": ZERO_STAGES[config.name],
        # gradients go into the bucket as they come, so that their memory is free at once and does not fragment
        "contiguous_gradients": True,
        # NCCL reduces one bucket while the next one fills; gloo has no streams, it would only hold two buckets
        "overlap_comm": gpu,
        "reduce_bucket_size": BUCKET,
        # ZeRO-3 alone reads these; what it fetches ahead is 5e7 elements by default
        "stage3_max_live_parameters": LIVE,
        "stage3_max_reuse_distance": LIVE,
        "stage3_param_persistence_threshold": config.persist_below,
    }
    if config.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": gpu}
    if config.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": gpu}
    return {
        "train_micro_batch_size_per_gpu": micro_batch,  # for its own throughput log alone
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's AdamW
        # torch's fused AdamW: DeepSpeed's for CPUs has to be compiled first and gains little, see docs/strategies.md
        "zero_force_ds_cpu_optimizer": False,
    }


class ZeroStrategy(DeepSpeedStrategy):
    """DeepSpeed ZeRO; unlike Lightning's class it also runs on CPU processes, with gloo."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config=config, logging_level=30)  # WARNING and up: its banners would bury our lines

    @override
    def setup_environment(self) -> None:
        if not isinstance(self.accelerator, CPUAccelerator):
            super().setup_environment()
            return
        from deepspeed.ops import __compatible_ops__ as compatible

        # a shared-memory collective that DeepSpeed would compile for a minute at every start; gloo serves
        compatible["deepspeed_shm_comm"] = False
        assert self.parallel_devices is not None
        # Lightning and DeepSpeed both want an index on every device
        self.parallel_devices = [torch.device("cpu", i) for i in range(len(self.parallel_devices))]
        super(DeepSpeedStrategy, self).setup_environment()  # DeepSpeedStrategy's own only checks for CUDA

    @override
    def setup(self, trainer: Trainer) -> None:
        """Keeps the weights as they were loaded: DeepSpeed would make its float32 masters from their bfloat16 copy."""
        assert self.model is not None
        loaded: dict[str, Tensor] = {}
        if self.precision_plugin.precision == "bf16-mixed":
            loaded = {name: weight.detach().cpu().clone() for name, weight in self.model.named_parameters()}
        super().setup(trainer)
        state = state_of(self)
        for name, weight in self.deepspeed_engine.module.named_parameters():
            if name in loaded and weight.requires_grad:  # what is frozen has no master
                state.put(weight, None, loaded[name])

    @override
    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Keeps DeepSpeed from dividing the loss by the number of micro-batches: Lightning has done so already."""
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    @override
    def pre_backward(self, closure_loss: Tensor) -> None:
        super().pre_backward(closure_loss)
        engine = self.deepspeed_engine
        if engine.micro_steps % engine.gradient_accumulation_steps() == 0:
            for kept in self._kept_gradients():
                kept.zero_()

    def _kept_gradients(self) -> list[Tensor]:
        """Buffers that DeepSpeed keeps from step to step and writes only for the gradients that come.

        A layer that a step leaves out would take that step with its gradient of the step before (measured: the losses
        part after the first image step).
        """
        zero = self.deepspeed_engine.optimizer
        if self.zero_stage_3:
            kept = list(zero._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition.values())
            offloaded, masters = zero.offload_optimizer, zero.fp32_partitioned_groups_flat
        else:
            kept, offloaded, masters = [], zero.cpu_offload, zero.single_partition_of_fp32_groups
        return kept + [master.grad for master in masters if offloaded]
