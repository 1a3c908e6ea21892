"""Chooses the UNet's kernels and compiles its layers for all shapes of a run before its first step, and not afterwards.

The ranks synchronize in collectives: one that compiled during a step would keep the others waiting until they time out.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from gen1_train.batch import Batch, Pool, Sample, collate
from gen1_train.data.schedule import Schedule
from gen1_train.errors import UserError
from gen1_train.model.compiling import compile_layers
from gen1_train.model.kernels import Latents, choose
from gen1_train.model.unet import UNetConfig
from gen1_train.training.module import Gen1Module
from gen1_train.training.strategies.sharded import ShardedStrategy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shape:
    """The shape of the micro-batches of one pool."""

    pool: Pool
    samples: int  # in a micro-batch of one rank
    factor: int  # pixels per latent

    @property
    def latents(self) -> Latents:
        height, width = self.pool.height // self.factor, self.pool.width // self.factor
        return Latents(self.samples, self.pool.frames, height, width)


def shapes_of(schedule: Schedule, parts: int) -> list[Shape]:
    """Returns the shapes of a run, one per pool; `parts`: micro-batches per global batch, over all ranks."""
    factor = schedule.shards.manifest.estimators["autoencoder"]["factor"]
    return [Shape(pool.pool, schedule.batch_size(pool.frames) // parts, factor) for pool in schedule.pools]


class Kernels(Callback):
    """Chooses the UNet's kernels, and reports on a GPU what it took."""

    def __init__(self, shapes: Sequence[Shape], compiled: bool) -> None:
        self.shapes = list(shapes)
        self.compiled = compiled

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises UserError if model.kernels=triton cannot be used."""
        assert isinstance(pl_module, Gen1Module)
        batches = [shape.latents for shape in self.shapes]
        dtype = torch.bfloat16 if trainer.precision == "bf16-mixed" else torch.float32
        # FSDP keeps float32 shards, and gathers weights of the maps' dtype
        weights = dtype if isinstance(trainer.strategy, ShardedStrategy) else None
        line = choose(pl_module.unet, batches, pl_module.device, dtype, self.compiled, weights)
        if line is not None:
            logger.info(line)


class Compile(Callback):
    """Compiles the UNet's layers in place for each shape of the run, by a forward and backward pass on zeros.

    Nothing is compiled in the passes of a training step: an unknown shape is an error there. Everything else runs as if
    the UNet were not compiled.
    """

    def __init__(self, backend: str, shapes: Sequence[Shape]) -> None:
        """`backend`: the one that torch.compile uses."""
        self.backend = backend
        self.shapes = list(shapes)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises UserError if the backend does not work. Changes no weight, gradient, moment or random state."""
        from torch._dynamo.exc import TorchDynamoException  # here, because the import takes seconds

        assert isinstance(pl_module, Gen1Module)
        compile_layers(pl_module.unet, self.backend)
        for number, shape in enumerate(self.shapes, start=1):
            began = time.perf_counter()
            stage, drawing = pl_module.stage, pl_module.drawing
            batch = zero_batch(shape, pl_module.unet.config, stage.fields, drawing.level, stage.planes, drawing.drops)
            try:
                rehearse(trainer, pl_module, batch)
            except TorchDynamoException as error:
                raise UserError(compile_error(self.backend, shape, error)) from error
            seconds = time.perf_counter() - began
            logger.info(f"compiled the step on {shape.pool.name} in {seconds:.1f} s ({number} of {len(self.shapes)})")
        trainer.strategy.barrier()
        torch.compiler.set_stance("force_eager")

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        torch.compiler.set_stance("fail_on_recompile")

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.compiler.set_stance("force_eager")  # not before: layers with checkpointing run again in the backward pass

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.compiler.set_stance("default")

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        torch.compiler.set_stance("default")


def rehearse(trainer: Trainer, module: Gen1Module, batch: Batch) -> None:
    """Runs the forward and backward pass of a training step on a batch from the CPU, without side effects.

    Gradients are computed and discarded. None reaches a weight, where hooks of DDP and DeepSpeed would communicate it.
    FSDP2 gathers and reduces in every pass; all ranks rehearse the same ones.
    """
    plugin, strategy = trainer.precision_plugin, trainer.strategy
    devices = [module.device] if module.device.type == "cuda" else []
    with torch.random.fork_rng(devices), plugin.train_step_context():
        batch = strategy.batch_to_device(plugin.convert_input(batch), module.device)
        loss = module.losses(batch).mean()
    if isinstance(strategy, ShardedStrategy):
        loss.backward()
        strategy.forget_gradients()
        return
    torch.autograd.grad(loss, list(module.unet.parameters()), allow_unused=True)


def zero_batch(
    shape: Shape,
    config: UNetConfig,
    fields: tuple[str, ...],
    level: Callable[[int, int], int] = lambda step, slot: 0,
    planes: int = 1,
    drops: Callable[[int, int], bool] = lambda step, slot: False,
) -> Batch:
    """Returns a batch of zeros like those of a loader that reads these `fields` of the samples, at their `level`.

    `planes`: of the structure, which is also read of samples that lose one of them (`drops`).
    """
    n, height, width = shape.pool.frames, shape.pool.height, shape.pool.width
    channels, latent = config.out_channels, (height // shape.factor, width // shape.factor)
    sample = Sample(
        key="zeros",
        frames=np.zeros((n, height, width, 3), np.uint8),
        structure=np.zeros((n, *((planes,) if planes > 1 else ()), height, width), np.uint16),
        moments=np.zeros((n, 2 * channels, *latent), np.float16),
        structure_latent=np.zeros((n, channels, *latent), np.float16),
        image_embedding=np.zeros((n, config.content_dim), np.float16),
    )
    loaded = Sample(sample.key, **{name: getattr(sample, name) for name in fields})
    whole = replace(loaded, structure=sample.structure)
    slots = list(range(shape.samples))
    batch = collate(shape.pool.kind, 0, slots, [whole if drops(0, slot) else loaded for slot in slots])
    if batch.structure_levels is not None:
        batch.structure_levels = [level(batch.step, slot) for slot in batch.slots]
    return batch


def compile_error(backend: str, shape: Shape, error: BaseException) -> str:
    """Returns the message for a backend that fails, for lack of a compiler or of memory for example."""
    cause = getattr(error, "inner_exception", error)  # the backend's error, wrapped by dynamo
    reason = " ".join(f"{type(cause).__name__}: {cause}".split())
    return (
        f"trainer.compile=true: {backend} cannot compile the step on {shape.pool.name}: {reason[:200]}; "
        "use trainer.compile=false"
    )
