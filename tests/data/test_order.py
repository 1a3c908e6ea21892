"""The order of a pool's samples: each once an epoch; in blocks, a few shards at a time, and different ones per lane."""

from itertools import pairwise

import pytest

from gen1_train.data.manifest import PoolShards, Shard
from gen1_train.data.order import BlockOrder, GlobalOrder

SIZES = (31, 7, 50, 12, 12, 40, 3, 25, 60, 9)  # samples in the shards
TOTAL = sum(SIZES)


def pool(sizes: tuple[int, ...] = SIZES) -> PoolShards:
    return PoolShards("video", 32, 16, 4, [Shard(f"{n:06d}.tar", size, 0, 0) for n, size in enumerate(sizes)])


def shard_of(sample: int) -> int:
    return next(n for n in range(len(SIZES)) if sample < sum(SIZES[: n + 1]))


@pytest.mark.parametrize("sizes", [SIZES, (17,), (1, 1, 1), (5, 300)])
@pytest.mark.parametrize(("round_", "lanes", "window"), [(1, 1, 1), (16, 8, 1), (16, 3, 2), (7, 7, 4), (4, 8, 100)])
def test_every_sample_comes_once_an_epoch(sizes: tuple[int, ...], round_: int, lanes: int, window: int) -> None:
    total = sum(sizes)
    order = BlockOrder(pool(sizes), 0, round_, lanes, window)
    epochs = [tuple(order.sample(epoch * total + use) for use in range(total)) for epoch in range(4)]
    assert all(sorted(epoch) == list(range(total)) for epoch in epochs)
    assert total < 5 or len(set(epochs)) == 4


def test_samples_do_not_depend_on_earlier_calls() -> None:
    for make in (lambda: GlobalOrder(pool(), 0), lambda: BlockOrder(pool(), 0, 16, 4, 2)):
        order = make()
        [order.sample(use) for use in range(0, 9 * TOTAL, 5)]
        assert [order.sample(use) for use in range(600, 700)] == [make().sample(use) for use in range(600, 700)]


def test_the_order_depends_on_the_seed_and_the_pool() -> None:
    for make in (GlobalOrder, lambda pool, seed: BlockOrder(pool, seed, 16, 4, 2)):
        other = PoolShards("video", 64, 16, 4, pool().shards)
        one, two, three = (
            [o.sample(use) for use in range(TOTAL)] for o in (make(pool(), 0), make(pool(), 1), make(other, 0))
        )
        assert one != two and one != three


def test_a_lane_reads_a_few_shards_at_a_time_that_no_other_lane_reads() -> None:
    """100 shards of 20 samples, in 4 lanes of 25 shards each, with windows of 3 shards."""
    order = BlockOrder(pool((20,) * 100), 0, round_=8, lanes=4, window=3)  # a window is 60 samples
    uses = {lane: [n for n in range(2000) if n % 8 // 2 == lane] for lane in range(4)}
    shards = {lane: [order.sample(n) // 20 for n in uses[lane]] for lane in uses}
    for lane in uses:
        assert len(set(shards[lane])) == 25
        windows = [set(shards[lane][start : start + 60]) for start in range(60 - 15 * lane, 440, 60)]
        assert max(map(len, windows)) <= 4
        assert max(shards[lane].count(shard) for shard in set(shards[lane])) == 20
    shards_of_lanes = [shard for lane in uses for shard in set(shards[lane])]
    assert len(shards_of_lanes) == len(set(shards_of_lanes)) == 100  # no two lanes read the same shard


def test_the_samples_of_a_window_are_shuffled() -> None:
    order = BlockOrder(pool((20,) * 100), 0, round_=1, lanes=1, window=5)
    window = [order.sample(use) for use in range(100)]
    shards = [sample // 20 for sample in window]
    assert len(set(shards)) == 5 and sorted(map(shards.count, set(shards))) == [20] * 5
    changes = sum(a != b for a, b in pairwise(shards))
    assert changes > 60  # shard by shard there would be 4, and 80 of 99 are expected in random order
    assert len({order.sample(2000 + use) // 20 for use in range(100)} & set(shards)) < 5  # the next epoch's differ


def test_lanes_and_window_are_limited_to_the_round_and_the_pool() -> None:
    order = BlockOrder(pool((3, 2)), 0, round_=2, lanes=8, window=100)
    assert (order.lanes, order.window) == (2, 5)


def test_the_orders_never_change() -> None:
    """Golden values on purpose: a change here changes what a resumed run reads; see schedule.STREAM_VERSION."""
    assert [GlobalOrder(pool(), 3).sample(use) for use in (0, 1, 248, 249, 10**9)] == [157, 12, 27, 90, 162]
    blocks = BlockOrder(pool(), 3, 16, 4, 2)
    assert [blocks.sample(use) for use in (0, 1, 248, 249, 10**9)] == [136, 144, 73, 152, 40]
