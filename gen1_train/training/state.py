"""The training state as whole float32 tensors by name, however a strategy spreads it over however many processes.

A run's state is its weights, AdamW's two moments of each, their averages (training.ema), and a few counters
(training.counters). The rest follows from the number of steps done: the learning rate, the place in the data; and all
randomness is keyed by it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DeepSpeedStrategy, Strategy
from torch import Tensor, distributed
from torch.nn import Module, Parameter
from torch.optim import Optimizer
from typing_extensions import override

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's names of them
BUCKET = 2**24  # elements that are gathered, or exchanged, at a time, unless one tensor has more

# name of a tensor in a file -> its weight, and what that is kept of it: a moment, an average, or None: itself
Entries = dict[str, tuple[Parameter, str | None]]


def trainable(model: Module) -> dict[str, Parameter]:
    """What the optimizer holds: all weights, or those of an adapter."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def weights_of(model: Module) -> Entries:
    """What unet.safetensors holds."""
    return {name: (weight, None) for name, weight in trainable(model).items()}


def moments_of(model: Module) -> Entries:
    """What optimizer.safetensors holds."""
    return {f"{name}.{moment}": (weight, moment) for name, weight in trainable(model).items() for moment in MOMENTS}


def averages_of(model: Module, average: str) -> Entries:
    """What the file of an average holds: the names are those of the weights."""
    return {name: (weight, average) for name, weight in trainable(model).items()}


class PlainState:
    """What `single` and `ddp` hold: everything in every process, in a torch optimizer.

    Whatever is kept of a weight lies in the optimizer's state beside AdamW's moments.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def gather(self, entries: Entries, keep: bool) -> dict[str, Tensor]:
        """Copies of the whole tensors, in float32 on the CPU, where `keep` is true: in rank 0; else none.

        A collective in ZeRO.
        """
        if not keep:
            return {}
        return {name: self._held(*entry).to("cpu", torch.float32, copy=True) for name, entry in entries.items()}

    def put(self, weight: Parameter, moment: str | None, whole: Tensor) -> None:
        """Takes over what this process holds of a weight or moment; no other part of `whole` is read."""
        self._held(weight, moment).copy_(whole)

    def create_moments(self, updates: int) -> None:
        """Makes the moments, as AdamW does itself in its first step, and lets it count on from `updates`."""
        for master in self.masters():
            moments = {moment: torch.zeros_like(master, memory_format=torch.preserve_format) for moment in MOMENTS}
            self.optimizer.state[master] = {"step": torch.tensor(float(updates), device=master.device), **moments}

    def create_average(self, average: str) -> None:
        """Begins an average with the weights as they are. The moments must be there."""
        for master in self.masters():
            self.optimizer.state[master][average] = master.detach().clone()

    @torch.no_grad()
    def average(self, rates: Mapping[str, float]) -> None:
        """Moves each average towards the weights by its rate: each process what it holds, nothing is sent."""
        masters = [master.detach() for master in self.masters()]
        for average, rate in rates.items():
            torch._foreach_lerp_([self._held(master, average) for master in self.masters()], masters, rate)

    @contextmanager
    def showing(self, average: str | None) -> Iterator[None]:
        """The model computes with an average in place of its weights; they are back afterwards, to the bit.

        With None it stays as it is. A collective in ZeRO.
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
            kept = self._held(master, average)
            # dense in memory and of one layout, so their elements pair up however they are strided
            flat = [tensor.as_strided((tensor.numel(),), (1,)) for tensor in (master.detach(), kept)]
            for weights, averages in zip(*(tensor.split(BUCKET) for tensor in flat)):
                aside = weights.clone()
                weights.copy_(averages)
                averages.copy_(aside)
        self.refresh()

    def refresh(self) -> None:
        """The model computes with what the masters hold now. A collective in ZeRO."""

    def masters(self) -> list[Tensor]:
        """The tensors that the optimizer updates in this process."""
        return [master for group in self.optimizer.param_groups for master in group["params"]]

    def shape(self, weight: Parameter) -> torch.Size:
        """Of the whole weight."""
        return weight.shape

    def _held(self, master: Tensor, moment: str | None) -> Tensor:
        return (master if moment is None else self.optimizer.state[master][moment]).detach()


class ZeroState(PlainState):
    """What DeepSpeed's ZeRO 1 and 2 hold: all weights end to end in float32, of which each process has a part."""

    def __init__(self, zero: Any, device: torch.device) -> None:
        """`zero`: DeepSpeed's optimizer, which wraps torch's. `device`: where collectives run."""
        super().__init__(zero.optimizer)
        self.zero, self.device = zero, device

    @override
    def gather(self, entries: Entries, keep: bool) -> dict[str, Tensor]:
        whole: dict[str, Tensor] = {}
        for names in self._buckets(entries):
            sizes = [self.shape(entries[name][0]).numel() for name in names]
            bucket = torch.zeros(sum(sizes), dtype=torch.float32, device=self.device)
            tensors = dict(zip(names, bucket.split(sizes)))
            for name, tensor in tensors.items():
                start, part = self.part(*entries[name])
                tensor[start : start + len(part)] = part
            distributed.reduce(bucket, dst=0)  # each element stands in one process, the others add zero
            if keep:
                shapes = {name: self.shape(entries[name][0]) for name in names}
                whole |= {name: tensor.view(shapes[name]).to("cpu", copy=True) for name, tensor in tensors.items()}
        return whole

    @override
    def refresh(self) -> None:
        self.zero.update_lp_params()

    @override
    def put(self, weight: Parameter, moment: str | None, whole: Tensor) -> None:
        start, part = self.part(weight, moment)
        part.copy_(whole.flatten()[start : start + len(part)])

    def part(self, weight: Parameter, moment: str | None) -> tuple[int, Tensor]:
        """Where in a flattened weight this process's part begins, and the part of the master or moment; no copy."""
        mapping = weight._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:  # the weight lies in other processes
            return 0, torch.empty(0)
        address, master = mapping.hp_fragment_address, self.masters()[mapping.param_group_index]
        return mapping.lp_fragment_address.start, self._held(master, moment).narrow(0, address.start, address.numel)

    def _buckets(self, entries: Entries) -> Iterator[list[str]]:
        """The names, in their order, in parts of about BUCKET elements: one collective each instead of one a name."""
        names: list[str] = []
        size = 0
        for name, (weight, _) in entries.items():
            numel = self.shape(weight).numel()
            if names and size + numel > BUCKET:
                yield names
                names, size = [], 0
            names.append(name)
            size += numel
        yield names


class Zero3State(ZeroState):
    """What ZeRO 3 holds: of every weight an equal part in each process, the last one padded."""

    @override
    def part(self, weight: Parameter, moment: str | None) -> tuple[int, Tensor]:
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
        return weight.ds_shape  # type: ignore[attr-defined]  # the weight itself is empty outside of its layer


def state_of(strategy: Strategy) -> PlainState:
    """Where a strategy that has been set up holds the training state."""
    if not isinstance(strategy, DeepSpeedStrategy):
        return PlainState(strategy.optimizers[0])
    zero, device = strategy.deepspeed_engine.optimizer, strategy.root_device
    return Zero3State(zero, device) if strategy.zero_stage_3 else ZeroState(zero, device)


def go_on(trainer: Trainer, step: int) -> None:
    """Lets the trainer go on after `step` optimizer steps.

    It begins with a step's first micro-batch: there may be another number of them than before.
    """
    done = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
    done.ready = done.completed = step
