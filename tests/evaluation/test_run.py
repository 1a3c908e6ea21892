"""Runs with a fake editor: resumed equals straight, several processes equal one, a changed evaluation is refused."""

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
from gen1_train.evaluation.results import Unit, missing, open_output, read_results, share, units_of
from gen1_train.evaluation.run import Evaluator, run
from tests.evaluation.fake import FakeEditor, load, made_pairs, write_pairs
from tests.pages import Page

SWEEP = SweepConfig(omega_t=[0.5, 1.0], t_s=[0, 4], init_strength=[0.5], steps=1)
SETTINGS = settings_of(SWEEP)
PLAN: dict[str, Any] = {
    "checkpoint": {"sha256": "0", "weights": "ema", "stage": "5", "step": 10},
    "prior": None,
    "precision": "fp32",
    "settings": {"steps": 1, "keep_videos": False},
    "pairs": [],
}


def evaluate(units: Sequence[Unit], output: Path, workers: int = 1, keep_videos: bool = False) -> None:
    run(units, load, partial(Evaluator, sweep=SWEEP, output=output, keep_videos=keep_videos), workers)


def rows(output: Path, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Returns all results in order, without the times."""
    results = read_results(output, units_of(pairs, SETTINGS))
    assert all(row.pop("seconds") >= 0 for row in results)
    return results


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    return made_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, pairs: list[Pair]) -> Path:
    output = tmp_path_factory.mktemp("straight")
    evaluate(units_of(pairs, SETTINGS), output)
    return output


class InterruptedEditor(FakeEditor):
    """An editor that is interrupted during its fifth edit."""

    def __init__(self) -> None:
        super().__init__()
        self.edits = 0

    def __call__(self, frames: np.ndarray, **settings: Any) -> np.ndarray:
        self.edits += 1
        if self.edits == 5:
            raise KeyboardInterrupt
        return super().__call__(frames, **settings)


def load_interrupted(rank: int) -> Editing:
    return InterruptedEditor()


def test_resumed_equals_straight(tmp_path: Path, pairs: list[Pair], straight: Path) -> None:
    units = units_of(pairs, SETTINGS)
    make = partial(Evaluator, sweep=SWEEP, output=tmp_path, keep_videos=False)
    with pytest.raises(KeyboardInterrupt):
        run(units, load_interrupted, make, 1)
    left = missing(tmp_path, units)
    assert left == units[5:]  # the input and four edits have results
    kept = [unit.file(tmp_path, "results", ".json") for unit in units[:5]]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in kept]
    evaluate(left, tmp_path)
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in kept] == before  # written once
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
    for name in ("table.md", "summary.json"):  # up to the times
        assert without_times(tmp_path / name) == without_times(straight / name)


def without_times(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    return [line.rsplit("|", 2)[0] if path.suffix == ".md" else line for line in lines if "seconds" not in line]


def test_the_input_as_output_keeps_its_structure_and_its_flicker(pairs: list[Pair], straight: Path) -> None:
    references = [row for row in rows(straight, pairs) if row["method"] == "input"]
    assert len(references) == len(pairs)
    for row, pair in zip(references, pairs):
        frames, fps = read_frames(pair, FakeEditor().buckets)
        assert (row["structure_correlation"], row["structure_error"]) == (1, 0) and fps == 8
        assert row["warp_error"] == warp_error(frames, frames) and row["warp_error"] < 0.05


def test_the_metrics_follow_the_dials(pairs: list[Pair], straight: Path) -> None:
    """The fake editor flickers less with a higher omega_t, and keeps less structure with a higher t_s."""
    results = {(row["line"], row["method"], row["omega_t"], row["t_s"]): row for row in rows(straight, pairs)}
    for line in (2, 3, 4):
        assert results[line, "gen1", 1.0, 0]["warp_error"] < results[line, "gen1", 0.5, 0]["warp_error"]
        assert (
            results[line, "per_frame", None, 4]["structure_error"]
            > results[line, "per_frame", None, 0]["structure_error"]
        )


def test_a_report_without_all_results_is_refused(tmp_path: Path, pairs: list[Pair]) -> None:
    evaluate(units_of(pairs[:1], SETTINGS), tmp_path)
    with pytest.raises(UserError, match=r"14 of 21 results are missing, first input of line 3"):
        write_report(tmp_path, PLAN, pairs, SETTINGS, SWEEP)
    broken = Unit(pairs[0], SETTINGS[0]).file(tmp_path, "results", ".json")
    broken.write_text("{}")
    with pytest.raises(UserError, match="remove it and call gen1-eval again"):
        write_report(tmp_path, PLAN, pairs[:1], SETTINGS, SWEEP)


def test_another_evaluation_is_refused(tmp_path: Path, pairs: list[Pair]) -> None:
    open_output(tmp_path, {**PLAN, "prior": "1"})
    open_output(tmp_path, PLAN)  # nothing is lost while there is no result
    evaluate([Unit(pairs[0], SETTINGS[0])], tmp_path)
    open_output(tmp_path, json.loads(json.dumps(PLAN)))
    for key, value, message in (
        ("checkpoint", {**PLAN["checkpoint"], "sha256": "1"}, "checkpoint= has changed"),
        ("prior", "1", "prior= has changed"),
        ("settings", {**PLAN["settings"], "steps": 2}, "steps= has changed"),
        ("pairs", [{"line": 2}], "data= or a file that it names has changed"),
    ):
        with pytest.raises(UserError, match=message) as error:
            open_output(tmp_path, {**PLAN, key: value})
        assert "give another output=" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
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
    ("extra", "message"),
    [
        ({"image": "absent.png"}, "line 2 of data=: the image"),
        ({"image": "0.mp4"}, "line 2 of data=: the image"),
        ({"start": 9}, "line 2 of data=: the video"),
        ({"start": -1}, "line 2 of data=: start=-1"),
        ({"frames": 0}, "line 2 of data=: frames=0"),
        ({"fps": 0}, "line 2 of data=: fps=0"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_before_the_run(tmp_path: Path, extra: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        check_inputs(read_pairs(write_pairs(tmp_path, 1, **extra)))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_video_is_named_before_the_run(tmp_path: Path) -> None:
    path = write_pairs(tmp_path, 2)
    whole = (tmp_path / "1.mp4").read_bytes()
    (tmp_path / "1.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(UserError, match=r"line 3 of data=: the video .*1\.mp4 cannot be decoded"):
        check_inputs(read_pairs(path))


def test_an_evaluation_of_others_leads_nowhere_else(tmp_path: Path, pairs: list[Pair]) -> None:
    victim, output = tmp_path / "victim", tmp_path / "out"
    victim.mkdir()
    (victim / "file").write_text("mine")
    units = units_of(pairs, SETTINGS)[:1]
    evaluate(units, output, keep_videos=True)
    strip = units[0].file(output, "strips", ".jpg")
    units[0].file(output, "results", ".json").unlink()
    strip.unlink()
    strip.symlink_to(victim / "file")  # it is replaced, and what it leads to is not written to
    evaluate(units, output, keep_videos=True)
    assert (victim / "file").read_text() == "mine" and not strip.is_symlink()
    for name in ("results", "strips", "videos"):
        units[0].file(output, "results", ".json").unlink(missing_ok=True)
        folder = output / name
        folder.rename(output / "moved")
        folder.symlink_to(victim)
        with pytest.raises(UserError, match=f"{name} is a link"):
            evaluate(units, output, keep_videos=True)
        folder.unlink()
        (output / "moved").rename(folder)
    assert [path.name for path in victim.iterdir()] == ["file"]
