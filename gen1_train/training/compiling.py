"""The compiled UNet: all shapes of a run are compiled before its first step, and none after.

Ranks meet in collectives. One that compiles in the middle of a step keeps the others waiting, until they give up.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from gen1_train.batch import Batch, Pool, Sample, collate
from gen1_train.data.schedule import Schedule
from gen1_train.errors import UserError
from gen1_train.model.unet import UNetConfig
from gen1_train.training.module import Gen1Module


@dataclass(frozen=True)
class Shape:
    """Micro-batches of one pool."""

    pool: Pool
    samples: int  # in a micro-batch of one rank
    factor: int  # pixels per latent


def shapes_of(schedule: Schedule, parts: int) -> list[Shape]:
    """All that a run will see: its pools; `parts`: micro-batches, on all ranks, that a global batch is split into."""
    factor = schedule.shards.manifest.estimators["autoencoder"]["factor"]
    return [Shape(pool.pool, schedule.batch_size(pool.kind) // parts, factor) for pool in schedule.pools]


class Compile(Callback):
    """Compiles the UNet in place, one graph for each shape, and runs each forward and backward once.

    In the forward pass of a training step nothing is compiled any more: a shape that is not known is an error. All
    that is not a training step runs as if the UNet were not compiled.
    """

    def __init__(self, backend: str, shapes: Sequence[Shape], say: Callable[[str], None]) -> None:
        """`backend`: of torch.compile."""
        self.backend, self.shapes, self.say = backend, list(shapes), say

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises UserError where the backend does not work. Changes no weight, gradient, moment or random state."""
        from torch._dynamo.exc import TorchDynamoException  # here: the import takes seconds

        assert isinstance(pl_module, Gen1Module)
        compile_in_place(pl_module, self.backend, len(self.shapes))
        for number, shape in enumerate(self.shapes, start=1):
            began = time.perf_counter()
            batch = made_batch(shape, pl_module.unet.config, pl_module.fields)
            try:
                rehearse(trainer, pl_module, batch)
            except TorchDynamoException as error:
                raise UserError(refusal(self.backend, shape, error)) from error
            seconds = time.perf_counter() - began
            self.say(f"compiled the step on {shape.pool.name} in {seconds:.1f} s ({number} of {len(self.shapes)})")
        trainer.strategy.barrier()
        torch.compiler.set_stance("force_eager")

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        torch.compiler.set_stance("fail_on_recompile")

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        torch.compiler.set_stance("force_eager")

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.compiler.set_stance("default")

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        torch.compiler.set_stance("default")


def compile_in_place(module: Gen1Module, backend: str, graphs: int) -> None:
    """Calls of the UNet go through torch.compile from now on; its weights keep their names.

    Static shapes: a graph each. Without the higher limit dynamo would go back to eager after 8 of them.
    """
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, graphs)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, graphs)
    module.unet.compile(backend=backend, dynamic=False, fullgraph=True)


def rehearse(trainer: Trainer, module: Gen1Module, batch: Batch) -> None:
    """A training step's pass forward and backward on a batch from the CPU, without a trace.

    Gradients are computed and thrown away: none reaches a weight, where DDP's and DeepSpeed's hooks would send it off.
    """
    plugin, strategy = trainer.precision_plugin, trainer.strategy
    devices = [module.device] if module.device.type == "cuda" else []
    with torch.random.fork_rng(devices), plugin.train_step_context():
        batch = strategy.batch_to_device(plugin.convert_input(batch), module.device)
        loss = module.losses(batch).mean()
    torch.autograd.grad(loss, list(module.unet.parameters()), allow_unused=True)


def made_batch(shape: Shape, config: UNetConfig, fields: tuple[str, ...]) -> Batch:
    """A batch of zeros as the loader hands one out that has read these `fields` of its samples."""
    n, height, width = shape.pool.frames, shape.pool.height, shape.pool.width
    channels, latent = config.out_channels, (height // shape.factor, width // shape.factor)
    sample = Sample(
        key="zeros",
        frames=np.zeros((n, height, width, 3), np.uint8),
        structure=np.zeros((n, height, width), np.uint16),
        moments=np.zeros((n, 2 * channels, *latent), np.float16),
        structure_latent=np.zeros((n, channels, *latent), np.float16),
        image_embedding=np.zeros((n, config.content_dim), np.float16),
    )
    read = Sample(sample.key, **{name: getattr(sample, name) for name in fields})
    return collate(shape.pool.kind, 0, list(range(shape.samples)), [read] * shape.samples)


def refusal(backend: str, shape: Shape, error: BaseException) -> str:
    """What the user reads when the backend fails: its compiler may be missing, or memory."""
    cause = getattr(error, "inner_exception", error)  # the backend's own error, in dynamo's
    reason = " ".join(f"{type(cause).__name__}: {cause}".split())
    return (
        f"trainer.compile=true: {backend} cannot compile the step on {shape.pool.name}: {reason[:200]}; "
        "use trainer.compile=false"
    )
