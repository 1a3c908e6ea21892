import json
from copy import deepcopy
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any

import pytest

from data_tools.failures import Failure
from data_tools.stats import CLIPS_EDGES, MEMBER_KINDS, STATS, Histogram, Loss, Stats, member_kind, merge_stats
from gen1_train.batch import Pool, encode_sample
from gen1_train.errors import UserError
from tests.made import make_sample


def part(seed: int) -> Stats:
    """Returns the statistics of a task with some videos, images, drops and failures."""
    draw = Random(seed)
    stats = Stats()
    for _ in range(20):
        clips = draw.randrange(5)
        stats.add_video(draw.uniform(0.1, 5000), clips, draw.choice(["pyav", "decord"]))
        for _ in range(clips):
            size = {"frame00.jpg": draw.randrange(9999), "frame01.jpg": draw.randrange(9999), "meta.json": 100}
            stats.add_clip(draw.choice(["video-448x256", "video-256x448"]), draw.uniform(0, 80), size, seed % 2 == 0)
        start = draw.uniform(0, 9)
        stats.add_failure(Failure("a.mp4", draw.choice(["static", "black"]), "…", False, start=start, end=start + 0.1))
        stats.add_failure(Failure("b.mp4", f"unreadable {seed}", "…", transient=draw.random() < 0.5))
    stats.add_image()
    stats.add_clip("image-64x64", None, {"frame": 5}, True)
    stats.add_structure(8, seed)
    return stats


def test_merging_is_exact_in_any_order_and_any_grouping() -> None:
    parts = [part(seed) for seed in range(4)]
    results = [merge_stats(deepcopy(order)) for order in permutations(parts)]
    pairs = merge_stats([merge_stats(parts[:2]), merge_stats(parts[2:])])
    assert all(result == results[0] for result in results) and pairs == results[0]
    assert len({json.dumps(result.to_json()) for result in [*results, pairs]}) == 1
    assert results[0].videos == 80 and results[0].images == 4
    assert merge_stats([parts[0], Stats()]) == parts[0] == merge_stats([Stats(), parts[0]])
    assert parts[0] == part(0)  # merging left the parts as they were


def test_merged_parts_equal_the_counts_of_one_task() -> None:
    """A tenth of a second has no exact float: sums of floats would depend on the division into tasks."""
    spans = [Failure("a.mp4", "static", "…", False, start=0.1 * i, end=0.1 * i + 0.1) for i in range(100)]
    whole, parts = Stats(), [Stats() for _ in range(7)]
    for number, span in enumerate(spans):
        for stats in (whole, parts[number % 7]):
            stats.add_failure(span)
            stats.add_video(0.1, 1, "pyav")
    assert merge_stats(parts) == whole
    assert whole.drops == {"static": Loss(100, 10_000)} and whole.milliseconds == 10_000


def test_everything_added_is_counted() -> None:
    stats = Stats()
    stats.add_video(2.5, 3, "decord")
    stats.add_video(100, 0, "pyav")
    members = {name: len(data) for name, data in encode_sample(make_sample("a", Pool("video", 32, 16, 4), 0)).items()}
    stats.add_clip("video-32x16", 3.0, members, captioned=True)
    stats.add_failure(Failure("c.mp4", "unreadable", "…", transient=True))
    stats.add_failure(Failure("c.mp4", "too short", "…", failed=False, start=1.0, end=1.5))
    assert stats.durations.counts[3] == stats.durations.counts[8] == 1 and sum(stats.durations.counts) == 2
    assert stats.clips_per_video.counts[:4] == [1, 0, 0, 1]
    assert stats.decoders == {"decord": 3, "pyav": 0} and stats.captioned == 1
    assert stats.failures == {"unreadable": Loss(1, 0, 1)} and stats.drops == {"too short": Loss(1, 500, 0)}
    assert set(stats.bytes) == set(MEMBER_KINDS)  # every member of encode_sample has a kind
    assert stats.bytes["frame"] == sum(members[f"frame{i:02d}.jpg"] for i in range(4))
    assert sum(stats.bytes.values()) == sum(members.values())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("frame07.jpg", "frame"),
        ("structure00.png", "structure"),
        ("structure_latent.npy", "structure_latent"),
        ("structure_latent", "structure_latent"),
    ],
)
def test_members_are_counted_by_kind(name: str, kind: str) -> None:
    assert member_kind(name) == kind


