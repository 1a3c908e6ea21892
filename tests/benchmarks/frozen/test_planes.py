"""The benchmark of packed planes measures what it says: nothing is lost by an autoencoder that loses nothing."""

import pytest
import torch
from torch import Tensor

from benchmarks.frozen.planes import cost_of, unexplained
from gen1_train.frozen.autoencoder import as_pictures


class Exact:
    """Its latents are the pictures; what it decodes is `scale` times them, in [-1, 1]."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def encode_structure(self, structure: Tensor, several: bool = False) -> Tensor:
        return as_pictures(structure, several)

    def decode(self, latents: Tensor) -> Tensor:
        return 2 * self.scale * latents - 1


@pytest.mark.parametrize("packed", ["depth", "depth+edges"])
def test_only_what_cannot_be_read_back_is_unexplained(packed: str) -> None:
    generator = torch.Generator().manual_seed(0)
    planes = {kind: torch.rand(2, 16, 24, generator=generator) for kind in ("depth", "edges")}
    empty = {**planes, "depth": torch.zeros(2, 16, 24)}
    for scale, loses in ((1.0, False), (0.5, True)):
        rows = list(cost_of(packed, "made", 0, [planes, empty], Exact(scale)))  # type: ignore[arg-type]
        assert [row["plane"] for row in rows] == packed.split("+")
        assert {row["clips"] for row in rows} == {1} and {row["unexplained_percent"] for row in rows} == {0}
        assert all((row["rms_percent"] > 20) == loses for row in rows)


def test_noise_is_unexplained() -> None:
    generator = torch.Generator().manual_seed(0)
    picture, wanted = torch.rand(999, 3, generator=generator).double(), torch.rand(999, generator=generator).double()
    assert unexplained(picture, wanted) == pytest.approx(float(wanted.var()), rel=0.05)
    assert unexplained(picture, picture @ torch.tensor([1.0, -2.0, 0.5]).double() + 3) == pytest.approx(0, abs=1e-12)
