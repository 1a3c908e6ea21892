"""The page about a run is small for any run, works with missing columns, and its paths are the data."""

import re
from datetime import UTC, datetime
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from gen1_train.errors import UserError
from gen1_train.reporting import page as page_module
from gen1_train.reporting.axes import Scale
from gen1_train.reporting.chart import Timeline, areas, chart, lines
from gen1_train.reporting.curves import MOST_POINTS
from gen1_train.reporting.page import write_report
from gen1_train.reporting.panels import PRIOR, SECTIONS, Panel
from gen1_train.reporting.run_log import read_stage
from tests.pages import Page
from tests.reporting.made_runs import CONFIG, long_columns, write_run

STEPS = np.arange(10, 25_001, 10)
LINEAR = Scale(0.0, 1.0, log=False)
# those of a run of a numbered stage
PANELS = [
    panel
    for section in SECTIONS
    if section is not PRIOR
    for panel in section.panels
    if not panel.about.startswith("Customization")
]


def report(run: Path, output: Path | None = None) -> Page:
    return Page(write_report(run, output or run / "report.html", datetime(2030, 1, 1, tzinfo=UTC)))


def titles(page: Page) -> list[str]:
    return [unescape(title) for title in re.findall(r'<figure class="chart"><figcaption><b>([^<]*)', page.raw)]


def path_points(markup: str) -> list[tuple[float, float]]:
    """Returns the points of a path as the page's script reads them."""
    (data,) = re.findall(r' d="([^"]*)"', markup)
    numbers = [float(word) for word in re.split(r"[M\s]+", re.sub(r"V0H[\d.]+Z|h0", " ", data)) if word]
    return list(zip(numbers[::2], numbers[1::2]))


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    columns = long_columns(STEPS)
    columns["loss"][1234] = 7.5  # one row of 2500
    return write_run(tmp_path_factory.mktemp("runs") / "gen1" / "stage4", columns, STEPS, checkpoint=(25_000, True))


@pytest.fixture(scope="module")
def long_page(long_run: Path) -> Page:
    return report(long_run)


def test_all_panels_are_drawn_in_order(long_page: Page) -> None:
    assert titles(long_page) == [panel.title for panel in PANELS]


def test_the_header_shows_the_state_of_the_run(long_page: Page) -> None:
    assert "gen1 · stage 4" in long_page.text and "25,000 of 25,000step" in long_page.text
    assert "finishedstate" in long_page.text and "25,000last checkpoint" in long_page.text
    assert "2 optimizer steps skipped" in long_page.text and "mostly rank 17" in long_page.text
    assert "predecessor: '3'" in long_page.text  # config.yaml


def test_a_long_run_makes_a_small_page_with_few_points(long_page: Page) -> None:
    assert len(long_page.raw) < 1_000_000
    paths = re.findall(r"<path [^>]*/>", long_page.raw)
    counts = [len(path_points(path)) for path in paths if "data-column" in path]
    assert len(counts) > 60 and max(counts) <= MOST_POINTS and sum(count > MOST_POINTS / 2 for count in counts) > 20


def test_the_spike_is_in_the_page(long_page: Page) -> None:
    figure = re.findall(r'<figure class="chart"><figcaption><b>Training loss</b>.*?</figure>', long_page.raw)[0]
    raw = path_points(re.findall(r'<path [^>]*class="raw"[^>]*data-column="0"[^>]*/>', figure)[0])
    assert (12_350, round(np.log10(7.5), 5)) in raw


def test_the_page_loads_nothing_and_runs_only_its_script(long_page: Page) -> None:
    assert "http" not in long_page.raw.replace("http-equiv", "")
    assert long_page.count("script") == 1 and long_page.count("link") == 0 and long_page.count("img") == 0
    (policy,) = [of["content"] for name, of in long_page.elements if name == "meta" and "http-equiv" in of]
    assert policy and "default-src 'none'" in policy and "script-src 'sha256-" in policy and "unsafe-eval" not in policy


def test_the_points_of_a_line_are_the_rows(tmp_path: Path) -> None:
    values = np.array([0.5, 0.25, 0.75, 0.125])
    log = read_stage(write_run(tmp_path / "stage4", {"lr": values}, np.arange(100, 500, 100)))
    (drawn,) = lines(0, Timeline([log]).parts("lr"), "line", LINEAR)
    assert path_points(drawn) == [(100, 0.5), (200, 0.25), (300, 0.75), (400, 0.125)]


def test_stages_are_drawn_one_after_another(tmp_path: Path) -> None:
    steps = np.array([50, 100])
    logs = [read_stage(write_run(tmp_path / f"stage{i}", {"lr": np.full(2, i / 10)}, steps)) for i in (2, 3)]
    timeline = Timeline(logs)
    assert timeline.starts == [0, 100, 200]
    (drawn,) = lines(0, timeline.parts("lr"), "line", LINEAR)
    assert path_points(drawn) == [(50, 0.2), (100, 0.2), (150, 0.3), (200, 0.3)]
    assert drawn.count("M") == 2  # not joined


