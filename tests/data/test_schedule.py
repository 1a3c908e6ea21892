"""The schedule, compared with counting from step 0."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gen1_train.data.loader import BatchPartition
from gen1_train.data.manifest import PoolShards, Shard
from gen1_train.data.schedule import PERIOD, Schedule, Settings, quotas
from gen1_train.errors import UserError

IMAGES, VIDEOS = (40, 90, 16), (33, 11)  # samples in the pools
CLIPS, FRAMES = 2, 4


@dataclass
class Pools:
    """The pools of a shard set without files."""

    images: tuple[int, ...] = IMAGES
    videos: tuple[int, ...] = VIDEOS
    root: Path = Path("SET")
    allow_repeats: bool = False

    def pools(self, kind: str) -> list[PoolShards]:
        sizes, frames = (self.images, 1) if kind == "image" else (self.videos, FRAMES)
        return [
            PoolShards(kind, 32 + 8 * i, 16, frames, [Shard("a", size // 2, 0, 0), Shard("b", size - size // 2, 0, 0)])
            for i, size in enumerate(sizes)
        ]


def make_schedule(
    ratio: float = 0.125, seed: int = 0, clips: int = CLIPS, pools: Pools | None = None, **settings: Any
) -> Schedule:
    return Schedule(pools or Pools(), Settings(seed, ratio, clips, **settings))  # type: ignore[arg-type]


def kinds(schedule: Schedule, steps: int) -> list[str]:
    return [schedule.kind(step) for step in range(steps)]


@pytest.mark.parametrize(
    ("ratio", "block", "images"), [(0.125, 8, 1), (0.375, 8, 3), (0.1, 10, 1), (0.5, 2, 1), (0, 1, 0), (1, 1, 1)]
)
def test_every_aligned_block_has_its_share_of_image_steps(ratio: float, block: int, images: int) -> None:
    drawn = kinds(make_schedule(ratio), 120 * block)
    blocks = [tuple(drawn[start : start + block]) for start in range(0, len(drawn), block)]
    assert all(b.count("image") == images for b in blocks)
    positions = {i for b in blocks for i, kind in enumerate(b) if kind == "image"}
    assert positions == (set(range(block)) if images else set())  # all of them, to avoid beats with other periods


def test_a_seed_determines_the_stream() -> None:
    assert kinds(make_schedule(seed=1), 400) == kinds(make_schedule(seed=1), 400)
    assert kinds(make_schedule(seed=1), 400) != kinds(make_schedule(seed=2), 400)
    one, two = make_schedule(1, seed=1), make_schedule(1, seed=2)
    assert [one.sample(one.at(0), slot) for slot in range(8)] != [two.sample(two.at(0), slot) for slot in range(8)]


def test_at_agrees_with_counting_from_step_0() -> None:
    schedule = make_schedule()
    uses: Counter[str] = Counter()
    for number in range(4200):  # two periods of image steps, fourteen of video steps
        step = schedule.at(number)
        assert step.kind == schedule.kind(number) == step.pool.split("-")[0]
        assert step.size == schedule.batch_size(step.kind) == (CLIPS * FRAMES if step.kind == "image" else CLIPS)
        assert step.first == uses[step.pool]
        uses[step.pool] += step.size


def test_at_a_million_steps_the_uses_add_up() -> None:
    """A million steps at 1/8 have 125 000 image steps, wherever they fall, and the uses of the pools add up to them."""
    schedule = make_schedule()
    start = 10**6
    before: dict[str, int] = {}
    uses: Counter[str] = Counter()
    for number in range(start, start + 600):  # long enough for every pool to come up
        step = schedule.at(number)
        before.setdefault(step.pool, step.first)
        assert step.first == before[step.pool] + uses[step.pool]
        uses[step.pool] += step.size
    assert len(before) == len(IMAGES) + len(VIDEOS)
    assert schedule.cursors(start) == before
    assert sum(first for pool, first in before.items() if pool.startswith("image")) == 125_000 * CLIPS * FRAMES
    assert sum(first for pool, first in before.items() if pool.startswith("video")) == 875_000 * CLIPS
    assert schedule.at(start) == make_schedule().at(start)  # earlier calls do not matter


@pytest.mark.parametrize("order", [{}, {"order": "blocks", "window": 1, "lanes": 2}, {"order": "blocks"}])
@pytest.mark.parametrize("mix", ["exact", "independent"])
@pytest.mark.parametrize("ratio", [0.375, 1])
def test_every_sample_comes_once_an_epoch(ratio: float, mix: str, order: dict[str, Any]) -> None:
    schedule = make_schedule(ratio, mix=mix, **order)
    streams: defaultdict[str, list[int]] = defaultdict(list)
    samples = {}
    for number in range(300):
        step = schedule.at(number)
        samples[step.pool] = step.samples
        streams[step.pool] += [schedule.sample(step, slot) for slot in range(step.size)]
    assert len(streams) == (len(IMAGES) if ratio == 1 else len(IMAGES) + len(VIDEOS))
    for pool, stream in streams.items():
        size = samples[pool]
        epochs = [tuple(stream[start : start + size]) for start in range(0, len(stream) - size + 1, size)]
        assert len(epochs) >= 3, pool
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs), pool
        assert len(set(epochs)) == len(epochs), pool  # each epoch has its own order


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (4, 1), (2, 2), (1, 4)])
@pytest.mark.parametrize("size", [8, 32])
def test_every_layout_reads_each_slot_once(world: int, accumulate: int, size: int) -> None:
    """The global batch is then the same, because the sample of a slot does not depend on the rank that reads it."""
    partitions = [BatchPartition(rank, world, accumulate) for rank in range(world)]
    parts = [list(partition.slots(size, micro)) for micro in range(accumulate) for partition in partitions]
    assert {len(part) for part in parts} == {size // (world * accumulate)}
    assert sorted(slot for part in parts for slot in part) == list(range(size))


def test_pools_of_a_kind_come_up_in_proportion() -> None:
    schedule = make_schedule(0, clips=10, pools=Pools(videos=(100, 300)))
    for period in range(3):
        counts = Counter(schedule.at(period * PERIOD + i).samples for i in range(PERIOD))
        assert counts == {100: PERIOD // 4, 300: PERIOD * 3 // 4}
    orders = {tuple(schedule.at(p * PERIOD + i).samples for i in range(PERIOD)) for p in range(3)}
    assert len(orders) == 3


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((5,), [64]),
        ((1, 1), [32, 32]),
        ((1, 3), [16, 48]),
        ((1, 10_000), [1, 63]),  # at least once
        ((1, 1, 1), [22, 21, 21]),  # ties go to the first
        ((1,) * 64, [1] * 64),
        ((1,) * 40 + (10**6,), [1] * 40 + [24]),
    ],
)
def test_quotas(sizes: tuple[int, ...], expected: list[int]) -> None:
    assert quotas(sizes, 64) == expected


def test_quotas_are_within_one_of_the_share() -> None:
    sizes = (640, 377, 211, 98, 53)
    shares = [64 * size / sum(sizes) for size in sizes]
    assert all(abs(quota - share) < 1 for quota, share in zip(quotas(sizes, 64), shares))
    assert sum(quotas(sizes, 64)) == 64


def test_more_pools_than_a_period_holds_are_refused() -> None:
    with pytest.raises(UserError, match="65 pools"):
        quotas([1] * 65, 64)


def test_a_pool_smaller_than_a_batch_is_refused_with_a_remedy() -> None:
    with pytest.raises(UserError) as error:
        make_schedule(clips=12)
    assert "pool image-32x16 has 40 samples" in str(error.value) and "batch of 48" in str(error.value)
    assert "lower data.batch_clips" in str(error.value)
    assert make_schedule(clips=4).at(0)  # 16 images, as many as the smallest pool has
    assert make_schedule(0, clips=11).at(0)  # without image steps the image pools do not matter


@pytest.mark.parametrize(
    ("kind", "ratio", "remedy"), [("image", 0.125, "data.image_ratio=0"), ("video", 0.125, "data.image_ratio=1")]
)
def test_a_missing_kind_is_refused_with_a_remedy(kind: str, ratio: float, remedy: str) -> None:
    without = Pools(images=()) if kind == "image" else Pools(videos=())
    with pytest.raises(UserError) as error:
        make_schedule(ratio, pools=without)
    assert f"has no {kind}s" in str(error.value) and str(error.value).endswith(remedy)
    assert make_schedule(float(remedy.rpartition("=")[2]), pools=without).at(5)


def test_every_step_costs_the_same_number_of_frames() -> None:
    schedule = make_schedule()
    assert schedule.batch_size("image") == schedule.batch_size("video") * FRAMES


def test_without_videos_an_image_batch_has_the_size_that_the_settings_give() -> None:
    schedule = Schedule(Pools(videos=()), Settings(0, 1.0, CLIPS, frames=FRAMES))  # type: ignore[arg-type]
    assert schedule.batch_size("image") == CLIPS * FRAMES
