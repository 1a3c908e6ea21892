"""The schedule, compared with counting from step 0."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gen1_train.data.loader import BatchPartition
from gen1_train.data.manifest import PoolShards, Shard
from gen1_train.data.schedule import PERIOD, Schedule, Settings, check_batch, quotas
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
        size = CLIPS * FRAMES if step.kind == "image" else CLIPS
        assert step.size == schedule.batch_size(1 if step.kind == "image" else FRAMES) == size
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
    assert schedule.batch_size(1) == schedule.batch_size(FRAMES) * FRAMES


def test_without_videos_an_image_batch_has_the_size_that_the_settings_give() -> None:
    schedule = Schedule(Pools(videos=()), Settings(0, 1.0, CLIPS, frames=FRAMES))  # type: ignore[arg-type]
    assert schedule.batch_size(1) == CLIPS * FRAMES


LONGER = {4: 33, 8: 30, 12: 11}  # samples of each length of clips


@dataclass
class Lengths(Pools):
    """Pools of clips of several lengths."""

    videos_of: dict[int, int] = field(default_factory=lambda: dict(LONGER))

    def pools(self, kind: str) -> list[PoolShards]:
        if kind == "image":
            return super().pools(kind)
        halves = {
            n: (Shard("a", size // 2, 0, 0), Shard("b", size - size // 2, 0, 0)) for n, size in self.videos_of.items()
        }
        return [PoolShards("video", 32, 16, n, shards, longer=n > min(halves)) for n, shards in halves.items()]


@pytest.mark.parametrize("order", [{}, {"order": "blocks", "window": 1, "lanes": 2}])
def test_clips_of_several_lengths_cost_the_same_and_last_equally_long(order: dict[str, Any]) -> None:
    schedule = make_schedule(0.125, clips=6, pools=Lengths(images=(40,)), **order)
    streams: defaultdict[str, list[int]] = defaultdict(list)
    batches: Counter[int] = Counter()
    frames = {"video-32x16": 4, "video-32x16-8f": 8, "video-32x16-12f": 12, "image-32x16": 1}
    for number in range(8 * PERIOD):
        step = schedule.at(number)
        assert step.size * frames[step.pool] == 6 * 4 and step.first == len(streams[step.pool])
        streams[step.pool] += [schedule.sample(step, slot) for slot in range(step.size)]
        batches[frames[step.pool]] += 1
    del batches[1]
    whole = sum(count * n for n, count in LONGER.items())
    for length, count in LONGER.items():  # in proportion to the frames, so that epochs are equally long
        assert abs(batches[length] - 7 * PERIOD * count * length / whole) <= 7, length
    for pool, stream in streams.items():
        size = schedule.shards.pools("image")[0].samples if pool == "image-32x16" else LONGER[frames[pool]]
        epochs = [sorted(stream[start : start + size]) for start in range(0, len(stream) - size + 1, size)]
        assert epochs and all(epoch == list(range(size)) for epoch in epochs), pool


def test_a_second_length_changes_no_order_within_the_pools_of_the_first() -> None:
    one, several = (make_schedule(0, clips=6, pools=Lengths(videos_of=lengths)) for lengths in ({4: 33}, LONGER))
    steps = {step.first: step for step in map(several.at, range(60)) if step.pool == "video-32x16"}
    assert len(steps) > 3
    for number, first in enumerate(sorted(steps)):
        assert first == one.at(number).first
        samples = [
            [schedule.sample(step, slot) for slot in range(6)]
            for schedule, step in ((one, one.at(number)), (several, steps[first]))
        ]
        assert samples[0] == samples[1]
    assert one.hash != several.hash


def test_the_lengths_are_in_the_hash_only_if_there_are_several() -> None:
    """The hash of a set with one length is that of older versions, whose runs resume without a change."""
    assert make_schedule().hash == "26569c1f433a42e22ae187d3b545f0fe170c80f6ae7879127ad0b643a8de7a02"


@pytest.mark.parametrize(("clips", "parts", "value"), [(4, 1, 6), (7, 1, 12), (6, 2, 12), (13, 2, 24)])
def test_a_batch_that_is_not_whole_clips_of_each_length_is_refused_with_a_value_that_works(
    clips: int, parts: int, value: int
) -> None:
    with pytest.raises(UserError) as error:
        check_batch(clips, LONGER, parts)
    assert f"data.batch_clips={clips} counts clips of 4 frames" in str(error.value)
    assert str(error.value).endswith(f"give a multiple of {6 * parts}, such as {value}")
    check_batch(value, LONGER, parts)
    check_batch(clips, [4, 4], parts)  # a single length: micro_clips checks it
    if parts == 1:
        with pytest.raises(UserError, match="is no whole number of clips of each length"):
            make_schedule(0, clips=clips, pools=Lengths())
    assert make_schedule(1, clips=4, pools=Lengths()).at(0).size == 16  # the clips are not read
