"""A training step on a GPU waits for it once: the step runs on fake CUDA tensors, which have no values to wait for."""

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gen1_train.batch import Batch
from gen1_train.diffusion.schedule import NoiseSchedule
from gen1_train.diffusion.structure import PIXELS, RELATIVE
from gen1_train.training.callbacks.tally import Tally
from gen1_train.training.draws import Draws
from gen1_train.training.module import Gen1Module, fill_missing_gradients
from tests.training.test_module import WIDTH, make_module
from tests.training.test_module_planes import make_module as make_dropping_module

CUDA = torch.device("cuda", 0)
READS = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "is_nonzero", "equal")
COPIES = ("aten._to_copy", "aten.copy_")


class Waits(TorchDispatchMode):
    """Counts the operations for which the host waits for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(function)
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        if "cuda" in devices and any(word in name for word in READS):
            self.seen[name] += 1
        result = function(*args, **kwargs)
        if name.startswith(COPIES) and len(devices | {result.device.type}) == 2:
            asynchronous = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
            self.seen[name] += not asynchronous
        return result


def move(module: Gen1Module) -> None:
    """Moves a module to a fake GPU, as Lightning moves it to a real one."""
    for part in (module, module.autoencoder):
        for child in part.modules() if part is not None else []:
            for name, weight in child.named_parameters(recurse=False):
                fake = torch.nn.Parameter(torch.empty(weight.shape, device=CUDA), weight.requires_grad)
                child.register_parameter(name, fake)
            for name, buffer in child.named_buffers(recurse=False):
                child.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype, device=CUDA))
    module._device = CUDA
    module._precision = "fp16"  # in which on_fit_start lets a sound autoencoder encode on a GPU


def make_batch(kind: str, levels: list[int]) -> Batch:
    """A batch as the loader hands it out: on the host, with its draws."""
    b, n = len(levels), 4 if kind == "video" else 1
    latents = (b, n, 4, 4, 8)
    draws = Draws(
        frames=torch.zeros(b, dtype=torch.long),
        timesteps=torch.zeros(b, dtype=torch.long),
        levels=torch.zeros(b, dtype=torch.long),
        dropped=torch.zeros(b, dtype=torch.bool),
        noise=torch.zeros(latents),
        posterior=torch.zeros(latents),
        rounds=levels,
    )
    return Batch(
        kind,
        step=0,
        slots=list(range(b)),
        keys=[""] * b,
        moments=torch.zeros(b, n, 8, 4, 8, dtype=torch.float16),
        embeddings=torch.zeros(b, n, WIDTH, dtype=torch.float16),
        structure_latents=torch.zeros(latents, dtype=torch.float16),
        structure=torch.zeros(b, n, 32, 64, dtype=torch.uint16),
        draws=draws,
    )


@pytest.mark.parametrize("kind", ["video", "image"])
@pytest.mark.parametrize(("max_level", "degradation"), [(0, PIXELS), (7, PIXELS), (7, RELATIVE)])
def test_a_step_waits_once_for_its_gradient_norm(
    kind: str, max_level: int, degradation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backward pass cannot run here: autograd wants a thread for a device that exists. None of it is ours."""
    # without a GPU, torch would leave out the fp16 in which the autoencoder encodes
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    module = make_module(max_level=max_level, degradation=degradation)
    levels = [0, 3, 7, 3] if max_level else [0] * 4
    with FakeTensorMode(allow_non_fake_inputs=True):
        move(module)
        module._schedule = NoiseSchedule(module.diffusion.noise, CUDA)
        tally = Tally(CUDA, 1000, max_level)
        optimizer: Any = module.configure_optimizers()["optimizer"]
        step(module, optimizer, tally, make_batch(kind, levels))  # constants are copied to the device in the first step
        with Waits() as waits:
            step(module, optimizer, tally, make_batch(kind, levels))
    assert +waits.seen == {"aten._local_scalar_dense.default": 1}


def step(module: Gen1Module, optimizer: torch.optim.Optimizer, tally: Tally, batch: Batch) -> None:
    """What Lightning and our callbacks do in an optimizer step of one micro-batch, between two rows."""
    batch = batch.to(CUDA)
    outputs = module.training_step(batch, 0)
    fill_missing_gradients(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(module.unet.parameters(), 1.0)
    assert norm.device == CUDA
    with suppress(DataDependentOutputException):
        module.takes_step(float(norm))
    optimizer.step()
    tally.add(batch, outputs, flops=1)


def test_samples_that_lose_planes_do_not_wait_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are encoded among others whose latents are read."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    module = make_dropping_module(0.5)

    def batch() -> Batch:
        made = make_batch("video", [0, 3, 7, 3])
        made.draws.planes = [(1.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
        structure = torch.zeros(2, 4, 2, 32, 64, dtype=torch.uint16)
        return replace(made, structure=structure, structure_rows=[1, 3], structure_levels=[0, 3, 7, 3])

    with FakeTensorMode(allow_non_fake_inputs=True):
        move(module)
        module._schedule = NoiseSchedule(module.diffusion.noise, CUDA)
        read = batch().to(CUDA)
        module.structure_latents(read, read.draws.rounds, read.draws.planes)  # copies constants
        with Waits() as waits:
            latents = module.structure_latents(read, read.draws.rounds, read.draws.planes)
    assert latents.shape == (4, 4, 4, 4, 8) and latents.device == CUDA and not +waits.seen
