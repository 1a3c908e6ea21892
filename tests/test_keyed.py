"""Keyed randomness, on which all reproducibility depends."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from gen1_train.keyed import generator, integer, key, normal, permutation, uniform, uniforms


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_a_permutation_is_a_bijection_for_every_key(size: int) -> None:
    for seed in (0, 1, 2**40):
        assert sorted(map(permutation(size, seed, "sample", "video-448x256", 3), range(size))) == list(range(size))


def test_permutations_depend_on_every_part_of_their_key() -> None:
    keys = [(0, "pool", 0), (1, "pool", 0), (0, "loop", 0), (0, "pool", 1)]
    orders = {tuple(map(permutation(64, *parts), range(64))) for parts in keys}
    assert len(orders) == len(keys) and tuple(range(64)) not in orders


def test_a_permutation_maps_a_position_anywhere() -> None:
    """A network with too few rounds, or one that ignores a half, would never reach some positions."""
    counts = torch.zeros(7)
    for seed in range(1400):
        counts[permutation(7, seed)(3)] += 1
    assert counts.min() > 140 and counts.max() < 260  # 200 expected; standard deviation 13


@pytest.mark.parametrize("index", [-1, 7])
def test_a_permutation_refuses_an_index_out_of_range(index: int) -> None:
    with pytest.raises(IndexError):
        permutation(7, 0)(index)


def test_keys_distinguish_types_and_boundaries_of_parts() -> None:
    keys = [key(1), key("1"), key(1, 2), key(12), key("1", "2"), key("12"), key("a", "bc"), key("ab", "c"), key()]
    assert len(set(keys)) == len(keys)
    assert all(0 <= k < 2**63 for k in keys)  # torch accepts no larger seed


def test_the_streams_never_change() -> None:
    """Golden values on purpose: they define the meaning of every seed in every existing config.

    Another hash or network would pass all other tests, and would silently give other batches and other noise to a run
    that is resumed after an update. A change of these numbers is a change of the stream and has to be announced.
    """
    assert key(0, "sample", "video-448x256", 3) == 1344311899318608002
    assert key(0) == 6711488920161924273
    assert list(map(permutation(10, 7, "sample", "p", 0), range(10))) == [2, 8, 4, 5, 7, 3, 6, 0, 9, 1]
    assert integer(1000, 1, "a") == 295
    assert uniform(1, "a") == pytest.approx(0.32195581937403606, abs=0)
    assert uniforms(5, 2, 1, "a").tolist() == pytest.approx([0.9859177871028355, 0.09222366776903336], abs=0)
    torch.testing.assert_close(normal((3,), 0, 5, 2, "noise"), torch.tensor([0.7601661, 0.5047637, 1.1842294]))


def test_key_is_the_same_in_another_process() -> None:
    """Python's own hash() is salted and would differ."""
    code = """
import sys
from types import ModuleType

sys.modules["torch"] = torch = ModuleType("torch")  # key() does not need it, and it takes seconds to import
torch.Tensor = torch.Generator = object
from gen1_train.keyed import key

print(key(5, "noise"))
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) == key(5, "noise")


def test_normal_does_not_depend_on_earlier_draws() -> None:
    first = normal((2, 3), 0, "a")
    torch.manual_seed(9)
    torch.randn(5)
    normal((4,), 0, "b")
    state = torch.get_rng_state()
    assert torch.equal(normal((2, 3), 0, "a"), first)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is untouched
    assert not torch.equal(normal((2, 3), 0, "b"), first)
    assert torch.equal(torch.randn((2, 3), generator=generator(0, "a")), first)


def test_draws_follow_their_distributions() -> None:
    uniforms = torch.tensor([uniform(0, i) for i in range(4000)])
    assert 0 <= uniforms.min() and uniforms.max() < 1
    assert abs(uniforms.mean() - 0.5) < 0.02 and abs(uniforms.var() - 1 / 12) < 0.005
    counts = torch.bincount(torch.tensor([integer(8, 0, i) for i in range(4000)]), minlength=8)
    assert len(counts) == 8 and counts.min() > 400
    noise = normal((4000,), 1)
    assert noise.dtype == torch.float32 and abs(noise.mean()) < 0.06 and abs(noise.std() - 1) < 0.05


def test_a_stream_of_uniforms_is_uniform_and_can_be_entered_anywhere() -> None:
    stream = uniforms(0, 40_000, 3, "kind")
    assert 0 <= stream.min() and stream.max() < 1
    assert abs(stream.mean() - 0.5) < 0.01 and abs(stream.var() - 1 / 12) < 0.002
    assert abs(np.corrcoef(stream[1:], stream[:-1])[0, 1]) < 0.02  # neighboring numbers are uncorrelated
    assert (uniforms(39_990, 10, 3, "kind") == stream[-10:]).all()
    assert (uniforms(0, 10, 4, "kind") != stream[:10]).all()
