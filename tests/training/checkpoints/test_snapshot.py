"""The copy from which a checkpoint is written: complete, of its time, and in memory that is kept."""

import torch
from torch import nn

from gen1_train.training.checkpoints.snapshot import Snapshot
from gen1_train.training.checkpoints.state import MOMENTS, PlainState, averages_of, moments_of, weights_of


def test_it_holds_what_was_there_and_is_kept() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(4, 5)).to(memory_format=torch.channels_last)
    held = PlainState(torch.optim.AdamW(model.parameters()))
    held.create_moments(0)
    files = {"weights": weights_of(model), "moments": moments_of(model)}
    snapshot = Snapshot()
    snapshot.reserve(held, files)
    wanted = {name: weight.detach().clone() for name, (weight, _) in files["weights"].items()}
    taken = snapshot.take(held, files)
    addresses = [piece.values.data_ptr() for content in taken.values() for piece in content]
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    assert [piece.name for piece in taken["weights"]] == list(wanted)
    assert {piece.name for piece in taken["moments"]} == {f"{name}.{moment}" for name in wanted for moment in MOMENTS}
    for piece in taken["weights"]:
        assert piece.start == 0 and torch.equal(piece.values, wanted[piece.name].flatten())
    again = snapshot.take(held, files)
    assert [piece.values.data_ptr() for content in again.values() for piece in content] == addresses
    assert torch.equal(again["weights"][0].values, wanted["0.weight"].flatten() + 1)


def test_frozen_weights_are_not_copied() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    model[0].requires_grad_(False)
    held = PlainState(torch.optim.AdamW(model[1].parameters()))
    held.create_moments(0)
    held.create_average("ema_0.9")
    files = {"weights": weights_of(model), "moments": moments_of(model), "average": averages_of(model, "ema_0.9")}
    snapshot = Snapshot()
    snapshot.reserve(held, files)
    taken = snapshot.take(held, files)
    assert snapshot._buffer.numel() == 4 * 12  # the trained layer, its moments, its average
    for file in ("weights", "average"):
        values = {piece.name: piece.values for piece in taken[file]}
        assert list(values) == list(model.state_dict())
        assert all(torch.equal(values[name], weight.flatten()) for name, weight in model.state_dict().items())
        assert values["0.weight"].data_ptr() == model[0].weight.data_ptr()


def test_ranks_that_hold_everything_share_the_work(monkeypatch) -> None:
    """Each tensor is written by one of them, and none writes much more than its share."""
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(20)))
    held = PlainState(torch.optim.AdamW(model.parameters()))
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 4)
    names, sizes = [], []
    for rank in range(4):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        pieces = list(held.pieces(weights_of(model)))
        names += [name for name, _, _ in pieces]
        sizes.append(sum(tensor.numel() for _, _, tensor in pieces))
    assert names == list(weights_of(model))
    assert max(sizes) - min(sizes) <= 2 * 64
