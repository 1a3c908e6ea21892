"""The data state of a checkpoint, and what a run reads that resumes from it."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from gen1_train.data.manifest import PoolShards, Shard
from gen1_train.data.schedule import Schedule, Settings
from gen1_train.data.state import LIMIT, DataState, capture, resume
from gen1_train.errors import UserError

SETTINGS = Settings(seed=3, image_ratio=0.25, clips=2, frames=4)
BLOCKS = replace(SETTINGS, order="blocks", window=2, lanes=2)
IMAGES, VIDEOS = (40, 90), (33, 21)


@dataclass
class Pools:
    """A shard set without files."""

    images: tuple[int, ...] = IMAGES
    videos: tuple[int, ...] = VIDEOS
    root: str = "SET"

    @property
    def manifest(self) -> Any:
        return SimpleNamespace(hash=f"{self.images}{self.videos}".encode().hex().ljust(64, "0")[:64])

    def pools(self, kind: str) -> list[PoolShards]:
        sizes, frames = (self.images, 1) if kind == "image" else (self.videos, 4)
        return [
            PoolShards(kind, 32 + 8 * i, 16, frames, [Shard("", n, 0, 0) for n in (size // 3, size - size // 3)])
            for i, size in enumerate(sizes)
        ]


def make_schedule(settings: Settings = SETTINGS, pools: Pools | None = None) -> Schedule:
    return Schedule(pools or Pools(), settings)  # type: ignore[arg-type]


def resume_run(state: DataState, settings: Settings, pools: Pools | None = None) -> tuple[Schedule, tuple[str, ...]]:
    return resume(state, pools or Pools(), settings)  # type: ignore[arg-type]


def stream(schedule: Schedule, start: int, stop: int) -> Iterator[tuple[str, int]]:
    for number in range(start, stop):
        step = schedule.at(number)
        yield from ((step.pool, schedule.sample(step, slot)) for slot in range(step.size))


@pytest.mark.parametrize("settings", [SETTINGS, BLOCKS, replace(SETTINGS, mix="independent")])
def test_a_resumed_run_reads_the_same_stream(settings: Settings) -> None:
    straight = make_schedule(settings)
    resumed, history = resume_run(capture(straight, 77), settings)
    assert history == () and resumed.hash == straight.hash
    assert list(stream(resumed, 77, 200)) == list(stream(straight, 77, 200))


def test_a_state_round_trips_through_json_and_is_small() -> None:
    """With the paper's buckets, after changes, and late in training."""
    pools = Pools(images=(48_000_000,) * 5, videos=(6_400_000,))
    before = make_schedule(Settings(2**62, 0.125, 1152, 8), pools)
    state = capture(before, 10**7)
    for clips in (2304, 1152, 2304, 1152, 2304, 1152):
        schedule, history = resume_run(state, replace(before.settings, clips=clips), pools)
        state = capture(schedule, state.step + 10**6, history)
        text = json.dumps(asdict(state), separators=(",", ":"))
        assert len(text) <= LIMIT
        assert DataState.load(json.loads(text), "here") == state
    assert state.history[-1] == "from step 15000000: data.batch_clips 2304 -> 1152"


@pytest.mark.parametrize("settings", [SETTINGS, BLOCKS])
def test_another_global_batch_continues_from_the_cursors(settings: Settings) -> None:
    """The change is in the middle of all epochs, and every sample still comes once in each."""
    straight = make_schedule(settings)
    state = capture(straight, 50)
    changed, history = resume_run(state, replace(settings, clips=5))
    assert history == ("from step 50: data.batch_clips 2 -> 5",)
    assert changed.cursors(50) == state.cursors == straight.cursors(50)
    assert {step.size for step in map(changed.at, range(50, 90))} == {5, 20}
    back, history = resume_run(capture(changed, 90, history), settings)
    assert len(history) == 2
    read = [*stream(straight, 0, 50), *stream(changed, 50, 90), *stream(back, 90, 400)]
    for pool, size in (("image-32x16", 40), ("image-40x16", 90), ("video-32x16", 33), ("video-40x16", 21)):
        samples = [sample for name, sample in read if name == pool]
        assert len(samples) == back.cursors(400)[pool] > 3 * size
        for start in range(0, len(samples) - size, size):
            assert sorted(samples[start : start + size]) == list(range(size))


