"""The training state as whole float32 tensors by name, independent of the strategy and the number of processes.

A run's state consists of its weights, AdamW's two moments of each, their averages (ema.py), and a few counters
(counters.py). Everything else follows from the number of steps done: the learning rate, the position in the data, and
all randomness, which is keyed by it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DeepSpeedStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, distributed
from torch.nn import Module, Parameter
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from typing_extensions import override

MOMENTS = ("exp_avg", "exp_avg_sq")  # by AdamW's names
REPLICATE, SHARD = "replicate", "shard"  # the dimensions of FSDP2's mesh
CHUNK_ELEMENTS = 2**24  # elements that are gathered or exchanged at once, unless a single tensor has more
ADAPTER = ".lora_"  # in the names of an adapter's weights, as peft makes them

# name of a tensor in a file -> a weight, and what is stored of it: a moment, an average, or None for the weight itself
Entries = dict[str, tuple[Parameter, str | None]]


def trainable(model: Module) -> dict[str, Parameter]:
    """Returns the weights that the optimizer holds: all of them, those of stage.trains, or those of an adapter."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def saved(model: Module) -> dict[str, Parameter]:
    """Returns the weights that a checkpoint holds: all of them, or those of an adapter, whose base has its own file."""
    weights = dict(model.named_parameters())
    adapter = {name: weight for name, weight in weights.items() if ADAPTER in name}
    return adapter or weights


def updated_by(optimizer: Optimizer) -> list[Tensor]:
    """Returns the tensors that an optimizer updates, in its order.

    A step that needs them takes them from here: walking through the modules takes milliseconds, for which a GPU waits.
    """
    return [tensor for group in optimizer.param_groups for tensor in group["params"]]


def weights_of(model: Module) -> Entries:
    """Returns the entries of unet.safetensors."""
    return {name: (weight, None) for name, weight in saved(model).items()}


def moments_of(model: Module) -> Entries:
    """Returns the entries of optimizer.safetensors."""
    return {f"{name}.{moment}": (weight, moment) for name, weight in trainable(model).items() for moment in MOMENTS}


def averages_of(model: Module, average: str) -> Entries:
    """Returns the entries of the file of an average, under the names of the weights.

    A frozen weight is its own average.
    """
    return {name: (weight, average if weight.requires_grad else None) for name, weight in saved(model).items()}


