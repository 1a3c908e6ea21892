"""What ZeRO-1 and ZeRO-2 do on the host: no wait for the device in a backward pass, and one pass for the norm."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer

from benchmarks.ranks import in_ranks
from gen1_train.training.strategies.config import ZERO_STAGES, StrategyConfig
from gen1_train.training.strategies.host import norm_of
from gen1_train.training.strategies.zero import ZeroStrategy, zero_config
from tests.training.strategies.linear import MICRO_BATCHES, Linear, begin, fit, gradients

STEPS = 2


@dataclass(eq=False)
class Stream:
    """Records which streams it waits for, in place of a device's."""

    log: list[str] = field(default_factory=list)

    def wait_stream(self, other: "Stream") -> None:
        self.log.append("waits")


def run(rank: int, world: int, stage: str, streams: bool, folder: Path) -> dict[str, Any]:
    """What each rank does: it takes steps, on a CPU that claims to have streams, or on an ordinary one."""
    from deepspeed.accelerator import get_accelerator

    begin(folder)
    accelerator, current, waits = get_accelerator(), Stream(), list[str]()
    if streams:
        kind = type(accelerator)
        kind.is_synchronized_device = lambda self: False
        kind.Stream = property(lambda self: Stream)
        kind.current_stream = lambda self, *_: current
        kind.synchronize = lambda self, *_: waits.append("synchronize")
        torch.Tensor.record_stream = lambda self, stream: None
    norms: list[tuple[float, float]] = []
    logs: list[list[str]] = []

    class Compared(ZeroStrategy):
        def setup(self, trainer: Trainer) -> None:
            super().setup(trainer)
            zero = self.deepspeed_engine.optimizer
            ours = zero.get_grad_norm_direct
            assert ours.func is norm_of

            def both(*arguments: Any) -> Any:
                norms.append((float(ours(*arguments)), float(type(zero).get_grad_norm_direct(zero, *arguments))))
                return ours(*arguments)

            zero.get_grad_norm_direct = both

        def backward(self, *arguments: Any, **keywords: Any) -> Any:
            waits.clear()
            current.log.clear()
            result = super().backward(*arguments, **keywords)
            logs.append([*current.log, *waits])
            return result

    module: Any = Linear()
    strategy = Compared(zero_config(StrategyConfig(stage), 1, gpu=streams))
    batches = torch.cat([gradients()[rank::world]] * STEPS)
    fit(module, strategy, world, batches, STEPS, MICRO_BATCHES // world, "bf16-mixed")
    return {"norms": norms, "logs": logs, "made": None if module.made is None else -module.made}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("stage", [stage for stage in ZERO_STAGES if stage != "zero3"])
def test_streams_wait_for_each_other_and_the_host_for_none(tmp_path: Path, stage: str) -> None:
    """A step on a CPU with recorded streams; its result is that of a CPU without."""
    found = in_ranks(run, 2, 2, stage, True, tmp_path, seconds=200)
    for rank in found:
        assert len(rank["logs"]) == STEPS * MICRO_BATCHES // 2
        assert not any("synchronize" in log for log in rank["logs"])
        # ZeRO-1 reduces the gradients of a step's last micro-batch only
        reduced = rank["logs"][MICRO_BATCHES // 2 - 1 :: MICRO_BATCHES // 2] if stage == "zero1" else rank["logs"]
        assert all(log and log[-1] == "waits" for log in reduced)
    exact = STEPS * gradients().double().mean(0)
    torch.testing.assert_close(found[0]["made"].double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_norm_is_deepspeeds(tmp_path: Path) -> None:
    for rank in in_ranks(run, 2, 2, "zero1", False, tmp_path, seconds=200):
        assert len(rank["norms"]) == STEPS
        for ours, deepspeeds in rank["norms"]:
            assert ours == pytest.approx(deepspeeds, rel=1e-6)
            assert ours == pytest.approx(float(gradients().mean(0).norm()), rel=1e-5)


def test_a_norm_that_is_not_finite_is_marked_as_deepspeed_marks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor, group: tensor.mul_(4))  # of four equal ranks

    class Zero:
        dp_process_group = None
        device = torch.device("cpu")

    padding = torch.full((3,), math.nan)
    padding._zero_padding = True  # type: ignore[attr-defined]
    half = torch.tensor([1.5, 2.0], dtype=torch.bfloat16)
    assert float(norm_of(Zero, [torch.zeros(2), half, padding], None)) == 5.0
    assert float(norm_of(Zero, [padding], None)) == 0.0
    for bad in (math.nan, math.inf):
        assert float(norm_of(Zero, [half, torch.tensor([bad])], None)) == -1.0
