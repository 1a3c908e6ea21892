import html
import io
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from data_tools.failures import FAILURES, Failure, to_lines
from data_tools.sets.report import BATCH_CLIPS, REPORT, STAGES, batch_sizes, obstacles, write_report
from data_tools.sets.report_charts import histogram
from data_tools.sets.report_sheet import draw, picture
from data_tools.stats import STATS, Histogram, Stats
from gen1_train.batch import Pool
from gen1_train.data.index import index_path, read_index
from gen1_train.data.loader import DataConfig
from gen1_train.data.manifest import MANIFEST, Manifest, PoolShards, Shard
from gen1_train.data.schedule import Schedule, Settings
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError
from gen1_train.html import Html, duration, element, number, shorten, size, table
from tests.made import ESTIMATORS, make_sample, make_shard_set
from tests.pages import Page
from tests.running import REPOSITORY

CONF = REPOSITORY / "conf"


def report(root: Path, **options: int) -> Page:
    return Page(write_report(root, **options))


def planned_set(root: Path, pools: dict[Pool, int]) -> Path:
    """Writes only the manifest of a set of any size: enough for everything except the contact sheet."""
    shards = {
        pool.name: PoolShards(
            pool.kind,
            pool.width,
            pool.height,
            pool.frames,
            tuple(Shard(f"{pool.name}-{number}.tar", count // 2, 3_000_000, 0) for number in range(2)),
        )
        for pool, count in pools.items()
    }
    root.mkdir()
    Manifest(pools=shards, recipe={}, estimators=ESTIMATORS, plan="p" * 64).save(root)
    return root


def test_frames_without_a_face_are_a_warning(tmp_path: Path) -> None:
    root = make_shard_set(tmp_path / "a set")
    stats = Stats()
    stats.add_structure(96, 0)
    stats.save(root)
    assert "their structure is empty" not in report(root).text
    stats.add_structure(4, 3)
    stats.save(root)
    assert "3 of 100 frames (3%) have no depth: their structure is empty" in report(root).text


def test_each_pool_has_its_own_row(tmp_path: Path) -> None:
    root = make_shard_set(tmp_path / "a set", clips=12, images=40)
    page = report(root)
    manifest = Manifest.load(root)
    for name, samples in (("video-32x16", 12), ("image-32x16", 40)):
        bytes_ = sum((root / "shards" / f"{name}-{i:06d}.tar").stat().st_size for i in range(2))
        frames = str(manifest.pools[name].frames)
        assert page.row(name) == [frames, str(samples), "100.0 %", "2", size(bytes_), size(bytes_ // samples)]
    assert manifest.hash[:12] in page.text and "a set" in page.text
    whole = sum(tar.stat().st_size for tar in (root / "shards").glob("*.tar"))
    assert f"{size(whole)}on disk" in page.text


def test_the_share_of_a_pool_is_relative_to_its_kind(tmp_path: Path) -> None:
    pools = {Pool("video", 448, 256, 8): 3000, Pool("video", 256, 448, 8): 1000, Pool("image", 64, 64, 1): 20_000}
    page = report(planned_set(tmp_path / "set", pools), samples=0)
    assert page.row("video-448x256") == ["8", "3,000", "75.0 %", "2", "6.00 MB", "2.00 kB"]
    assert page.row("video-256x448")[2] == "25.0 %" and page.row("image-64x64")[2] == "100.0 %"


def test_epochs_equal_those_computed_by_hand(tmp_path: Path) -> None:
    """Stage 3: 65,625 video steps x 1152 clips = 75,600,000 = 100 x 756,000; 9375 image steps x 9216 = 86,400,000."""
    pools = {Pool("video", 448, 256, 8): 756_000, Pool("image", 64, 64, 1): 43_200_000}
    page = report(planned_set(tmp_path / "set", pools), samples=0)
    assert page.row("stage 2") == ["15,000", "—", "—", "138,240,000", "3.20"]
    assert page.row("stage 3") == ["75,000", "75,600,000", "100", "86,400,000", "2.00"]
    assert page.row("stage 4") == ["25,000", "25,200,000", "33.3", "28,800,000", "0.667"]
    assert page.row("stage 5") == ["10,000", "10,080,000", "13.3", "11,520,000", "0.267"]
    assert page.row("all") == ["125,000", "110,880,000", "147", "264,960,000", "6.13"]
    assert "global batch of" not in page.text.replace("a global batch is", "")  # there are no warnings


def test_the_stages_equal_those_in_conf() -> None:
    for stage, (steps, share) in STAGES.items():
        values = yaml.safe_load((CONF / "stage" / f"{stage}.yaml").read_text())
        assert (steps, share) == (values["steps"], values["image_ratio"])
    assert {path.stem for path in (CONF / "stage").glob("*.yaml")} - set(STAGES) == {
        "1",
        "prior",
        "customize",
    }  # no epochs
    assert DataConfig().batch_clips == BATCH_CLIPS


@pytest.mark.parametrize("frames", [4, 8])
def test_batches_equal_those_of_the_schedule(tmp_path: Path, frames: int) -> None:
    pools = {Pool("video", 448, 256, frames): 2000, Pool("image", 64, 64, 1): 10_000}
    shards = ShardSet(planned_set(tmp_path / "set", pools))
    schedule = Schedule(shards, Settings(0, STAGES["3"][1], BATCH_CLIPS))
    batches = batch_sizes(shards.manifest)
    assert batches == {"video": schedule.batch_size(frames), "image": schedule.batch_size(1)}
    assert batches["image"] == 1152 * frames
    read = [schedule.at(step) for step in range(800)]
    assert sum(step.size for step in read if step.kind == "image") == round(800 * STAGES["3"][1]) * batches["image"]


@pytest.mark.parametrize(
    ("pools", "message"),
    [
        ({Pool("video", 448, 256, 8): 1152, Pool("image", 64, 64, 1): 9216}, None),
        ({Pool("video", 448, 256, 8): 1150, Pool("image", 64, 64, 1): 9216}, "data.batch_clips=1150 or less"),
        ({Pool("video", 448, 256, 8): 1152, Pool("image", 64, 64, 1): 9214}, "data.batch_clips=1151 or less"),
        ({Pool("video", 448, 256, 8): 1152}, "no images: gen1-train reads it only with data.image_ratio=0"),
        ({Pool("image", 64, 64, 1): 9216}, "no videos: gen1-train reads it only with data.image_ratio=1"),
        ({Pool("video", 448, 256, 8): 576, Pool("video", 64, 64, 4): 1152, Pool("image", 64, 64, 1): 4608}, None),
        (
            {Pool("video", 64, 64, 8): 1152, Pool("video", 64, 64, 16, True): 574, Pool("image", 64, 64, 1): 9216},
            "1,152 clips of 8 frames: video-64x64-16f (574). gen1-train needs data.batch_clips=1148 or less",
        ),
        (
            {Pool("video", 64, 64, 8): 1152, Pool("video", 64, 64, 10, True): 1152, Pool("image", 64, 64, 1): 9216},
            "8 and 10 frames: data.batch_clips must be a multiple of 5",
        ),
    ],
)
def test_the_page_warns_of_exactly_what_training_would_refuse(
    tmp_path: Path, pools: dict[Pool, int], message: str | None
) -> None:
    shards = ShardSet(planned_set(tmp_path / "set", pools))
    lines = list(obstacles(shards.manifest, batch_sizes(shards.manifest)))
    if message is None:
        assert lines == []
        Schedule(shards, Settings(0, 0.125, BATCH_CLIPS))
        return
    assert len(lines) == 1 and message in lines[0]
    assert lines[0] in report(shards.root, samples=0).text
    with pytest.raises(UserError):
        Schedule(shards, Settings(0, 0.125, BATCH_CLIPS))
    if remedy := re.search(r"batch_clips=(\d+)", message):
        Schedule(shards, Settings(0, 0.125, int(remedy.group(1))))
        with pytest.raises(UserError):
            Schedule(shards, Settings(0, 0.125, int(remedy.group(1)) + 1))


NASTY = "<script>alert('1')</script>\"&amp;\x00\x1b\udcff.mp4"


def test_user_text_is_never_markup(tmp_path: Path) -> None:
    root = make_shard_set(tmp_path / "<b>set", clips=2, images=2)
    failures = [Failure(NASTY, NASTY, NASTY, start=0.5, end=2), Failure("b", NASTY, "c", failed=False)]
    (root / FAILURES).write_bytes(to_lines(failures))
    stats = Stats()
    for failure in failures:
        stats.add_failure(failure)
    stats.add_video(3, 1, NASTY)
    stats.bytes["<i>kind"] = 5
    stats.save(root)
    manifest = Manifest.load(root)
    manifest.recipe = {"name": NASTY.replace("\udcff", "")}
    manifest.versions = {"<u>av": "<u>1"}
    manifest.estimators["clip"] = {"config": {"path": "<u>/x"}, "fingerprint": "<u>", "kind": "<u>", "width": 64}
    manifest.plan = "<u>" * 4
    manifest.save(root)
    page = report(root)
    assert page.count("script") == page.count("i") == page.count("u") == 0
    assert {name for name, _ in page.elements} >= {"table", "svg", "img", "details"}
    shown = NASTY.replace("\x00", "\ufffd").replace("\x1b", "\ufffd").replace("\udcff", "\ufffd")
    assert [shown, "0.50–2.00 s", shown] in page.rows
    assert [row[1:3] for row in page.rows if row[0] == shown and len(row) == 5] == [["dropped", "1"], ["failed", "1"]]
    assert page.text.count("<u>/x") == 1 and "<i>kind" in page.text and "<b>set" in page.text


def test_the_page_loads_and_runs_nothing(tmp_path: Path) -> None:
    page = report(make_shard_set(tmp_path / "set", clips=2, images=2))
    sources = [attributes["src"] or "" for name, attributes in page.elements if "src" in attributes]
    assert len(sources) == 4 and all(source.startswith("data:image/jpeg;base64,/9j/") for source in sources)
    assert not {"script", "link", "iframe", "object", "a"} & {name for name, _ in page.elements}
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert "url(" not in page.raw and "@import" not in page.raw and "://" not in page.raw
    assert ("meta", "default-src 'none'") in [
        (name, (attributes.get("content") or "").partition(";")[0]) for name, attributes in page.elements
    ]


def test_the_first_failures_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    root = make_shard_set(tmp_path / "set", clips=2, images=2)
    failures = [Failure(f"{i:03d}.mp4", "unreadable", "moov atom not found", transient=i < 3) for i in range(63)]
    drops = [Failure("a.mp4", "static", "no motion", failed=False, start=i, end=i + 1.5) for i in range(100)]
    (root / FAILURES).write_bytes(to_lines(drops + failures))
    for with_stats in (False, True):  # without stats.json the list itself is counted
        if with_stats:
            stats = Stats()
            for failure in failures + drops:
                stats.add_failure(failure)
            stats.save(root)
        page = report(root)
        assert page.row("unreadable")[:4] == ["failed", "63", "—", "3"]
        assert page.row("static")[:4] == ["dropped", "100", "2.50 min", "—"]
        assert sum(row[-1].startswith("moov atom") for row in page.rows) == 50
        assert page.row("002.mp4") == ["whole file", "moov atom not found (may pass)"]
        assert "And 13 more" in page.text


def test_the_statistics_are_on_the_page(tmp_path: Path) -> None:
    root = make_shard_set(tmp_path / "set", clips=2, images=2)
    whole = sum(tar.stat().st_size for tar in (root / "shards").glob("*.tar"))
    stats = Stats()
    for seconds in (0.1, 3, 4, 20_000):
        stats.add_video(seconds, 1, "pyav")
    for i in range(4):
        stats.add_clip("video-32x16", 3.0, {"frame00.jpg": whole // 16, "moments.npy": whole // 8}, captioned=i == 0)
    stats.save(root)
    page = report(root)
    assert not page.text.count("are missing here")
    assert "5.56 hof video decoded" in page.text and "25.0 %of the samples have a caption" in page.text
    assert "4 videos and 0 images were used. Clips by decoder: pyav 4." in page.text
    labels = [attributes.get("aria-label") or "" for name, attributes in page.elements if name == "svg"]
    assert labels[0] == "Videos by length: " + ", ".join(map(str, stats.durations.counts))
    assert labels[1].endswith(": " + ", ".join(map(str, stats.motions.counts)))
    shares = {name: page.row(name)[1] for name in ("frame", "moments", "tar headers")}
    assert shares == {"frame": "25.0 %", "moments": "50.0 %", "tar headers": "25.0 %"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (STATS, None, "there is no stats.json"),
        (STATS, b'{"videos": ', "stats.json cannot be read"),
        (FAILURES, None, "There is no failures.jsonl"),
        (FAILURES, b'{"file": "a.mp4", "category": "gone", "reason": "why"}\n{"fil', "cannot be read to its end"),
        (FAILURES, b'["a"]\n', "cannot be read to its end"),
    ],
)
def test_missing_or_damaged_files_are_named_on_the_page(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    root = make_shard_set(tmp_path / "set", clips=2, images=2)
    Stats().save(root)
    (root / FAILURES).write_bytes(b"")
    whole = report(root)
    assert message not in whole.text and "Nothing failed." in whole.text
    (root / name).unlink()
    if content is not None:
        (root / name).write_bytes(content)
    page = report(root)
    assert message in page.text and page.count("p", "warning") == whole.count("p", "warning") + 1
    assert "Nothing failed." in page.text or name == FAILURES
    assert page.row("video-32x16") == whole.row("video-32x16") and page.count("img") == 4


def damage_byte(root: Path) -> None:
    tar = root / "shards" / "video-32x16-000000.tar"
    data = bytearray(tar.read_bytes())
    data[read_index(tar)[0].members["frame00.jpg"][0] + 50] ^= 255
    tar.write_bytes(data)


def damage_index(root: Path) -> None:
    index_path(root / "shards" / "video-32x16-000000.tar").write_text("{}\n")


def remove_tar(root: Path) -> None:
    (root / "shards" / "video-32x16-000000.tar").unlink()


@pytest.mark.parametrize(
    ("damage", "lost", "message"),
    [
        (damage_byte, 1, "is damaged (its crc32 differs)"),
        (damage_index, 2, "is not the index that was frozen"),
        (remove_tar, 2, "cannot be read"),
    ],
)
def test_a_damaged_sample_is_replaced_by_a_note(
    tmp_path: Path, damage: Callable[[Path], None], lost: int, message: str
) -> None:
    root = make_shard_set(tmp_path / "set", clips=4, images=2)
    assert report(root).count("img") == 6
    damage(root)
    page = report(root)
    assert page.count("img") == 6 - lost and page.count("div", "damaged") == lost
    assert page.text.count(message) == lost


def test_a_card_names_the_source_of_its_sample(tmp_path: Path) -> None:
    page = report(make_shard_set(tmp_path / "set", clips=3, images=0, shards=1))
    for i in range(3):
        assert f"video-{i:03d}made/video-{i:03d}made thing {i}" in page.text


def test_the_sheet_has_distinct_samples_evenly_from_all_pools(tmp_path: Path) -> None:
    pools = {Pool("video", 448, 256, 8): 1000, Pool("video", 64, 64, 8): 4, Pool("image", 64, 64, 1): 50_000}
    shards = ShardSet(planned_set(tmp_path / "set", pools))
    drawn = draw(shards, 24, seed=0)
    assert list(drawn) == ["video-448x256", "video-64x64", "image-64x64"]  # clips come first
    assert sorted(drawn["video-64x64"]) == [0, 1, 2, 3]
    assert [len(set(places)) for places in drawn.values()] == [10, 4, 10]
    assert draw(shards, 24, seed=0) == drawn != draw(shards, 24, seed=1)
    assert draw(shards, 30, seed=0)["image-64x64"][:10] == drawn["image-64x64"]  # more samples only adds to them
    assert sum(map(len, draw(shards, 1, seed=0).values())) == 1 and draw(shards, 0, seed=0) == {}


def test_the_same_set_gives_the_same_page(tmp_path: Path) -> None:
    root = make_shard_set(tmp_path / "one" / "set", clips=3, images=3)
    Stats().save(root)
    first = write_report(root).read_bytes()
    copy = tmp_path / "two" / "set"
    shutil.copytree(root, copy)  # keeps the times
    (copy / REPORT).unlink()
    assert write_report(copy).read_bytes() == first == write_report(root).read_bytes()
    assert write_report(root, seed=1).read_bytes() != first
    os.utime(root / MANIFEST, (0, 86_400 * 366))
    assert "Frozen 1971-01-02 00:00 UTC" in report(root).text


def test_the_page_is_small_even_if_the_pictures_are_noise(tmp_path: Path) -> None:
    root = make_shard_set(tmp_path / "set", clips=6, images=6, width=448, height=256, frames=8)
    assert write_report(root, samples=12).stat().st_size < 3_000_000
    noise = make_sample("noise", Pool("video", 448, 256, 8), 0)
    large, tiny = picture(noise, limit=10**9), picture(noise, limit=8000)  # 8000: the share of one of 200 samples
    assert (large.width, large.height) == (4 * 196 + 9, 2 * 112 + 3)
    assert len(tiny.data) <= 8000 and tiny.width < large.width


def test_a_strip_shows_frames_above_and_structure_below() -> None:
    sample = make_sample("a", Pool("video", 448, 256, 8), 0)
    assert sample.frames is not None and sample.structure is not None
    sample.frames[:] = (np.arange(8) * 30)[:, None, None, None]
    sample.structure[:] = (65535 - np.arange(8) * 7000)[:, None, None]
    shown = np.asarray(Image.open(io.BytesIO(picture(sample, 10**9).data)).convert("L")).astype(int)
    columns = [98 + i * 199 for i in range(4)]
    assert np.abs(shown[56, columns] - [0, 60, 120, 180]).max() <= 3  # every second frame
    assert np.abs(shown[171, columns] - [255, 200, 146, 91]).max() <= 3


def test_mistakes_are_errors_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shard set at"):
        write_report(tmp_path)
    root = make_shard_set(tmp_path / "set", clips=2, images=2)
    with pytest.raises(UserError, match="samples=201"):
        write_report(root, samples=201)
    (root / REPORT).mkdir()
    with pytest.raises(UserError, match=r"report\.html cannot be written"):
        write_report(root)
    assert list(root.glob(".*")) == []


def test_text_is_escaped_and_markup_is_not() -> None:
    inner = element("b", "1 < 2")
    assert isinstance(inner, Html) and inner == "<b>1 &lt; 2</b>"
    assert (
        element("p", inner, "&", None, class_="x", title='"') == '<p class="x" title="&quot;"><b>1 &lt; 2</b>&amp;</p>'
    )
    assert html.unescape(element("i", "a\tb\nc\x07")) == "<i>a\tb\nc\N{REPLACEMENT CHARACTER}</i>"


def test_numbers_in_a_table_are_right_aligned() -> None:
    html_table = table(("name", "count"), [["12", 1234], ["b", number(0.5)]])
    assert '<td>12</td><td class="number">1,234</td>' in html_table
    assert '<th>name</th><th class="number">count</th>' in html_table


def test_histogram_bars_are_proportional_to_their_counts() -> None:
    svg = histogram("Title", "unit", [0, 10, 40, 1], [(1.0, "one")])
    heights = [float(height) for height in re.findall(r'<rect[^>]* height="([\d.]+)"', svg)]
    assert heights[0] == 0 and heights[2] == 4 * heights[1] and 0 < heights[3] < heights[1]
    assert ">40<" in svg and ">20<" in svg and ">one<" in svg  # the axis ends at the highest count
    assert "nan" not in histogram("Empty", "unit", Histogram((1.0, 2.0)).counts, [])


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        (number(0), "0"),
        (number(0.01234), "0.0123"),
        (number(4.5), "4.50"),
        (number(78.94), "78.9"),
        (number(123_456.7), "123,457"),
        (size(999), "999 B"),
        (size(1_234_567), "1.23 MB"),
        (size(240 * 10**12), "240 TB"),
        (duration(1.5), "1.50 s"),
        (duration(600), "10.0 min"),
        (duration(36_000), "10.0 h"),
        (shorten("abcdef", 3), "abc…"),
        (shorten("abc", 3), "abc"),
    ],
)
def test_numbers_are_readable(shown: str, message: str) -> None:
    assert shown == message
