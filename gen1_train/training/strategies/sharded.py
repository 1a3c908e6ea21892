"""PyTorch's FSDP2 as a Lightning strategy: ranks divide each layer's weights, and gather them for its passes.

FSDP2 holds a float32 shard of every weight. The optimizer, the norm and the averages work on these plain tensors, not
on the DTensors around them, whose every operation costs the host tens of microseconds.
"""

import warnings
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.precision import MixedPrecision
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.nn import Parameter
from typing_extensions import override

from gen1_train.model.layers import Downsample, Upsample
from gen1_train.model.unet import ResidualBlock, SpatioTemporalTransformer
from gen1_train.training.checkpoints.state import REPLICATE, SHARD, trainable
from gen1_train.training.strategies.config import StrategyConfig
from gen1_train.training.strategies.groups import limit_all_groups

LAYERS = (ResidualBlock, SpatioTemporalTransformer, Downsample, Upsample)  # each is gathered and reduced as a whole


def divided_layers(network: nn.Module) -> list[nn.Module]:
    """Returns the layers whose weights are gathered together. What lies between them is gathered with the network."""
    return [layer for layer in network.modules() if isinstance(layer, LAYERS)]


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all ranks, or over those of each node (hybrid sharding), with the weights as loaded."""

    def __init__(self, config: StrategyConfig, timeout: timedelta) -> None:
        """`timeout`: of collectives, in all process groups."""
        super().__init__(timeout=timeout)
        self.config = config
        self._shards: list[tuple[Parameter, Tensor]] = []  # a trained weight, this rank's part of it

    @property
    def ranks_of_a_copy(self) -> int:
        """How many ranks divide one copy of the state."""
        return self.num_processes if self.config.shard_within == "node" else self.world_size

    @override
    def setup_environment(self) -> None:
        self._setup_distributed()
        copies = self.world_size // self.ranks_of_a_copy
        shape, names = (self.world_size,), (SHARD,)
        if copies > 1:
            shape, names = (copies, self.ranks_of_a_copy), (REPLICATE, SHARD)  # type: ignore[assignment]
        self._device_mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)
        assert self._timeout is not None
        limit_all_groups(self._timeout)
        if self.precision_plugin.precision == "bf16-mixed":
            self.precision_plugin = Bf16Weights("bf16-mixed", self.root_device.type)

    @override
    def setup(self, trainer: Trainer) -> None:
        assert self.accelerator is not None and self.lightning_module is not None
        self.accelerator.setup(trainer)
        # about operations in place on the result of a layer, of which the UNet has none
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        network: Any = self.lightning_module.network
        self._divide(network)
        self.lightning_module._device = self.root_device  # as `to` does, which would also move offloaded shards back
        self._shards = [(weight, _own(weight)) for weight in trainable(network).values()]
        self.barrier()
        self.setup_optimizers(trainer)
        parts = dict(self._shards)
        for group in self.optimizers[0].param_groups:
            group["params"] = [parts[weight] for weight in group["params"]]
        self.optimizers[0].register_step_post_hook(self.forget_gradients)
        self.setup_precision_plugin()

    def _divide(self, network: nn.Module) -> None:
        bf16 = torch.bfloat16 if self.precision_plugin.precision == "bf16-mixed" else None
        reduce = torch.bfloat16 if self.config.reduce == "bf16" else torch.float32
        on_gpu = self.root_device.type == "cuda"
        offload = CPUOffloadPolicy(pin_memory=on_gpu) if self.config.offload == "all" else OffloadPolicy()
        for module in [*divided_layers(network), network]:
            fully_shard(
                module,
                mesh=self.device_mesh,
                reshard_after_forward=True,  # of the network, too: outside of passes its weights are the shards
                mp_policy=MixedPrecisionPolicy(param_dtype=bf16, reduce_dtype=reduce),
                offload_policy=offload,
            )

    @override
    def post_backward(self, closure_loss: Tensor) -> None:
        """Gives the optimizer's tensors the gradients that FSDP2 has left at the weights."""
        for weight, part in self._shards:
            part.grad = _own(weight.grad) if weight.grad is not None else None

    def forget_gradients(self, *optimizer: Any) -> None:
        """Frees the gradients after a step, or the next one would be added to them."""
        for weight, part in self._shards:
            weight.grad = part.grad = None

    def whole_norm(self, norm: Tensor) -> Tensor:
        """Returns the norm of a vector from the norm of this rank's part of it. A collective."""
        square = norm.to(self.root_device).square()
        distributed.all_reduce(square, group=self.device_mesh[SHARD].get_group())
        return square.sqrt()


class Bf16Weights(MixedPrecision):
    """FSDP2 gathers bfloat16 weights and casts what each layer gets, so that nothing is left to autocast."""

    @override
    def autocast_context_manager(self) -> AbstractContextManager[Any]:  # type: ignore[override]
        return nullcontext()


def _own(tensor: Any) -> Tensor:
    """Returns this rank's part of a DTensor: the same object each time, which is a key of the optimizer's state."""
    return tensor._local_tensor
