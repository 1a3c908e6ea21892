"""All parts of gpu.py, the most valuable first, with the seconds that each may take on a GPU.

What needs more than torch is imported by the part that needs it: machines with GPUs may lack it.
"""

from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.on_gpu import editing, equal_bits, machine, operators, steps
from benchmarks.on_gpu.runner import Part
from benchmarks.on_gpu.scale import Scale
from benchmarks.questions import Row

LIGHTNING = ("pytorch_lightning",)
DEEPSPEED = (*LIGHTNING, "deepspeed")


def under(strategy: str) -> Callable[[Scale], Iterator[Row]]:
    """Returns the rows of training under a strategy."""

    def rows(scale: Scale) -> Iterator[Row]:
        from benchmarks.on_gpu.trainers import strategy_rows

        yield from strategy_rows(scale, strategy)

    return rows


def several(scale: Scale) -> Iterator[Row]:
    from benchmarks.on_gpu.several import scaling_rows

    yield from scaling_rows(scale)


def plan(scale: Scale) -> Iterator[Row]:
    from benchmarks.on_gpu.trainers import plan_rows

    yield from plan_rows(scale)


def half_precision(scale: Scale) -> Iterator[Row]:
    from benchmarks.on_gpu.half_precision import half_precision_rows

    yield from half_precision_rows(scale)


def checkpoint(scale: Scale) -> Iterator[Row]:
    from benchmarks.on_gpu.checkpoints import checkpoint_rows

    yield from checkpoint_rows(scale)


PARTS = (
    Part("machine", machine.machine_rows, 30),
    Part("step", steps.step_rows, 150),
    Part("attention", operators.attention_rows, 60),
    Part("norm", operators.norm_rows, 75),
    Part("single", under("single"), 60, LIGHTNING),
    Part("zero1", under("zero1"), 60, DEEPSPEED),
    Part("zero2", under("zero2"), 60, DEEPSPEED),
    Part("ddp", under("ddp"), 60, LIGHTNING),
    Part("several", several, 240, DEEPSPEED),
    Part("bits", partial(equal_bits.equal_bits_rows, deterministic=True), 45),
    Part("default_bits", partial(equal_bits.equal_bits_rows, deterministic=False), 45),
    Part("plan", plan, 75, LIGHTNING),
    Part("checkpointing", steps.checkpointing_rows, 45),
    Part("edit", editing.edit_rows, 60),
    Part("bf16", half_precision, 75, LIGHTNING),
    Part("peers", steps.peer_rows, 75, ("diffusers",)),
    Part("compile", steps.compile_rows, 180),
    Part("layouts", steps.layout_rows, 30),
    Part("convolutions", operators.convolution_rows, 30),
    Part("checkpoint", checkpoint, 75, LIGHTNING),
)
