import numpy as np
import pytest

from gen1_train.reporting.curves import MOST_POINTS, evenly, means, smooth, thin

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("count", [1, 2, 3, 799, 800])
def test_short_lines_are_kept_completely(count: int) -> None:
    assert thin(np.zeros(count)).tolist() == list(range(count))


@pytest.mark.parametrize("count", [801, 802, 1201, 2500, 75_000])
def test_long_lines_have_few_points_in_order(count: int) -> None:
    kept = thin(RNG.normal(size=count))
    assert MOST_POINTS / 2 < len(kept) <= MOST_POINTS
    assert (np.diff(kept) > 0).all() and kept[0] == 0 and kept[-1] == count - 1


@pytest.mark.slow
@pytest.mark.parametrize("sign", [1, -1])
def test_a_spike_is_kept_at_every_position(sign: int) -> None:
    noise = RNG.normal(size=2000)
    for position in range(len(noise)):
        values = noise.copy()
        values[position] = sign * 50.0
        assert position in thin(values), position


def test_distant_spikes_are_all_kept() -> None:
    values = np.zeros(50_000)
    values[[100, 200, 49_000]] = [3, -3, 2]
    assert {100, 200, 49_000} <= set(thin(values).tolist())


@pytest.mark.parametrize("most", [2, 3, 10, 300])
def test_evenly_keeps_both_ends(most: int) -> None:
    kept = evenly(1000, most)
    assert len(kept) == most and kept[0] == 0 and kept[-1] == 999 and (np.diff(kept) > 0).all()
    assert evenly(1, most).tolist() == [0]


def test_smoothing_keeps_values_without_noise() -> None:
    np.testing.assert_allclose(smooth(np.full(500, 3.0)), 3.0)
    line = np.arange(500) * 0.5
    np.testing.assert_allclose(smooth(line)[50:-50], line[50:-50])  # centered, so it does not lag


def test_smoothing_reduces_noise() -> None:
    noise = RNG.normal(size=5000)
    assert smooth(noise).std() < 0.12 * noise.std()


def test_means_of_intervals() -> None:
    table = np.arange(24.0).reshape(12, 2)
    np.testing.assert_array_equal(means(table, 3), table.reshape(3, 4, 2).mean(1))
    np.testing.assert_array_equal(means(table, 100), table)
    np.testing.assert_allclose(means(table, 5).sum(1).min(), table[:2].mean(0).sum())
