"""Strategies: one process, DDP, DeepSpeed ZeRO, or FSDP2, on GPUs or (for tests) on CPUs."""

from datetime import timedelta

from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from gen1_train.errors import UserError
from gen1_train.training.strategies.config import AUTO, COLLECTIVE_SECONDS, FSDP, StrategyConfig
from gen1_train.training.strategies.sharded import ShardedStrategy
from gen1_train.training.strategies.zero import ZeroStrategy, zero_config


def build_strategy(
    config: StrategyConfig, processes: int, micro_batch: int, gpu: bool, collective_seconds: float = COLLECTIVE_SECONDS
) -> Strategy | str:
    """Returns the Lightning strategy of this name. Raises UserError if it does not exist.

    `collective_seconds`: after which a collective of any of its process groups fails.
    `auto` has been replaced by a name before, see planning/choice.py.
    """
    config.check()
    assert config.name != AUTO
    if config.name == "single":
        if processes > 1:
            raise UserError(f"strategy=single runs one process, not {processes}: choose strategy=auto or strategy=ddp")
        return "auto"
    timeout = timedelta(seconds=collective_seconds)
    if config.name == "ddp":
        # image steps leave layers out, and these have no gradients: see module.fill_missing_gradients
        return (Bf16DDPStrategy if config.reduce == "bf16" else DDPStrategy)(
            find_unused_parameters=True, timeout=timeout
        )
    if config.name == FSDP:
        return ShardedStrategy(config, timeout)
    return ZeroStrategy(zero_config(config, micro_batch, gpu), timeout)


class Bf16DDPStrategy(DDPStrategy):
    """DDP that sends gradients in bfloat16. Each rank still sums its micro-batches in float32."""

    @override
    def _register_ddp_hooks(self) -> None:  # Lightning's would register a hook on GPUs only
        assert isinstance(self.model, DistributedDataParallel)
        self.model.register_comm_hook(None, bf16_compress_hook)