def test_a_bin_begins_with_its_edge() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.0, 0.99, 1.0, 1.99, 2.0, 1e9):
        histogram.add(value)
    assert histogram.counts == [2, 2, 2]
    with pytest.raises(ValueError, match="cannot be merged"):
        histogram.merge(Histogram(CLIPS_EDGES))


def test_the_file_restores_the_same_statistics(tmp_path: Path) -> None:
    stats = merge_stats(part(seed) for seed in range(3))
    stats.save(tmp_path)
    assert Stats.load(tmp_path) == stats
    assert Stats.from_json(json.loads(json.dumps(stats.to_json()))) == stats
    first = (tmp_path / STATS).read_bytes()
    assert len(first) < 5000
    merge_stats([part(2), part(0), part(1)]).save(tmp_path)
    assert (tmp_path / STATS).read_bytes() == first


def broken() -> list[Any]:
    good = Stats().to_json()
    edges = deepcopy(good)
    edges["motions"]["edges"][0] = 0.1
    return [
        [],
        {},
        {**good, "format": 0},
        {**good, "format": 1, "more": 1},
        {**good, "format": 4},
        {**good, "empty_frames": None},
        {**good, "more": 1},
        {**good, "videos": 1.5},
        {**good, "videos": -1},
        {**good, "samples": {"video-1x1": "many"}},
        {**good, "drops": {"static": {"number": 1}}},
        {**good, "durations": None},
        edges,
    ]


def test_statistics_of_older_formats_count_nothing_that_they_lack() -> None:
    stats = part(3)
    older = {**stats.to_json(), "format": 1}
    del older["structure_frames"], older["empty_frames"], older["made_captions"]
    read = Stats.from_json(json.loads(json.dumps(older)))
    assert (read.structure_frames, read.empty_frames) == (0, 0) and read.videos == stats.videos
    assert read.empty_structure({}) is None and read.made_by_network({}) is None
    with pytest.raises(ValueError, match="not the statistics"):  # format 2 has the first two
        Stats.from_json({**older, "format": 2})
    assert Stats.from_json({**older, "format": 2, "structure_frames": 9, "empty_frames": 2}).empty_frames == 2


def test_captions_of_a_network_are_counted() -> None:
    stats = Stats()
    for captioned, made in [(True, False), (True, True), (False, False)]:
        stats.add_clip("video-1x1", None, {}, captioned, made)
    assert (
        stats.made_by_network({"caption": {"kind": "blip"}}) == "1 of 2 captions were made by blip, from one frame each"
    )


def test_frames_without_any_structure_are_reported() -> None:
    stats = Stats()
    stats.add_structure(8, None)  # a kind whose maps always have values
    stats.add_structure(8, 0)
    assert stats.empty_structure({}) is None and stats.structure_frames == 8
    stats.add_structure(8, 4)
    line = stats.empty_structure({"structure": {"kind": "face"}})
    assert line is not None and line.startswith("4 of 16 frames (25%) have no face: their structure is empty")


@pytest.mark.parametrize("content", broken())
def test_other_content_is_refused_in_one_line(tmp_path: Path, content: Any) -> None:
    (tmp_path / STATS).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"stats\.json cannot be read") as error:
        Stats.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_or_truncated_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no stats\.json"):
        Stats.load(tmp_path)
    (tmp_path / STATS).write_text(json.dumps(Stats().to_json())[:-20])
    with pytest.raises(UserError, match="cannot be read"):
        Stats.load(tmp_path)