@pytest.mark.parametrize(
    ("change", "entry"),
    [({"image_ratio": 0.5}, "data.image_ratio 0.25 -> 0.5"), ({"mix": "independent"}, "data.mix exact -> independent")],
)
def test_another_mix_continues_from_the_cursors(change: dict[str, Any], entry: str) -> None:
    straight = make_schedule()
    state = capture(straight, 61)
    changed, history = resume_run(state, replace(SETTINGS, **change))
    assert history == (f"from step 61: {entry}",) and changed.cursors(61) == state.cursors
    steps = [changed.at(number) for number in range(61, 261)]
    uses = Counter(state.cursors)
    for step in steps:
        assert step.first == uses[step.pool]
        uses[step.pool] += step.size
    images = sum(step.kind == "image" for step in steps)
    assert abs(images - 200 * changed.settings.image_ratio) < 25
    assert [step.kind for step in steps] == [Schedule(Pools(), changed.settings).kind(n) for n in range(61, 261)]  # type: ignore[arg-type]


def test_another_shard_set_continues_from_the_cursors() -> None:
    state = capture(make_schedule(), 40)
    grown = Pools(images=(400, 90, 50))  # one pool has grown, one is new
    changed, (line,) = resume_run(state, SETTINGS, grown)
    assert line.startswith(f"from step 40: shard set {state.manifest[:8]} -> {grown.manifest.hash[:8]}")
    assert changed.cursors(40) == {**state.cursors, "image-48x16": 0}
    shrunk = Pools(videos=(33,))
    assert resume_run(state, SETTINGS, shrunk)[0].cursors(40) == state.cursors  # the removed pool is remembered


def test_a_changed_run_resumes_exactly() -> None:
    changed, history = resume_run(capture(make_schedule(), 50), replace(SETTINGS, clips=5))
    resumed, resumed_history = resume_run(capture(changed, 80, history), replace(SETTINGS, clips=5))
    assert resumed_history == history and resumed.hash == changed.hash
    assert list(stream(resumed, 80, 150)) == list(stream(changed, 80, 150))


@pytest.mark.parametrize(
    ("before", "change", "message"),
    [
        (SETTINGS, {"seed": 4}, "seed cannot be changed"),
        (SETTINGS, {"order": "blocks"}, "data.order=blocks, but was global, and cannot be changed"),
        (BLOCKS, {"window": 3}, "data.window=3, but was 2, and"),
        (BLOCKS, {"lanes": 4}, "data.lanes=4, but was 2, and"),
    ],
)
def test_a_change_of_a_fixed_setting_is_refused(before: Settings, change: dict[str, Any], message: str) -> None:
    state = capture(make_schedule(before), 10)
    with pytest.raises(UserError) as error:
        resume_run(state, replace(before, **change))
    assert message in str(error.value) and "name=" in str(error.value) and "\n" not in str(error.value)


def test_lanes_and_window_do_not_affect_the_global_order() -> None:
    resumed, _ = resume_run(capture(make_schedule(), 10), replace(SETTINGS, lanes=4, window=3))
    assert list(stream(resumed, 10, 60)) == list(stream(make_schedule(), 10, 60))


@pytest.mark.parametrize(
    "content", [{}, {"step": 1}, {"history": 3}, {**asdict(capture(make_schedule(), 1)), "start": {"a": 1}}]
)
def test_an_invalid_state_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"checkpoint\.json holds no data state"):
        DataState.load(content, "checkpoint.json")
