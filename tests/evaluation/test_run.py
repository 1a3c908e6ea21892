"""Runs by a fake editor: resumed equals straight, several processes equal one, a changed evaluation is refused."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gen1_train.errors import UserError
from gen1_train.evaluation.inputs import check_inputs, read_frames
from gen1_train.evaluation.methods import Editing, SweepConfig, settings_of
from gen1_train.evaluation.metrics import warp_error
from gen1_train.evaluation.pairs import Pair, read_pairs
from gen1_train.evaluation.report import write_report
from gen1_train.evaluation.results import Unit, begin, missing, read_results, share, units_of
from gen1_train.evaluation.run import Evaluator, run
from tests.evaluation.fake import FakeEditor, load, made_pairs, write_pairs
from tests.pages import Page

SWEEP = SweepConfig(omega_t=[0.5, 1.0], t_s=[0, 4], init_strength=[0.5], steps=1)
SETTINGS = settings_of(SWEEP)
PLAN: dict[str, Any] = {
    "checkpoint": {"sha256": "0", "weights": "ema", "stage": "5", "step": 10},
    "prior": None,
    "settings": {"steps": 1, "keep_videos": False},
    "pairs": [],
}


def evaluate(todo: Sequence[Unit], output: Path, workers: int = 1, keep_videos: bool = False) -> None:
    run(todo, load, partial(Evaluator, sweep=SWEEP, output=output, keep_videos=keep_videos), workers)


def rows(output: Path, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """All results in their order, without the times."""
    found = read_results(output, units_of(pairs, SETTINGS))
    assert all(row.pop("seconds") >= 0 for row in found)
    return found


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    return made_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, pairs: list[Pair]) -> Path:
    output = tmp_path_factory.mktemp("straight")
    evaluate(units_of(pairs, SETTINGS), output)
    return output


class Stopping(FakeEditor):
    """Is killed in the midst of its fifth edit."""

    def __init__(self) -> None:
        super().__init__()
        self.edits = 0

    def __call__(self, frames: np.ndarray, **dials: Any) -> np.ndarray:
        self.edits += 1
        if self.edits == 5:
            raise KeyboardInterrupt
        return super().__call__(frames, **dials)


def load_stopping(rank: int) -> Editing:
    return Stopping()


def test_resumed_equals_straight(tmp_path: Path, pairs: list[Pair], straight: Path) -> None:
    units = units_of(pairs, SETTINGS)
    make = partial(Evaluator, sweep=SWEEP, output=tmp_path, keep_videos=False)
    with pytest.raises(KeyboardInterrupt):
        run(units, load_stopping, make, 1)
    left = missing(tmp_path, units)
    assert left == units[5:]  # the input and four edits are there
    kept = [unit.file(tmp_path, "results", ".json") for unit in units[:5]]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in kept]
    evaluate(left, tmp_path)
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in kept] == before  # each is written once
    assert rows(tmp_path, pairs) == rows(straight, pairs)


def test_shares_of_several_processes_equal_one(tmp_path: Path, pairs: list[Pair], straight: Path) -> None:
    units = units_of(pairs, SETTINGS)
    shares = [share(units, task, 4) for task in range(4)]
    assert [unit for part in shares for unit in part] == units
    assert {len(part) for part in shares} <= {
        len(units) // 4,
        len(units) // 4 + 1,
    }
    for part in reversed(shares):
        evaluate(part, tmp_path)
    assert rows(tmp_path, pairs) == rows(straight, pairs)


@pytest.mark.slow
def test_two_workers_equal_one(tmp_path: Path, pairs: list[Pair], straight: Path) -> None:
    evaluate(units_of(pairs, SETTINGS), tmp_path, workers=2)
    assert rows(tmp_path, pairs) == rows(straight, pairs)
    for output in (tmp_path, straight):
        write_report(output, PLAN, pairs, SETTINGS, SWEEP)
    for name in ("table.md", "summary.json"):  # but for the times
        assert timeless(tmp_path / name) == timeless(straight / name)


def timeless(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    return [line.rsplit("|", 2)[0] if path.suffix == ".md" else line for line in lines if "seconds" not in line]


def test_the_input_as_output_keeps_its_structure_and_flickers_as_it_does(pairs: list[Pair], straight: Path) -> None:
    found = [row for row in rows(straight, pairs) if row["method"] == "input"]
    assert len(found) == len(pairs)
    for row, pair in zip(found, pairs):
        frames, fps = read_frames(pair, FakeEditor().buckets)
        assert (row["structure_correlation"], row["structure_error"]) == (1, 0) and fps == 8
        assert row["warp_error"] == warp_error(frames, frames) and row["warp_error"] < 0.05


def test_the_dials_show_in_the_numbers(pairs: list[Pair], straight: Path) -> None:
    """The fake editor flickers less with more omega_t, and keeps less structure with more t_s."""
    found = {(row["line"], row["method"], row["omega_t"], row["t_s"]): row for row in rows(straight, pairs)}
    for line in (2, 3, 4):
        assert found[line, "gen1", 1.0, 0]["warp_error"] < found[line, "gen1", 0.5, 0]["warp_error"]
        assert (
            found[line, "per_frame", None, 4]["structure_error"] > found[line, "per_frame", None, 0]["structure_error"]
        )


def test_a_report_without_all_results_is_refused(tmp_path: Path, pairs: list[Pair]) -> None:
    evaluate(units_of(pairs[:1], SETTINGS), tmp_path)
    with pytest.raises(UserError, match=r"14 of 21 results are not there yet, input of line 3 the first"):
        write_report(tmp_path, PLAN, pairs, SETTINGS, SWEEP)
    broken = Unit(pairs[0], SETTINGS[0]).file(tmp_path, "results", ".json")
    broken.write_text("{}")
    with pytest.raises(UserError, match="remove it and call gen1-eval again"):
        write_report(tmp_path, PLAN, pairs[:1], SETTINGS, SWEEP)


def test_another_evaluation_is_refused(tmp_path: Path, pairs: list[Pair]) -> None:
    begin(tmp_path, {**PLAN, "prior": "1"})
    begin(tmp_path, PLAN)  # as long as there is no result, nothing is lost
    evaluate([Unit(pairs[0], SETTINGS[0])], tmp_path)
    begin(tmp_path, json.loads(json.dumps(PLAN)))
    for key, value, said in (
        ("checkpoint", {**PLAN["checkpoint"], "sha256": "1"}, "checkpoint= has changed"),
        ("prior", "1", "prior= has changed"),
        ("settings", {**PLAN["settings"], "steps": 2}, "steps= has changed"),
        ("pairs", [{"line": 2}], "data= or a file that it names has changed"),
    ):
        with pytest.raises(UserError, match=said) as error:
            begin(tmp_path, {**PLAN, key: value})
        assert "give another output=" in str(error.value) and "\n" not in str(error.value)


def test_kept_videos_are_on_the_page(tmp_path: Path, pairs: list[Pair]) -> None:
    plan = {**PLAN, "settings": {"keep_videos": True}}
    evaluate(units_of(pairs[:2], SETTINGS), tmp_path, keep_videos=True)
    write_report(tmp_path, plan, pairs[:2], SETTINGS, SWEEP)
    page = Page(tmp_path / "index.html")
    sources = [str(attributes["src"]) for tag, attributes in page.elements if tag == "video"]
    assert len(sources) == 2 * len(SETTINGS) == page.count("img") - 3
    assert all((tmp_path / source).stat().st_size > 0 for source in sources)
    assert pairs[1].prompt in page.text


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"image": "absent.png"}, "line 2 of data=: the image"),
        ({"image": "0.mp4"}, "line 2 of data=: the image"),
        ({"start": 9}, "line 2 of data=: the video"),
        ({"start": -1}, "line 2 of data=: start=-1"),
        ({"frames": 0}, "line 2 of data=: frames=0"),
        ({"fps": 0}, "line 2 of data=: fps=0"),
    ],
)
def test_a_row_that_cannot_be_read_is_named_before_the_run(tmp_path: Path, extra: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        check_inputs(read_pairs(write_pairs(tmp_path, 1, **extra)))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_video_is_named_before_the_run(tmp_path: Path) -> None:
    path = write_pairs(tmp_path, 2)
    whole = (tmp_path / "1.mp4").read_bytes()
    (tmp_path / "1.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(UserError, match=r"line 3 of data=: the video .*1\.mp4 cannot be decoded"):
        check_inputs(read_pairs(path))