def test_areas_are_stacked(tmp_path: Path) -> None:
    """The script subtracts from each outline the one below, and thereby shows the shares."""
    columns = {"a": np.array([0.25, 0.5]), "b": np.array([0.5, np.nan]), "c": np.array([0.25, 0.5])}
    log = read_stage(write_run(tmp_path / "stage4", columns, np.array([10, 20])))
    drawn = areas(["a", "b", "c"], Timeline([log]))
    assert [path_points(path) for path in reversed(drawn)] == [
        [(10, 0.25), (20, 0.5)],
        [(10, 0.75), (20, 0.5)],
        [(10, 1.0), (20, 1.0)],
    ]
    assert [re.findall(r'data-column="(\d)"', path) for path in drawn] == [
        ["2"],
        ["1"],
        ["0"],
    ]  # the sum is at the bottom


def test_values_that_are_not_finite_are_marked_and_reported(tmp_path: Path) -> None:
    values = np.array([0.5, np.inf, -np.inf, 0.25])
    run = write_run(tmp_path / "stage4", {"loss": values, "mfu": np.full(4, np.inf)}, np.arange(1, 5))
    page = report(run)
    assert page.count("path", "lost") == 1 and "loss is not finite in 2 rows, first at step 2" in page.text
    assert titles(page) == ["Training loss"] and "mfu is not finite" in page.text


def test_a_run_with_one_row_has_a_page(tmp_path: Path) -> None:
    page = report(write_run(tmp_path / "stage2", {"loss": np.ones(1), "mfu": np.zeros(1)}, np.array([0])))
    assert titles(page) == ["Training loss", "MFU"]


def test_a_column_without_a_panel_is_drawn_last(tmp_path: Path) -> None:
    page = report(write_run(tmp_path / "stage2", {"new_thing": np.ones(3), "loss": np.ones(3)}, np.arange(3)))
    assert titles(page) == ["Training loss", "new_thing"] and "Other columns" in page.text


def test_a_tree_is_one_page(tmp_path: Path) -> None:
    for stage, levels in (("4", 0), ("5", 8)):
        config = {"name": "my run", "stage": {"name": stage, "steps": 9000}}
        columns = long_columns(STEPS[:900], levels=levels)
        write_run(tmp_path / f"stage{stage}", columns, STEPS[:900], config, (9000, True))
    page = report(tmp_path)
    assert page.row("stage 4")[:3] == page.row("stage 5")[:3] == ["finished", "9,000 of 9,000", "9,000"]
    assert titles(page) == [panel.title for panel in PANELS] and "my run" in page.text
    assert page.count("line", "stage") == 2 * len(PANELS) and 'data-stages="0:4 9000:5"' in page.raw
    assert len(page.raw) < 1_200_000


def test_names_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    config = {**CONFIG, "name": evil, "note": evil}
    page = report(write_run(tmp_path / "stage4", {evil: np.ones(3), "loss": np.ones(3)}, np.arange(3), config))
    assert page.count("script") == 1 and page.text.count(evil) >= 4


def test_videos_are_relative_links_from_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "my run" / "stage4", {"loss": np.ones(3)}, np.arange(3))
    folder = run / "samples" / "step-00000100"
    folder.mkdir(parents=True)
    (folder / "clip #1.mp4").touch()
    inside = report(run)
    outside = report(run, tmp_path / "page.html")
    for page, link in ((inside, "samples/step-00000100/clip%20%231.mp4"), (outside, "my%20run/stage4/samples/")):
        (source,) = [of["src"] for name, of in page.elements if name == "video"]
        assert source and source.startswith(link)
    assert "stage 4, step 100" in inside.text


def test_a_page_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    run = write_run(tmp_path / "stage4", {"loss": np.ones(3)}, np.arange(3))
    with pytest.raises(UserError, match=r"nothing.page\.html cannot be written .* output="):
        report(run, tmp_path / "nothing" / "page.html")


def test_a_panel_without_values_is_not_drawn(tmp_path: Path) -> None:
    log = read_stage(write_run(tmp_path / "stage4", {"loss": np.ones(3)}, np.arange(3)))
    assert chart(Panel("Other", ("nothing",), "", "About."), Timeline([log])) is None


def test_the_page_never_replaces_a_file_of_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "stage2", {"loss": np.ones(3)}, np.arange(3))
    before = (run / "metrics.csv").read_bytes()
    with pytest.raises(UserError, match=r"metrics.csv must end with .html"):
        page_module.report(page_module.RunReportConfig(str(run), output=str(run / "metrics.csv"), overwrite=True))
    assert (run / "metrics.csv").read_bytes() == before
