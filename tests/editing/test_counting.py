"""Progress in units that users understand: percent, steps of the sampler, and the time that is left."""

import pytest

from gen1_train.editing.counting import frame_counter, step_counter
from gen1_train.system.console import console


def test_steps_are_counted_and_the_share_grows_within_a_step() -> None:
    seen: list[tuple[str, float | None, str]] = []
    with step_counter("sampling", [10, 10, 20], lambda *progress: seen.append(progress)) as count:
        for frames in (5, 5, 10, 15, 5):
            count(frames)
    assert seen == [
        ("sampling", 0.0, "step 1 of 3"),
        ("sampling", 0.125, "step 1 of 3"),
        ("sampling", 0.25, "step 2 of 3"),
        ("sampling", 0.5, "step 3 of 3"),
        ("sampling", 0.875, "step 3 of 3"),
        ("sampling", 1.0, "step 3 of 3"),
    ]


def test_frames_are_counted_with_and_without_a_total() -> None:
    seen: list[tuple[str, float | None, str]] = []
    for total in (4, None, 1):  # a header may be wrong
        with frame_counter("reading", total, lambda *progress: seen.append(progress)) as count:
            count(2)
    assert [share for _, share, _ in seen] == [0.0, 0.5, None, None, 0.0, 1.0]
    assert [detail for _, _, detail in seen[1:4:2]] == ["2 of 4 frames", "2 frames"]


def test_the_terminal_has_percent_step_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with console("gen1-edit"), step_counter("out.mp4", [3168, 3168, 3168, 3168], None) as count:
        for _ in range(4):
            count(3168)
    last = capsys.readouterr().err.split("\r")[-1]
    assert last.startswith("out.mp4: step 4 of 4 |") and "100 %, 00:00 left" in last and "3168" not in last
    with step_counter("in a library call", [1], None) as count:
        count(1)
    assert capsys.readouterr().err == ""
