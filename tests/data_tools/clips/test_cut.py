"""Every frame of a video ends in a clip or a drop, or is accounted for otherwise."""

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import numpy as np
import pytest

from data_tools.clips.cut import Clip, CutConfig, Drop, Progress, cut_clips
from gen1_train.errors import UserError
from gen1_train.video.errors import VideoError

RATE = 25
GRAYS = (0, 90, 180)  # of the shots: far enough apart for a cut; the first is black


@dataclass(eq=False)
class FakeFrame:
    """A frame of one gray level, which counts how often it is converted."""

    index: int
    gray: int
    size: int = 4
    decoder: str = "fake"
    interlaced: bool = False
    conversions: int = 0
    looks: int = 0

    @property
    def seconds(self) -> float:
        return self.index / RATE

    def rgb(self) -> np.ndarray:
        self.conversions += 1
        return np.full((6, 8, 3), (self.index // 256, self.index % 256, 7), np.uint8)

    def small(self) -> np.ndarray:
        self.looks += 1
        return np.full((self.size, self.size, 3), self.gray, np.uint8)


def crop(rgb: np.ndarray) -> np.ndarray:
    assert rgb.shape == (6, 8, 3)
    return rgb[1:3, 2:5]


def make(frames: int, cuts: Iterable[int] = (), shots: str = "m", seed: int = 0) -> list[FakeFrame]:
    """Returns frames with these cuts; the shots are in turn (m)oving, (s)till or (b)lack."""
    noise = np.random.default_rng(seed).integers(0, 11, frames)
    out = []
    shot = 0
    gray = 0
    for i in range(frames):
        shot += i in cuts
        kind = shots[shot % len(shots)]
        if i == 0 or i in cuts:
            gray = 0 if kind == "b" else next(g for g in GRAYS[1:] if g != gray)
        out.append(FakeFrame(i, gray + int(noise[i] if kind == "m" else 0)))
    return out


def failing(frames: list[FakeFrame], at: int) -> Iterator[FakeFrame]:
    yield from frames[:at]
    raise VideoError("broken")


def run(frames: Iterable[FakeFrame], config: CutConfig, expected: int = 0) -> list[Clip | Drop]:
    return [item for item in cut_clips(frames, config, expected, crop) if not isinstance(item, Progress)]


def summary(items: list[Clip | Drop]) -> list[tuple[str, int, int]]:
    """Returns (category, first frame, last frame) of each; checks that a clip holds its frames."""
    return [_summary(item) for item in items]


def _summary(item: Clip | Drop) -> tuple[str, int, int]:
    first, last = (round(seconds * RATE) for seconds in item.seconds)
    if isinstance(item, Drop):
        return item.category, first, last
    assert item.frames.dtype == np.uint8 and item.frames.shape[1:] == (2, 3, 3)
    shown = item.frames[:, 0, 0, 0].astype(int) * 256 + item.frames[:, 0, 0, 1]
    assert shown[0] == first == item.first and shown[-1] == last
    assert len({b - a for a, b in pairwise(shown)}) <= 1
    return "clip", first, last


# The reference implementation: it has the whole video in memory, and works shot by shot.


@dataclass
class Decision:
    """A decision about a part of a video, in order; "left out": a window for which the cap has no room."""

    kind: str
    first: int
    last: int


def reference(frames: list[FakeFrame], cuts: list[int], config: CutConfig, expected: int) -> list[Decision]:
    if len(frames) < config.span:
        return [Decision("too short", 0, max(len(frames) - 1, 0))]
    decisions: list[Decision] = []
    windows = max((expected - config.span) // config.step + 1, 0)
    taken, cap = 0, config.clips_per_video
    for begin, end in pairwise([0, *cuts, len(frames)]):
        start = begin + (config.trim if begin else 0)
        stop = end - (config.trim if end < len(frames) else 0)
        if stop - start < config.span:
            decisions.append(Decision("no room between cuts", begin, end - 1))
        for first in range(start, stop - config.span + 1, config.step):
            kind = verdict(frames[first : first + config.span : config.stride], config)
            if cap is not None and (taken >= cap or taken * windows * config.step > cap * first):
                kind = "left out"
            taken += kind == "clip"
            decisions.append(Decision(kind, first, first + config.span - 1))
    return decisions


def verdict(frames: list[FakeFrame], config: CutConfig) -> str:
    grays = [frame.gray for frame in frames]
    if config.drop_black and max(grays) <= 25:
        return "black"
    motion = sum(abs(a - b) for a, b in pairwise(grays)) / max(len(grays) - 1, 1)
    return "static" if motion < config.min_motion and len(grays) > 1 else "clip"


def until_full(decisions: list[Decision], cap: int | None) -> list[Decision]:
    """Drops everything after the last clip that the cap allows."""
    clips = [i for i, one in enumerate(decisions) if one.kind == "clip"]
    return decisions if cap is None or len(clips) < cap else decisions[: clips[cap - 1] + 1]


def merged(decisions: list[Decision]) -> list[tuple[str, int, int]]:
    out = []
    for kind, group in groupby(decisions, lambda one: one.kind):
        same = list(group)
        if kind == "clip":
            out += [(kind, one.first, one.last) for one in same]
        elif kind != "left out":
            out.append((kind, same[0].first, same[-1].last))
    return out


def random_case(seed: int) -> tuple[list[FakeFrame], list[int], CutConfig, int]:
    random = np.random.default_rng(seed)
    config = CutConfig(
        frames=int(random.integers(1, 5)),
        stride=int(random.integers(1, 5)),
        trim=int(random.integers(0, random.choice([4, 12, 40]))),
        clips_per_video=None if random.random() < 0.5 else int(random.integers(1, 8)),
        min_motion=float(random.choice([0.0, 0.5, 3.0])),
        drop_black=bool(random.random() < 0.7),
    )
    count = int(random.integers(0, 200))
    gaps = random.integers(3, int(random.choice([6, 20, 80])), 80)  # three cuts in a row count as a flash
    cuts = [int(c) for c in np.cumsum(gaps) if c < count]
    shots = "".join(random.choice(list("mmsb"), 7))
    frames = make(count, cuts, shots, seed)
    cuts = [c for c in cuts if abs(frames[c].gray - frames[c - 1].gray) > 60]  # from black to black there is no cut
    expected = int(random.choice([0, count, count // 2, 2 * count]))
    return frames, cuts, config, expected


@pytest.mark.parametrize("block", range(8))
def test_clips_and_drops_equal_those_of_the_reference(block: int) -> None:
    for seed in range(block * 50, block * 50 + 50):
        frames, cuts, config, expected = random_case(seed)
        decisions = until_full(reference(frames, cuts, config, expected), config.clips_per_video)
        assert summary(run(frames, config, expected)) == merged(decisions), f"seed {seed}"


@pytest.mark.parametrize("block", range(8))
def test_an_error_comes_after_all_settled_items_and_no_others(block: int) -> None:
    for seed in range(block * 50, block * 50 + 50):
        frames, cuts, config, expected = random_case(seed)
        if len(frames) < config.span:
            continue
        at = int(np.random.default_rng(seed).integers(0, len(frames) + 1))
        decisions = reference(frames, cuts, config, expected)
        newest = at - 1 - 2  # the detector is two frames late
        # the end of a shot is known once the next frame comes
        known = [one for one in decisions if one.last + max(config.trim, one.kind == "no room between cuts") <= newest]
        decisions = until_full(known, config.clips_per_video)
        received = []
        try:
            for item in cut_clips(failing(frames, at), config, expected, crop):
                received.append(item)
        except VideoError as error:
            assert str(error) == "broken"
        else:
            assert sum(one.kind == "clip" for one in decisions) == config.clips_per_video
        received = [item for item in received if not isinstance(item, Progress)]
        assert summary(received) == merged(decisions), f"seed {seed}"


def test_every_frame_is_in_a_clip_or_drop_or_next_to_a_cut_or_between_windows() -> None:
    for seed in range(100):
        frames, cuts, config, _ = random_case(seed)
        config = replace(config, clips_per_video=None)
        if len(frames) < config.span:
            continue
        covered = np.zeros(len(frames), bool)
        for _, first, last in summary(run(frames, config)):
            covered[first : last + 1] = True
        for begin, end in pairwise([0, *cuts, len(frames)]):
            covered[begin : begin + config.trim * (begin > 0)] = True
            covered[end - config.trim * (end < len(frames)) : end] = True
        for is_covered, stretch in groupby(covered):
            # stride - 1 frames are free between windows, and after the last one fewer than another window needs
            assert is_covered or len(list(stretch)) < config.stride - 1 + config.span, f"seed {seed}"


# The rules one by one, with the paper's clips of 8 frames, 4 apart: each spans 29 frames, and starts 32 after the last.


@pytest.mark.parametrize("frames, clips", [(29, 1), (60, 1), (61, 2), (93, 3)])
def test_windows_do_not_overlap(frames: int, clips: int) -> None:
    assert summary(run(make(frames), CutConfig())) == [("clip", 32 * i, 32 * i + 28) for i in range(clips)]


@pytest.mark.parametrize("at", range(1, 80))
def test_no_clip_comes_near_a_cut_at_any_position(at: int) -> None:
    items = summary(run(make(80, [at]), CutConfig()))
    assert items == merged(reference(make(80, [at]), [at], CutConfig(), 0))
    for kind, first, last in items:
        assert kind != "clip" or last < at - 3 or first >= at + 3


def test_consecutive_short_shots_are_one_drop() -> None:
    items = run(make(160, [20, 34, 68, 120, 150]), CutConfig())
    assert summary(items) == [
        ("no room between cuts", 0, 67),  # the third has 34 frames, less than 29 + 2 * 3
        ("clip", 71, 99),
        ("no room between cuts", 120, 159),
    ]
    assert [item.count for item in items if isinstance(item, Drop)] == [3, 2]


def test_a_video_shorter_than_a_clip_is_too_short() -> None:
    for frames in (make(0), make(1), make(28), make(28, [5, 12])):
        (drop,) = run(frames, CutConfig())
        assert isinstance(drop, Drop) and drop.category == "too short"
        assert drop.reason == f"it has {len(frames)} frames, a clip needs 29"
        assert drop.seconds == (0.0, max(len(frames) - 1, 0) / RATE)


def test_without_shot_detection_clips_cross_cuts_and_only_their_frames_are_read() -> None:
    frames = make(93, [20, 40])
    config = CutConfig(shots=False)
    assert [kind for kind, *_ in summary(run(frames, config))] == ["clip"] * 3
    assert [frame.index for frame in frames if frame.looks] == [32 * i + 4 * k for i in range(3) for k in range(8)]


def test_frames_are_converted_once_and_only_for_wanted_windows() -> None:
    frames = make(32 * 30, [500])
    clips = [item for item in run(frames, CutConfig(clips_per_video=3), len(frames)) if isinstance(item, Clip)]
    assert len(clips) == 3
    assert [f.index for f in frames if f.conversions] == [clip.first + 4 * k for clip in clips for k in range(8)]
    assert {f.conversions for f in frames} == {0, 1} and {f.looks for f in frames} <= {0, 1}


def test_the_still_is_made_of_the_middle_frame() -> None:
    for clip in cut_clips(make(70), CutConfig(), 70, crop, still=lambda rgb: rgb[:1, :1]):
        assert isinstance(clip, Clip) and clip.still is not None
        assert (clip.still == (0, clip.first + 16, 7)).all() and clip.still.shape == (1, 1, 3)
    assert all(clip.still is None for clip in run(make(70), CutConfig()) if isinstance(clip, Clip))


def test_the_cap_spreads_clips_over_the_video_and_ends_the_reading() -> None:
    frames = make(32 * 40)
    items = summary(run(frames, CutConfig(clips_per_video=4), len(frames)))
    assert items == [("clip", 320 * i, 320 * i + 28) for i in range(4)]
    assert sum(frame.looks for frame in frames) == 960 + 28 + 3 + 2 + 1  # trim, and the detector's lag


@pytest.mark.parametrize("count", [29, 31, 93, 100, 101])
@pytest.mark.parametrize("cap", range(1, 6))
def test_one_shot_gives_as_many_clips_as_the_cap_allows(count: int, cap: int) -> None:
    items = run(make(count), CutConfig(clips_per_video=cap), count)
    assert len(items) == min(cap, (count - 29) // 32 + 1)


def test_later_parts_compensate_for_parts_without_clips() -> None:
    frames = make(32 * 40, [32 * 20], "sm")
    items = summary(run(frames, CutConfig(clips_per_video=4), len(frames)))
    assert [kind for kind, *_ in items] == ["static", *["clip"] * 4]


def test_without_an_expected_number_the_first_windows_are_taken() -> None:
    frames = make(32 * 40)
    items = summary(run(frames, CutConfig(clips_per_video=3), 0))
    assert items == [("clip", 32 * i, 32 * i + 28) for i in range(3)]
    assert [f.index for f in frames if f.conversions] == [4 * k for k in range(24)]


def test_static_and_black_shots_are_dropped_by_category() -> None:
    items = run(make(400, [100, 200, 300], "smbm"), CutConfig())
    assert [kind for kind, group in groupby(kind for kind, *_ in summary(items))] == ["static", "clip", "black", "clip"]
    assert [item.count for item in items if isinstance(item, Drop)] == [3, 3]
    kept = run(make(400, [100, 200, 300], "smbm"), CutConfig(min_motion=0, drop_black=False))
    assert all(isinstance(item, Clip) for item in kept)


def test_interlaced_clips_are_marked_or_dropped() -> None:
    frames = make(200)
    for frame in frames[100:]:
        frame.interlaced = True
    items = run(frames, CutConfig(shots=False))
    assert [item.interlaced for item in items if isinstance(item, Clip)] == [False] * 3 + [True] * 3
    kinds = [kind for kind, *_ in summary(run(frames, CutConfig(shots=False, drop_interlaced=True)))]
    assert kinds == ["clip"] * 3 + ["interlaced"]


def test_motion_is_the_mean_change_between_the_frames_of_the_clip() -> None:
    frames = [FakeFrame(i, 100 + 5 * (i // 4 % 2) + i % 4) for i in range(29)]  # i % 4 is between the clip's frames
    (clip,) = run(frames, CutConfig())
    assert isinstance(clip, Clip) and clip.motion == 5
    (clip,) = run(frames, CutConfig(frames=1))[:1]
    assert isinstance(clip, Clip) and clip.motion == 0


def test_a_frame_is_black_as_in_blackdetect() -> None:
    assert summary(run([FakeFrame(i, 25 if i % 8 else 0) for i in range(29)], CutConfig()))[0][0] == "black"
    assert summary(run([FakeFrame(i, 26 if i % 8 else 0) for i in range(29)], CutConfig()))[0][0] == "clip"
    assert summary(run([FakeFrame(i, 0 if i else 200) for i in range(29)], CutConfig(shots=False)))[0][0] == "clip"


def test_a_clip_is_yielded_once_no_cut_can_come_too_near() -> None:
    frames = make(150)
    for at in range(151):
        clips = []
        with pytest.raises(VideoError, match="broken"):
            for item in cut_clips(failing(frames, at), CutConfig(), 150, crop):
                clips.append(item)
        assert all(isinstance(clip, Clip) and clip.first + 28 + 5 < at for clip in clips)
        assert len(clips) == sum(32 * i + 28 + 5 < at for i in range(5))


@pytest.mark.parametrize("shots", [True, False])
def test_another_frame_size_is_an_error_after_all_settled_clips(shots: bool) -> None:
    frames = make(100)
    for frame in frames[70:]:
        frame.size = 5
    received = []
    with pytest.raises(VideoError, match="size of the frames changes"):
        for item in cut_clips(frames, CutConfig(shots=shots), 100, crop):
            received.append(item)
    assert summary(received) == [("clip", 0, 28), ("clip", 32, 60)]


@pytest.mark.parametrize("kinds", ["b", "s", "m", "short"])
def test_a_long_video_is_not_held_in_memory_and_reports_progress(kinds: str) -> None:
    count = 5000
    frames = make(count, range(10, count, 10)) if kinds == "short" else make(count, shots=kinds)
    alive: weakref.WeakSet[FakeFrame] = weakref.WeakSet()
    most = 0

    def stream() -> Iterator[FakeFrame]:
        nonlocal most
        for frame in frames:
            passing = replace(frame)
            alive.add(passing)
            most = max(most, len(alive))
            yield passing

    items = list(cut_clips(stream(), CutConfig(), count, crop))
    assert [i.seconds for i in items if isinstance(i, Progress)] == [(250 * k - 1) / RATE for k in range(1, 21)]
    assert len(items) == 20 + (156 if kinds == "m" else 1)
    assert most <= 6  # the frames that the detector has not judged, and those of the two loops


def test_impossible_settings_are_refused_by_name() -> None:
    CutConfig().check()
    for changes in ({"frames": 0}, {"frames": 100}, {"stride": 0}, {"clips_per_video": 0}, {"trim": -1}):
        ((field, value),) = changes.items()
        with pytest.raises(UserError, match=rf"recipe\.cut\.{field}={value} (is not in|must be)"):
            replace(CutConfig(), **changes).check()
