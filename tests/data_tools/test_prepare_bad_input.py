"""Prepares a folder full of bad files: good files give all their samples, and each bad one has the right reason."""

import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data_tools.prepare import run
from data_tools.sets.verify import VerifyConfig
from data_tools.sets.verify import run as verify
from gen1_train.batch import KEY, Sample
from gen1_train.data.shards import ShardSet
from gen1_train.errors import INCOMPLETE
from gen1_train.system.console import console
from gen1_train.video.decode import count, probe, read_clips
from gen1_train.video.geometry import resize_and_crop
from tests.data_tools.bad_files import FLIPS, ODD_BAD_NAMES, RECIPE, SUFFIXES, make_bad, make_good
from tests.data_tools.small_source import config
from tests.running import run as run_command
from tests.video.files import MEDIA, make_video, needs_media, number_of, picture

pytestmark = pytest.mark.slow

SPAN, STEP = 3, 4  # frames of a video that a clip spans, and from one clip to the next
JPEG = 3.0  # largest mean absolute difference, of 255, due to JPEG; a neighboring frame differs by 15
EXPECTED_LOSSES = {  # file -> category, reason
    "empty.mp4": ("unreadable", "the file is empty"),
    "empty.mkv": ("unreadable", "the file is empty"),
    "empty.png": ("unreadable", "not an image that PIL can read|the file is empty"),
    "empty.jpg": ("unreadable", "not an image that PIL can read|the file is empty"),
    "text.mp4": ("unreadable", "Invalid data found.*"),
    "text.jpg": ("unreadable", "not an image that PIL can read"),
    "header first.mp4": ("unreadable", r"broken after \d+ frames: .*|the file ends early: \d+ of 80 frames .*"),
    "header last.mp4": ("unreadable", "the file ends before its header .*"),
    "cut.mkv": ("unreadable", r"broken after \d+ frames: .*|the file ends early: .* of 3\.2 s"),
    "cut.png": ("unreadable", ".*truncated.*"),
    "cut.jpg": ("unreadable", ".*truncated.*"),
    "one frame.mp4": ("too short", "it has 1 of the 3 frames that a clip needs"),
    "few pixels.mp4": ("too small", "2x2 would be enlarged 32 times to 64x48"),
    "one pixel.png": ("too small", "1x1 would be enlarged 48 times to 48x48"),
    "sound.mp4": ("unreadable", "it contains no video stream"),
    "huge.png": ("unreadable", r".*400000000 pixels.* exceeds limit .*"),
    "huge.mov": ("unreadable", "its header has .*: frames may have at most 67108864 pixels"),
    "float.tiff": ("unreadable", "float pixels are not supported.*"),
    "pipe.mp4": ("unreadable", "not a regular file"),
    "link.mp4": ("unreadable", "a link to nothing"),
    **{
        f"flipped {i}.mp4": ("unreadable", r"damaged at frame \d+|broken after .*|.*ends early.*") for i in range(FLIPS)
    },
    **{os.fsdecode(name): ("unreadable", "Invalid data found.*|not an image .*") for name in ODD_BAD_NAMES},
}
DAMAGED = {"header first.mp4", "cut.mkv", *(f"flipped {number}.mp4" for number in range(FLIPS))}  # after their start


