"""The loop of the fits: one that was killed continues to the same result."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from miniature.fit import loop
from miniature.fit.loop import Fit


def fitted(state: Path | None, steps: int = 6, killed_after: int | None = None) -> list[Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    taken = 0

    def loss_of(generator: torch.Generator) -> Tensor:
        nonlocal taken
        if taken == killed_after:
            raise KeyboardInterrupt
        taken += 1
        return model(torch.randn(4, 3, generator=generator)).square().mean()

    Fit("some", steps, 1e-2, state).minimize(model, loss_of)
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_a_fit_that_was_killed_continues_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", 2)
    state = tmp_path / "some.pt"
    with pytest.raises(KeyboardInterrupt):
        fitted(state, killed_after=5)
    assert torch.load(state, weights_only=True)["step"] == 4
    straight = fitted(None)
    for _ in range(2):  # a finished fit takes no more steps
        assert all(map(torch.equal, fitted(state), straight))
    assert not all(map(torch.equal, fitted(state, steps=8), straight))
