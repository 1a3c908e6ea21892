import numpy as np
import pytest

from gen1_train.reporting.axes import label, round_numbers, scale_for


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "values",
    [[0.05, 0.4], [0.114, 0.121], [1e-5, 3e-5], [1.0, 9000.0], [1e-8, 1e8], [5.0], [1000.001, 1000.002]],
)
def test_all_values_are_inside_the_axis_and_there_are_ticks(values: list[float], log: bool) -> None:
    scale = scale_for(np.array(values), log)
    positions = scale.to_axis(np.array(values))
    assert (
        scale.log == log and scale.low <= positions.min() and positions.max() <= scale.high and scale.low < scale.high
    )
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 8 and all(scale.low <= position <= scale.high for position, _ in ticks)
    assert len({text for _, text in ticks}) == len(ticks)


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [-1.0, 2.0], [0.0, 3.0]])
def test_an_axis_with_zero_or_less_is_linear(values: list[float]) -> None:
    scale = scale_for(np.array(values), log=True)
    assert not scale.log and scale.low <= min(values) and max(values) < scale.high and scale.low <= 0
    assert 0.0 in [position for position, _ in scale.ticks()]


def test_a_linear_axis_starts_at_zero() -> None:
    assert scale_for(np.array([200.0, 230.0]), log=False).low == 0


def test_ticks_are_round() -> None:
    assert round_numbers(0, 25_000, 5) == [0, 5000, 10_000, 15_000, 20_000, 25_000]
    assert round_numbers(0, 1, 4) == pytest.approx([0, 0.5, 1])
    assert [shown for _, shown in scale_for(np.array([0.01, 100.0]), log=True).ticks()] == [
        "0.01",
        "0.1",
        "1",
        "10",
        "100",
    ]


def test_labels_are_short() -> None:
    shown = [label(value) for value in (0.0, 0.15, 0.001, 5e-4, 1.234e-12, 5000.0, 12_000.0, 2.5e6, -3.0, 1e12)]
    assert shown == ["0", "0.15", "0.001", "5e-4", "1.234e-12", "5000", "12k", "2.5M", "-3", "1000G"]
