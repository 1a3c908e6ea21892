"""Means, intervals, the table and the plots of random results."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gen1_train.evaluation.methods import Setting, SweepConfig, settings_of
from gen1_train.evaluation.metrics import METRICS
from gen1_train.evaluation.plots import PLOTS, draw, draw_plots
from gen1_train.evaluation.summary import interval, markdown, summarize

SETTINGS = settings_of(SweepConfig())
FIXED = {"omega_t": 1.0, "t_s": 0}


def random_rows(settings: list[Setting], pairs: int = 8) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {"line": line, "frames": 4, "seconds": 2.0, **vars(setting), **{name: rng.uniform() for name in METRICS}}
        for line in range(pairs)
        for setting in settings
    ]


def test_the_interval_contains_the_mean_and_shrinks_with_more_pairs() -> None:
    values = np.random.default_rng(0).normal(0.3, 0.1, 400).tolist()
    few, many = interval(values[:25], 0), interval(values, 0)
    assert few is not None and many is not None
    assert few[0] < np.mean(values[:25]) < few[1] and many[0] < np.mean(values) < many[1]
    # the interval of a normal distribution is 1.96 sigma / sqrt(n) on each side
    assert many[1] - many[0] == pytest.approx(2 * 1.96 * np.std(values) / 20, rel=0.1)
    assert few == interval(values[:25], 0) != interval(values[:25], 1)


def test_intervals_of_one_pair_and_of_equal_pairs() -> None:
    assert interval([0.3], 0) is None and interval([0.25] * 5, 0) == (0.25, 0.25)


def test_pairs_without_a_value_are_left_out_and_counted() -> None:
    rows = random_rows(SETTINGS[:2], 4)
    rows[0]["warp_error"] = None
    first, second = summarize(rows, SETTINGS[:2], 0)
    assert first["metrics"]["warp_error"]["pairs"] == 3 and second["metrics"]["warp_error"]["pairs"] == 4
    expected = np.mean([row["warp_error"] for row in rows[2::2]])
    assert first["metrics"]["warp_error"]["mean"] == pytest.approx(expected, abs=1e-6)
    assert first["seconds_per_frame"] == 0.5
    for row in rows:
        row["warp_error"] = None
    (without,) = summarize(rows, SETTINGS[:1], 0)
    assert without["metrics"]["warp_error"] == {"mean": None, "interval": None, "pairs": 0}


def test_the_table_has_a_line_for_each_setting() -> None:
    lines = markdown(summarize(random_rows(SETTINGS), SETTINGS, 0)).splitlines()
    assert len(lines) == len(SETTINGS) + 2 and len({len(line) for line in lines}) == 1
    assert [line.split("|")[1].strip() for line in lines[2:]] == [setting.method for setting in SETTINGS]


def test_each_curve_sweeps_its_dial() -> None:
    """Points are in the order of the dial and labeled with its values; the other dial of Gen-1 is fixed."""
    summary = summarize(random_rows(settings_of(SweepConfig(grid=True))), settings_of(SweepConfig(grid=True)), 0)
    labels = {}
    for plot in PLOTS:
        (axes,) = draw(plot, summary, FIXED).axes
        labels[plot.name] = [text.get_text() for text in axes.texts]
        for line in axes.lines:
            assert len(line.get_xdata()) in (1, 3, 4)
    assert labels["frame_consistency"] == ["0.5", "1", "1.5", "0", "2", "4", "7", "0.4", "0.6", "0.8"]
    assert labels["structure"] == ["0", "2", "4", "7", "0", "2", "4", "7", "0.4", "0.6", "0.8"]


@pytest.mark.slow
def test_plots_are_reproducible_and_can_be_opened(tmp_path: Path) -> None:
    summary = summarize(random_rows(SETTINGS), SETTINGS, 0)
    for folder in ("a", "b"):
        draw_plots(summary, FIXED, tmp_path / folder)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(f"{plot.name}.{suffix}" for plot in PLOTS for suffix in ("png", "svg"))
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert Image.open(tmp_path / "a" / "structure.png").size[0] > 1000


def test_one_pair_of_one_frame_can_be_drawn(tmp_path: Path) -> None:
    """There are no intervals, and metrics over time are undefined."""
    rows = random_rows(SETTINGS, 1)
    for row in rows:
        row["frame_consistency"] = row["warp_error"] = None
    draw_plots(summarize(rows, SETTINGS, 0), FIXED, tmp_path)
    assert (tmp_path / "flicker.svg").stat().st_size > 1000
