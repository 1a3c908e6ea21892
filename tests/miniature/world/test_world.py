"""The world on disk: real files, the list that gen1-data reads, the optional truth, and one line for a mistake."""

import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data_tools.source.sources import open_source
from gen1_train.errors import UserError
from miniature.world import world as command
from miniature.world.render import render_clip, render_image
from miniature.world.scene import RICH, sample_scene
from miniature.world.world import SOURCES, World, read_captions, write_world

SMALL = World(clips=2, images=1, seed=3, split="held_out", frames=5, height=64, width=112, fps=12)
NAMES = ["clip-0000.mp4", "clip-0001.mp4", "image-0000.png"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, SMALL)
    return folder


def modification_times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_files_contain_the_rendered_frames(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [*NAMES, SOURCES]
    expected = render_clip(300_000, 5, 64, 112, split="held_out")
    with av.open(str(folder / "clip-0000.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 12
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert decoded.shape == expected.frames.shape
    assert np.abs(decoded.astype(float) - expected.frames).mean() < 6
    image = np.asarray(Image.open(folder / "image-0000.png"))
    np.testing.assert_array_equal(image, render_image(350_000, 64, 112, split="held_out").frames[0])


def test_gen1_data_reads_the_list_with_its_captions(folder: Path, tmp_path: Path) -> None:
    scan = open_source(str(folder / SOURCES)).scan(tmp_path)
    assert not scan.failures
    captions = [sample_scene(seed, "held_out").caption for seed in (300_000, 300_001, 350_000)]
    assert [(file.path, file.kind, file.caption) for file in scan.files] == [
        (name, "image" if name.endswith("png") else "video", caption) for name, caption in zip(NAMES, captions)
    ]
    assert list(read_captions(folder / SOURCES).items()) == list(zip(NAMES, captions))


def test_a_strided_clip_has_every_other_frame_of_the_scene(tmp_path: Path) -> None:
    world = World(clips=1, images=0, frames=3, height=64, width=112, fps=6, stride=2, supersample=2, style=RICH)
    write_world(tmp_path, world, truth=True)
    with np.load(tmp_path / "truth" / "clip-0000.npz") as truth:
        expected = render_clip(0, 5, 64, 112, 2, "train", RICH)
        np.testing.assert_array_equal(truth["depth"], expected.depth[::2])
    with av.open(str(tmp_path / "clip-0000.mp4")) as container:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert np.abs(decoded.astype(float) - expected.frames[::2]).mean() < 6


def test_existing_files_are_kept_and_truth_is_optional(folder: Path) -> None:
    before = modification_times(folder)
    (folder / "clip-0001.mp4").unlink()
    write_world(folder, SMALL, truth=True)
    after = modification_times(folder)
    truth = {f"truth/{name.partition('.')[0]}.npz" for name in NAMES}
    assert after.keys() - before.keys() == truth
    assert {name for name in before if before[name] != after[name]} == {"clip-0001.mp4", SOURCES}
    expected = render_clip(300_001, 5, 64, 112, split="held_out")
    with np.load(folder / "truth" / "clip-0001.npz") as stored:
        np.testing.assert_array_equal(stored["depth"], expected.depth)
        np.testing.assert_array_equal(stored["solids"], expected.solids)
    write_world(folder, SMALL, truth=True)
    assert {name for name, time in modification_times(folder).items() if time != after[name]} == {SOURCES}


def test_a_folder_of_another_world_is_refused(folder: Path) -> None:
    before = modification_times(folder)
    for other in (replace(SMALL, split="train"), replace(SMALL, seed=4, clips=5)):
        with pytest.raises(UserError, match="holds another world, of another seed, split or style"):
            write_world(folder, other)
    assert modification_times(folder) == before


def test_every_file_of_every_world_has_its_own_scene() -> None:
    seeds = [seed for number in (0, 1) for seed in World(50_000, 50_000, number).files().values()]
    assert len(set(seeds)) == len(seeds) == 200_000


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--size", "448"], "argument --size: '448' is not WIDTHxHEIGHT, such as 448x256"),
        (["--size", "axb"], "argument --size: 'axb' is not WIDTHxHEIGHT, such as 448x256"),
        (["--size", "111x64"], "size=111x64: both sides must be even (H.264) and 16 or more"),
        (["--clips", "-1"], "clips=-1 is out of range: give 0 to 50000"),
        (["--images", "50001"], "images=50001 is out of range: give 0 to 50000"),
        (["--clips", "few"], "argument --clips: invalid int value: 'few'"),
        (["--frames", "0"], "seed=0, frames=0, fps=24, stride=1, supersample=1: need 0, 1, 1, 1, 1 or more"),
        (["--seed", "-2"], "seed=-2, frames=40, fps=24, stride=1, supersample=1: need 0, 1, 1, 1, 1 or more"),
        (["--split", "test"], "argument --split: invalid choice: 'test'"),
    ],
)
def test_a_mistake_ends_in_one_line_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    line: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["world", str(tmp_path / "world"), *arguments])
    with pytest.raises(SystemExit) as ended:
        command.main()
    (error,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and error.startswith(f"python -m miniature.world: error: {line}")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_created_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["world", str(tmp_path / "file"), "--clips=0", "--images=1", "--size=32x32"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    (error,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert error == f"python -m miniature.world: error: {tmp_path / 'file'} cannot be written: File exists"


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(UserError, match="split=test is not one of train, held_out, all"):
        World(1, 1, split="test")
