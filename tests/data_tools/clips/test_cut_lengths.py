"""Clips of several lengths from one pass over a video: those that a pass for each length would give."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from data_tools.clips.cut import Clip, CutConfig, Drop, cut_clips
from gen1_train.errors import UserError
from gen1_train.video.errors import VideoError
from tests.data_tools.clips.test_cut import FakeFrame, crop, failing, make, random_case, run

MORE = [5, 8]  # besides the 1 to 4 frames of `random_case`


def described(item: Clip | Drop) -> tuple[Any, ...]:
    if isinstance(item, Drop):
        return item.seconds, item.category.partition(",")[0], item.reason, item.count
    return item.first, item.seconds, item.motion, item.frames.tobytes(), item.decoder, item.interlaced


def by_length(items: Iterable[Clip | Drop], lengths: Iterable[int]) -> list[list[tuple[Any, ...]]]:
    """The items of each length in order; the shortest is that of drops without a length."""
    parts: dict[int, list[tuple[Any, ...]]] = {length: [] for length in lengths}
    for item in items:
        named = item.category.partition(", clips of ")[2] if isinstance(item, Drop) else str(len(item.frames))
        parts[int(named.removesuffix(" frames") or min(parts))].append(described(item))
    return list(parts.values())


@pytest.mark.parametrize("block", range(4))
def test_each_length_has_the_clips_and_drops_of_a_pass_of_its_own(block: int) -> None:
    for seed in range(block * 50, block * 50 + 50):
        frames, _, config, expected = random_case(seed)
        several = replace(config, more_frames=MORE)
        alone = [[described(item) for item in run(frames, each, expected)] for each in several.lengths]
        together = by_length(run(frames, several, expected), (config.frames, *MORE))
        assert together == alone, f"seed {seed}"


def test_an_error_leaves_each_length_with_what_was_settled() -> None:
    frames = make(200, [90])
    several = CutConfig(frames=4, more_frames=MORE)
    for at in range(0, 200, 7):
        received: dict[tuple[int, ...], list[Clip | Drop]] = {}
        for config in (several, *several.lengths):
            items = received[config.frames, *config.more_frames] = []
            with pytest.raises(VideoError, match="broken"):
                for item in cut_clips(failing(frames, at), config, 200, crop):
                    items.append(item)  # type: ignore[arg-type]
        together = by_length(received.pop((4, *MORE)), (4, *MORE))
        assert together == [list(map(described, items)) for items in received.values()]


def test_a_frame_is_converted_once_for_all_lengths_and_only_the_shortest_have_stills() -> None:
    frames = make(200)
    stills: list[np.ndarray] = []

    def still(rgb: np.ndarray) -> np.ndarray:
        stills.append(rgb)
        return rgb[:1, :1]

    items = [item for item in cut_clips(frames, CutConfig(8, [16, 24]), 200, crop, still) if isinstance(item, Clip)]
    counts = {length: sum(len(item.frames) == length for item in items) for length in (8, 16, 24)}
    assert counts == {8: 6, 16: 3, 24: 2} and len(stills) == 6
    assert all((item.still is not None) == (len(item.frames) == 8) for item in items)
    assert {frame.conversions for frame in frames} == {0, 1} and {frame.looks for frame in frames} == {1}


def test_the_cap_is_that_of_each_length_and_ends_the_reading_once_all_have_reached_it() -> None:
    frames = make(32 * 40)
    items = run(frames, CutConfig(8, [16], clips_per_video=2), 0)
    assert [(len(item.frames), item.first) for item in items if isinstance(item, Clip)] == [
        (8, 0),
        (8, 32),
        (16, 0),
        (16, 64),
    ]
    assert sum(frame.looks for frame in frames) == 64 + 60 + 3 + 2 + 1  # trim, and the detector's lag


def test_drops_of_longer_clips_are_counted_on_their_own() -> None:
    items = run(make(100, [50]), CutConfig(8, [16]))
    assert [(item.category, item.reason) for item in items if isinstance(item, Drop)] == [
        ("no room between cuts, clips of 16 frames", "a clip needs 61 frames of a shot, 3 or more from its cuts")
    ]
    assert [item.category for item in run(make(40), CutConfig(8, [16])) if isinstance(item, Drop)] == [
        "too short, clips of 16 frames"
    ]


@pytest.mark.parametrize("more", [[8], [4], [16, 16], [24, 16], [100], [0]])
def test_lengths_that_do_not_increase_are_refused(more: list[int]) -> None:
    with pytest.raises(
        UserError, match=r"recipe\.cut\.more_frames=.*above recipe\.cut\.frames=8, up to 99, each longer"
    ):
        CutConfig(more_frames=more).check()
    CutConfig(more_frames=[16, 24, 99]).check()


def test_frames_stay_no_longer_in_memory_than_for_one_length() -> None:
    import weakref

    alive: weakref.WeakSet[FakeFrame] = weakref.WeakSet()
    most = 0

    def stream() -> Iterable[FakeFrame]:
        nonlocal most
        for frame in make(600):
            passing = replace(frame)
            alive.add(passing)
            most = max(most, len(alive))
            yield passing

    list(cut_clips(stream(), CutConfig(8, [16, 24]), 600, crop))
    assert most <= 7
