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


@dataclass
class StrategyConfig:
    name: str = "zero2"  # single, ddp, zero1, zero2, zero3


def build_strategy(config: StrategyConfig, processes: int, micro_batch: int) -> Strategy | str:
    """The Lightning strategy by our name. Raises UserError for an unknown one, or `single` with several processes."""
    if config.name == "single":
        if processes > 1:
            raise UserError(f"strategy=single runs one process, not {processes}: choose strategy=ddp or strategy=zero2")
        return "auto"
    if config.name == "ddp":
        # gradients are missing where layers are left out, see module.fill_missing_gradients
        return DDPStrategy(find_unused_parameters=True)
    if config.name in ZERO_STAGES:
        return ZeroStrategy(ZERO_STAGES[config.name], micro_batch)
    raise UserError(f"there is no strategy {config.name!r}; choose from single, ddp, {', '.join(ZERO_STAGES)}")


class ZeroStrategy(DeepSpeedStrategy):
    """DeepSpeed ZeRO; unlike Lightning's class it also runs on CPU processes, with gloo."""

    def __init__(self, stage: int, micro_batch: int) -> None:
        # WARNING (30) and up: its banners would bury our lines. The batch size serves its own throughput log alone.
        super().__init__(stage=stage, logging_level=30, logging_batch_size_per_gpu=micro_batch)

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
            if name in loaded:
                state.put(weight, None, loaded[name])

    @override
    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Keeps DeepSpeed from dividing the loss by the number of micro-batches: Lightning has done so already."""
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    @override
    def pre_backward(self, closure_loss: Tensor) -> None:
        super().pre_backward(closure_loss)
        optimizer = self.deepspeed_engine.optimizer
        if self.zero_stage_3 and optimizer.micro_step_id == 0:
            # A layer that a step leaves out would take that step with its gradient of the step before: ZeRO-3 writes
            # its buffers only for the gradients that come (measured: the losses part after the first image step).
            for partition in optimizer._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition.values():
                partition.zero_()