@dataclass
class Prepared:
    source: Path
    whole: Path  # the damaged files as they were before
    output: Path
    content: dict[str, int]  # of the good files
    done: subprocess.CompletedProcess[str]

    def losses(self) -> list[dict]:
        return [json.loads(line) for line in (self.output / "failures.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    root = tmp_path_factory.mktemp("bad") / "an odd 'place', with = and ünï"
    source, output = root / "source", root / "set"
    content = make_good(source)
    make_bad(source, root / "whole")
    done = run_command("data_tools.main", f"source={source}", f"output={output}", *RECIPE)
    assert done.returncode == INCOMPLETE, done.stderr[-3000:]
    return Prepared(source, root / "whole", output, content, done)


def samples(output: Path) -> Iterator[Sample]:
    shards = ShardSet(output)
    for name, pool in shards.manifest.pools.items():
        for index in range(pool.samples):
            yield shards.read(name, index, ("frames", "structure", "moments", "image_embedding", "meta"))


def media_files(folder: Path) -> set[str]:
    """Returns all files in a folder and its subfolders that are named as a video or image."""
    files = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return {str(path.relative_to(folder)) for path in files if path.suffix.lower() in SUFFIXES}


def test_good_files_give_all_their_samples(prepared: Prepared) -> None:
    made = Counter(sample.meta["source"] for sample in samples(prepared.output) if sample.meta)
    clips = {name: 1 if frames < 0 else (frames - SPAN) // STEP + 1 for name, frames in prepared.content.items()}
    assert {name: made[name] for name in clips} == clips
    assert set(made) - set(clips) <= DAMAGED


def test_every_file_is_accounted_for(prepared: Prepared) -> None:
    """Each file gives the samples that it promises or is listed as a loss, and no other file is listed."""
    losses = prepared.losses()
    assert sorted(loss["file"] for loss in losses) == sorted(EXPECTED_LOSSES)  # once each
    assert set(prepared.content) | set(EXPECTED_LOSSES) == media_files(prepared.source)
    made = Counter(sample.meta["source"] for sample in samples(prepared.output) if sample.meta)
    assert {loss["file"]: loss["clips"] for loss in losses} == {name: made[name] for name in EXPECTED_LOSSES}


@pytest.mark.parametrize("name", EXPECTED_LOSSES, ids=ascii)
def test_each_loss_has_its_category_and_reason(prepared: Prepared, name: str) -> None:
    (loss,) = (loss for loss in prepared.losses() if loss["file"] == name)
    category, reason = EXPECTED_LOSSES[name]
    assert loss["category"] == category
    assert re.fullmatch(reason, loss["reason"]), loss["reason"]
    assert loss["failed"] == (category == "unreadable") and not loss["transient"]
    assert loss["start"] is None and loss["end"] is None  # the whole file is lost


def test_every_frame_is_the_right_one(prepared: Prepared) -> None:
    """Each frame equals that of the file before the damage, and shows its own number."""
    for sample in samples(prepared.output):
        assert sample.meta is not None and sample.frames is not None
        name, first = sample.meta["source"], sample.meta.get("first_frame")
        if first is None:
            assert [number_of(frame) for frame in sample.frames] == [-prepared.content[name]]
            continue
        assert [number_of(frame) for frame in sample.frames] == [first, first + 2]
        original = prepared.source if name in prepared.content else prepared.whole
        assert difference(original / name, first, sample.frames) < JPEG
        assert sample.meta["seconds"] == pytest.approx([first / 25, (first + 2) / 25], abs=0.01)


def difference(path: Path, first: int, frames: np.ndarray) -> float:
    """Returns the mean absolute difference of a clip from the frames at its position in a video."""
    ((_, clip),) = read_clips(path, [[first, first + 2]])
    cropped = resize_and_crop(clip, 64, 48, pixel_aspect=probe(path).pixel_aspect)
    return float(np.abs(cropped.astype(int) - frames).mean())


def test_colors_and_transparency_are_right(prepared: Prepared) -> None:
    made = {
        sample.meta["source"]: sample.frames
        for sample in samples(prepared.output)
        if sample.meta and sample.frames is not None
    }
    for name in ("good.png", "good.jpg", "cmyk.jpg", "palette.png"):
        assert np.abs(made[name][0].astype(int) - picture(-prepared.content[name])).mean() < 12, name
    for name in ("deep.png", "gray.png"):
        assert np.ptp(made[name][0].astype(int), axis=-1).max() <= 2
        gray = picture(-prepared.content[name]) @ [0.299, 0.587, 0.114]
        assert np.abs(made[name][0, ..., 0] - gray).mean() < 4, name
    assert made["alpha.png"][0, 32:].min() > 240  # transparent pixels are white
    assert np.abs(made["alpha.png"][0, :20].astype(int) - picture(-prepared.content["alpha.png"])[:20]).mean() < 12


def test_damaged_files_keep_their_whole_clips(prepared: Prepared) -> None:
    made = Counter(sample.meta["source"] for sample in samples(prepared.output) if sample.meta)
    for name in DAMAGED:
        assert 0 <= made[name] < (80 - SPAN) // STEP + 1
    assert sum(made[name] > 0 for name in DAMAGED) >= 2


def test_keys_are_unique_and_have_no_dots(prepared: Prepared) -> None:
    keys = [sample.key for sample in samples(prepared.output)]
    assert len(set(keys)) == len(keys) and all(KEY.fullmatch(key) for key in keys)
    names = ("a b.mp4", "a_b.mp4", "a-b.mp4", "a..b.mp4")
    alike = [sample.key for sample in samples(prepared.output) if sample.meta and sample.meta["source"] in names]
    assert len(alike) == 4 and all(key.startswith("a-b-") for key in alike)


def test_the_summary_lists_the_first_failures(prepared: Prepared) -> None:
    failed = [loss for loss in prepared.losses() if loss["failed"]]
    out = prepared.done.stdout
    assert f"{len(failed)} failed, {len(EXPECTED_LOSSES) - len(failed)} dropped; all in {prepared.output}/fail" in out
    prefix = "gen1-data:   "
    shown = [line.removeprefix(prefix) for line in out.splitlines() if line.startswith(prefix)]
    assert len(shown) == 6 and shown[-1] == f"and {len(failed) - 5} more"
    for line, loss in zip(shown[:5], failed, strict=False):
        assert f": {loss['reason']}" in line and ("samples kept" in line) == (loss["clips"] > 0)
    assert r"'a first\udcff.mp4'" in out and r"'a\nsecond.png'" in out
    assert "Traceback" not in prepared.done.stderr and "Warning" not in prepared.done.stderr


def test_the_set_is_intact(prepared: Prepared) -> None:
    assert verify(VerifyConfig(str(prepared.output), workers=1)) is None
    urls = sorted(str(tar) for tar in (prepared.output / "shards").glob("*.tar"))
    read = webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8")
    decoded = {sample["__key__"]: sample["frame00.jpg"] for sample in read}
    ours = {sample.key: sample.frames for sample in samples(prepared.output) if sample.frames is not None}
    assert decoded.keys() == ours.keys()
    assert all(np.abs(decoded[key].astype(int) - ours[key][0]).max() <= 1 for key in ours)


def test_a_second_run_reports_the_frozen_set(prepared: Prepared) -> None:
    again = run_command("data_tools.main", f"source={prepared.source}", f"output={prepared.output}", *RECIPE)
    assert again.returncode == INCOMPLETE and "already frozen" in again.stdout, again.stderr


def test_a_folder_without_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder is a failure, and the other files are used. Root may read everything, so the refusal is simulated."""
    source = tmp_path / "source"
    for folder in ("open", "sealed"):
        (source / folder).mkdir(parents=True)
        make_video(source / folder / "a.mp4", frames=5)
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("sealed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with console("gen1-data"):
        assert run(config(source, tmp_path / "out")) == INCOMPLETE
    (loss,) = map(json.loads, (tmp_path / "out" / "failures.jsonl").read_text().splitlines())
    assert (loss["file"], loss["reason"]) == ("sealed", "the folder cannot be read: Permission denied")
    assert loss["failed"] and not loss["transient"]
    assert "sealed: the folder cannot be read" in capsys.readouterr().out
    assert {sample.meta["source"] for sample in samples(tmp_path / "out") if sample.meta} == {"open/a.mp4"}


@needs_media
def test_real_files(tmp_path: Path) -> None:
    """All but one can be read; that one gives the clips before its damage."""
    assert run(config(MEDIA, tmp_path / "out", max_enlargement=3.0, min_motion=0.0)) == INCOMPLETE
    (loss,) = map(json.loads, (tmp_path / "out" / "failures.jsonl").read_text().splitlines())
    made: dict[str, list[Sample]] = {}
    for sample in samples(tmp_path / "out"):
        assert sample.meta is not None
        made.setdefault(sample.meta["source"], []).append(sample)
    clips = {name: [s for s in all_ if s.meta and s.meta["kind"] == "video"] for name, all_ in made.items()}
    assert (loss["file"], loss["category"], loss["transient"]) == ("corrupted.mp4", "unreadable", False)
    assert re.match(r"broken after \d+ frames", loss["reason"]) and loss["clips"] == len(made["corrupted.mp4"])
    assert made.keys() == media_files(MEDIA)
    for name, video_clips in clips.items():
        whole = 0 if name == loss["file"] else count(MEDIA / name)
        assert len(video_clips) == (min(3, (whole - SPAN) // STEP + 1) if whole else len(video_clips)), name
        seconds = probe(MEDIA / name).seconds
        for sample in video_clips:
            assert sample.meta is not None and sample.frames is not None and seconds is not None
            start, end = sample.meta["seconds"]
            assert 0 <= start <= end <= seconds
            assert difference(MEDIA / name, sample.meta["first_frame"], sample.frames) < JPEG