def assigned(sizes: Mapping[str, int], rank: int, world: int) -> list[str]:
    """Returns the tensors that one of `world` ranks writes if all of them hold everything.

    Each tensor is written by one rank, and each rank writes about as many elements.
    """
    total, before, names = sum(sizes.values()), 0, []
    for name, size in sizes.items():
        if (before + size // 2) * world // total == rank:
            names.append(name)
        before += size
    return names


class PlainState:
    """The state under `single` and `ddp`: every process holds everything, in a torch optimizer.

    Averages are in the optimizer's state, alongside AdamW's moments.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def gather(self, entries: Entries, keep: bool) -> dict[str, Tensor]:
        """Returns copies of the whole tensors, in float32 on the CPU, where `keep` is true (on rank 0); else nothing.

        A collective where ranks divide the state.
        """
        if not keep:
            return {}
        return {name: self._values(*entry).to("cpu", torch.float32, copy=True) for name, entry in entries.items()}

    def pieces(self, entries: Entries) -> Iterator[tuple[str, int, Tensor]]:
        """Yields what this process writes into its part of a checkpoint: names, positions in the flattened tensors, and
        the elements from there on. Together, the processes write each element once.

        Where all processes hold everything, each one writes some of the tensors, of about the same size together.
        """
        rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
        for name in assigned({name: weight.numel() for name, (weight, _) in entries.items()}, rank, world):
            yield name, 0, self._values(*entries[name])

    def put(self, weight: Parameter, moment: str | None, whole: Tensor) -> None:
        """Copies from `whole` the part of a weight or moment that this process holds."""
        self.put_elements(weight, moment, lambda start, count: whole.flatten()[start : start + count])

    def put_elements(self, weight: Parameter, moment: str | None, read: Callable[[int, int], Tensor]) -> None:
        """As `put`, from what `read` returns for a position in the flattened tensor and a number of elements. Nothing
        else is read."""
        held = self._held(weight, moment)
        held.copy_(read(0, weight.numel()).view(weight.shape).to(held.device))

    def create_moments(self, updates: int) -> None:
        """Creates the moments, as AdamW does in its first step, and sets its step counter to `updates`."""
        for master in self.masters():
            step = torch.tensor(float(updates), device=master.device)
            self.optimizer.state[master] = {"step": step, **self.new_moments(master)}

    def new_moments(self, master: Tensor) -> dict[str, Tensor]:
        """Returns the moments of a weight as AdamW begins with them; that of 8 bits has its own kind of tensor."""
        if hasattr(self.optimizer, "new_moments"):
            return self.optimizer.new_moments(master)
        return {moment: torch.zeros_like(master, memory_format=torch.preserve_format) for moment in MOMENTS}

    def create_average(self, average: str, on_cpu: bool = False) -> None:
        """Creates an average as a copy of the current weights, in CPU memory if asked for. The moments must exist."""
        for master in self.masters():
            copy = torch.empty_like(master, device="cpu" if on_cpu else None, pin_memory=on_cpu and master.is_cuda)
            self.optimizer.state[master][average] = copy.copy_(master.detach())

    @torch.no_grad()
    def average(self, rates: Mapping[str, float]) -> None:
        """Moves each average towards the weights by its rate; each process updates its part, without communication."""
        masters = list(self.optimizer.state)
        states = self.optimizer.state.values()  # to look each one up by its tensor would take longer than the update
        if any(held[average].device != master.device for master, held in zip(masters[:1], states) for average in rates):
            masters = [master.cpu() for master in masters]
        for average, rate in rates.items():
            torch._foreach_lerp_([held[average] for held in states], masters, rate)

    @contextmanager
    def showing(self, average: str | None) -> Iterator[None]:
        """Lets the model compute with an average for the length of a block, then restores the weights bit-exactly.

        None leaves the model unchanged. A collective under ZeRO.
        """
        if average is None:
            yield
            return
        self._exchange(average)
        try:
            yield
        finally:
            self._exchange(average)

    @torch.no_grad()
    def _exchange(self, average: str) -> None:
        for master in self.masters():
            held = self._held(master, average)
            # both are dense and have the same layout, so their elements match regardless of strides
            flat = [tensor.as_strided((tensor.numel(),), (1,)) for tensor in (master.detach(), held)]
            for weights, averages in zip(*(tensor.split(CHUNK_ELEMENTS) for tensor in flat)):
                copy = weights.clone()
                weights.copy_(averages)
                averages.copy_(copy)
        self.refresh()

    def refresh(self) -> None:
        """Lets the model compute with the current values of the masters. A collective under ZeRO."""

    def masters(self) -> list[Tensor]:
        """Returns the tensors that the optimizer updates in this process."""
        return updated_by(self.optimizer)

    def shape(self, weight: Parameter) -> torch.Size:
        """Returns the shape of the whole weight."""
        return weight.shape

    def _values(self, master: Tensor, moment: str | None) -> Tensor:
        """Returns what this process holds, in numbers: moments of 8 bits are codes."""
        held = self._held(master, moment)
        return held.dequantize() if is_traceable_wrapper_subclass(held) else held

    def _held(self, master: Tensor, moment: str | None) -> Tensor:
        return (master if moment is None else self.optimizer.state[master][moment]).detach()


class DividedState(PlainState):
    """The state of which each process holds a part of each weight, or nothing of it."""

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        """`device`: where collectives run."""
        super().__init__(optimizer)
        self.device = device

    def part(self, weight: Parameter, moment: str | None) -> tuple[int, Tensor]:
        """Returns where this process's part of a flattened weight starts, and a view of it in the master or moment."""
        raise NotImplementedError

    def share(self, weight: Parameter, moment: str | None) -> tuple[int, Tensor]:
        """Returns as `part` does what this process alone contributes: no element comes from two processes."""
        return self.part(weight, moment)

    @override
    def gather(self, entries: Entries, keep: bool) -> dict[str, Tensor]:
        whole: dict[str, Tensor] = {}
        for names in self._buckets(entries):
            sizes = [self.shape(entries[name][0]).numel() for name in names]
            bucket = torch.zeros(sum(sizes), dtype=torch.float32, device=self.device)
            tensors = dict(zip(names, bucket.split(sizes)))
            for name, tensor in tensors.items():
                start, part = self.share(*entries[name])
                tensor[start : start + len(part)] = part
            distributed.reduce(bucket, dst=0)  # each element is in one process; the others add zero
            if keep:
                shapes = {name: self.shape(entries[name][0]) for name in names}
                whole |= {name: tensor.view(shapes[name]).to("cpu", copy=True) for name, tensor in tensors.items()}
        return whole

    @override
    def pieces(self, entries: Entries) -> Iterator[tuple[str, int, Tensor]]:
        for name, entry in entries.items():
            start, part = self.share(*entry)
            if len(part):
                yield name, start, part

    @override
    def put_elements(self, weight: Parameter, moment: str | None, read: Callable[[int, int], Tensor]) -> None:
        start, part = self.part(weight, moment)
        if len(part):
            part.copy_(read(start, len(part)))

    def _buckets(self, entries: Entries) -> Iterator[list[str]]:
        """Yields the names in order, in groups of about CHUNK_ELEMENTS elements: one collective for each group."""
        names: list[str] = []
        size = 0
        for name, (weight, _) in entries.items():
            numel = self.shape(weight).numel()
            if names and size + numel > CHUNK_ELEMENTS:
                yield names
                names, size = [], 0
            names.append(name)
            size += numel
        yield names


class ZeroState(DividedState):
    """The state under DeepSpeed's ZeRO-1 and ZeRO-2: all trained weights, flattened in float32; each process has a
    part. Frozen weights are in no optimizer; each process keeps some of them in float32."""

    def __init__(self, zero: Any, device: torch.device, frozen: Mapping[Parameter, Tensor]) -> None:
        """`zero`: DeepSpeed's optimizer, which wraps torch's; `frozen`: the frozen weights that this process keeps."""
        super().__init__(zero.optimizer, device)
        self.zero = zero
        self.frozen = frozen

    @override
    def refresh(self) -> None:
        self.zero.update_lp_params()

    @override
    def part(self, weight: Parameter, moment: str | None) -> tuple[int, Tensor]:
        if not weight.requires_grad:
            return 0, self.frozen[weight].view(-1) if weight in self.frozen else torch.empty(0)
        return self.master_part(weight, moment)

    def master_part(self, weight: Parameter, moment: str | None) -> tuple[int, Tensor]:
        """Returns as `part` does, for a weight that the optimizer holds."""
        mapping = weight._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:  # the weight is in other processes
            return 0, torch.empty(0)
        address, master = mapping.hp_fragment_address, self.masters()[mapping.param_group_index]
        return mapping.lp_fragment_address.start, self._held(master, moment).narrow(0, address.start, address.numel)


class Zero3State(ZeroState):
    """The state under ZeRO-3: each process has an equal part of every weight, the last part padded."""

    @override
    def master_part(self, weight: Parameter, moment: str | None) -> tuple[int, Tensor]:
        group, offset, numel = self.zero.grad_position[self.zero.get_param_id(weight)]
        start = numel * weight.ds_zero_partition_rank  # type: ignore[attr-defined]
        filled = max(0, min(numel, self.shape(weight).numel() - start))
        return start, self._held(self.masters()[group], moment).narrow(0, offset, filled)

    @override
    def refresh(self) -> None:
        zero = self.zero
        zero._partition_all_parameters()
        for group in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
        zero.invalidate_secondary_tensor()

    @override
    def masters(self) -> list[Tensor]:
        return self.zero.fp32_partitioned_groups_flat

    @override
    def shape(self, weight: Parameter) -> torch.Size:
        return weight.ds_shape  # type: ignore[attr-defined]  # the weight itself is empty outside its layer's pass


class ShardedState(DividedState):
    """The state under FSDP2: each process has some of the rows of every weight. With hybrid sharding, so do others."""

    @override
    def part(self, weight: Parameter, moment: str | None) -> tuple[int, Tensor]:
        dtensor: Any = weight
        rows, ranks = weight.shape[0], dtensor.device_mesh[SHARD]
        first = min(rows, ranks.get_local_rank() * -(-rows // ranks.size()))  # as FSDP2 divides them
        return first * (weight.numel() // rows), self._held(dtensor._local_tensor, moment).view(-1)

    @override
    def share(self, weight: Parameter, moment: str | None) -> tuple[int, Tensor]:
        start, part = self.part(weight, moment)
        mesh: Any = weight.device_mesh  # type: ignore[attr-defined]
        if mesh.ndim == 1:
            return start, part
        copies = mesh[REPLICATE]
        each = -(-len(part) // copies.size())
        first = min(len(part), copies.get_local_rank() * each)
        return start + first, part[first : first + each]


def state_of(strategy: Strategy) -> PlainState:
    """Returns the training state of a strategy that has been set up."""
    if isinstance(strategy, ModelParallelStrategy):
        return ShardedState(strategy.optimizers[0], strategy.root_device)
    if not isinstance(strategy, DeepSpeedStrategy):
        return PlainState(strategy.optimizers[0])
    zero, frozen = strategy.deepspeed_engine.optimizer, getattr(strategy, "frozen", {})
    return (Zero3State if strategy.zero_stage_3 else ZeroState)(zero, strategy.root_device, frozen)


def resume_at(trainer: Trainer, step: int) -> None:
    """Lets the trainer continue after `step` optimizer steps.

    It starts with the first micro-batch of a step, because their number may have changed.
    """
    progress = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
    progress.ready = progress.completed = step
