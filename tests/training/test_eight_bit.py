"""AdamW with moments of 8 bits: close to AdamW, exact through checkpoints, and as small as planned."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gen1_train.errors import UserError
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.checkpoints.checkpoint import checkpoints_dir, latest
from gen1_train.training.checkpoints.state import MOMENTS, PlainState
from gen1_train.training.network import ADAMW8BIT, OptimConfig, build_adamw
from gen1_train.training.planning.memory import Layout, Planner
from gen1_train.training.run import train
from tests.training.strategies.table import TINY, Cell, config, folder, make_start


def trained(name: str, steps: int = 30) -> tuple[nn.Linear, torch.optim.Optimizer, float]:
    """Fits a linear layer; some of its gradients are never positive."""
    torch.manual_seed(0)
    layer, wanted = nn.Linear(64, 64), torch.randn(64, 64)
    optimizer = build_adamw(OptimConfig(name=name, lr=1e-2), [{"params": list(layer.parameters())}])
    losses = []
    for _ in range(steps):
        x = torch.rand(32, 64)
        loss = (layer(x) - x @ wanted.T.abs()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return layer, optimizer, losses[-1]


def test_it_learns_as_adamw_does() -> None:
    (exact, _, wanted), (layer, _, loss) = trained("adamw"), trained(ADAMW8BIT)
    assert loss == pytest.approx(wanted, rel=0.02)
    torch.manual_seed(0)
    start = nn.Linear(64, 64)
    moves, others = ((made.weight - start.weight).flatten() for made in (exact, layer))
    assert torch.cosine_similarity(moves, others, dim=0) > 0.99


def test_moments_are_exact_after_a_checkpoint() -> None:
    layer, optimizer, _ = trained(ADAMW8BIT)
    held = PlainState(optimizer)
    for moment in MOMENTS:
        before = optimizer.state[layer.weight][moment]
        assert is_traceable_wrapper_subclass(before) and not is_traceable_wrapper_subclass(
            optimizer.state[layer.bias][moment]
        )
        largest = before.dequantize().view(-1, 256)
        assert moment != "exp_avg" or (largest.min(1).values.abs() > largest.max(1).values).any()  # a negative extreme
        saved = held.gather({"weight": (layer.weight, moment)}, keep=True)["weight"]
        assert saved.dtype == torch.float32 and saved.any()
        codes, scale = before.codes.clone(), before.scale.clone()
        optimizer.state[layer.weight][moment] = held.new_moments(layer.weight)[moment]
        held.put(layer.weight, moment, saved)
        after = optimizer.state[layer.weight][moment]
        assert torch.equal(after.codes, codes) and torch.equal(after.scale, scale)


def test_the_plan_counts_its_bytes() -> None:
    layout = Layout("single", "32-true", 1)
    eight, full = (Planner(TINY, replace(layout, eight_bit=eight_bit)).resident() for eight_bit in (True, False))
    assert {**eight, "moments": 0} == {**full, "moments": 0}
    unet = SpatioTemporalUNet(TINY)
    held = PlainState(build_adamw(OptimConfig(name=ADAMW8BIT), [{"params": list(unet.parameters())}]))
    held.create_moments(0)
    taken = 0
    for state in held.optimizer.state.values():
        for moment in MOMENTS:
            tensor = state[moment]
            parts = (tensor.codes, tensor.scale) if is_traceable_wrapper_subclass(tensor) else (tensor,)
            taken += sum(part.numel() * part.element_size() for part in parts)
    assert eight["moments"] == taken < full["moments"]
    large = Planner(UNetConfig(in_channels=12), replace(layout, eight_bit=True))  # where few weights are small
    assert large.resident()["moments"] < 0.26 * 8 * large.weights


@pytest.mark.slow
def test_resumed_equals_straight_to_the_bit_and_a_run_may_leave_it(tmp_path: Path) -> None:
    make_start(tmp_path)
    straight = config(tmp_path, Cell("single"))
    straight.optim.name = ADAMW8BIT
    train(straight)
    for name in ("resumed", "left"):
        first = checkpoints_dir(folder(tmp_path, straight.name)) / "step-00000001"
        shutil.copytree(first, checkpoints_dir(folder(tmp_path, name)) / first.name)
        again = replace(straight, name=name)
        again.optim = replace(straight.optim, name=ADAMW8BIT if name == "resumed" else "adamw")
        train(again)
    wanted, made, left = (latest(folder(tmp_path, name)) for name in (straight.name, "resumed", "left"))
    assert wanted is not None and made is not None and left is not None and left.info.finished
    for file in wanted.info.files:
        if file.endswith(".safetensors"):
            other = load_file(made.path / file)
            assert all(torch.equal(tensor, other[name]) for name, tensor in load_file(wanted.path / file).items())


def test_other_strategies_and_a_missing_library_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = config(tmp_path, Cell("zero2"))
    made.optim.name = ADAMW8BIT
    with pytest.raises(UserError, match=r"take strategy=single or ddp, not strategy=zero2$"):
        made.check()
    made.optim.name = "adam8"
    with pytest.raises(UserError, match=r"optim\.name=adam8 is not one of adamw, adamw8bit"):
        made.check()
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    monkeypatch.delitem(sys.modules, "gen1_train.training.eight_bit", raising=False)
    with pytest.raises(UserError, match=r"needs torchao: pip install"):
        build_adamw(OptimConfig(name=ADAMW8BIT), [])
