"""Selected frames one by one: the bytes of `resize_and_crop`, in little memory, or a VideoError with the remedy."""

import tracemalloc
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from gen1_train.video import decode
from gen1_train.video.decode import VideoError, probe, read_clips
from gen1_train.video.encode import write_video
from gen1_train.video.geometry import resize_and_crop
from gen1_train.video.stream import Selection, expected_frames, output_fps, probe_input, read_selected
from tests.video.files import MEDIA, cut_short, make_video, needs_media, number_of, overwrite, picture


def numbers(path: Path, selection: Selection, width: int = 64, height: int = 48) -> list[int]:
    return [number_of(frame.pixels) for frame in read_selected(path, selection, width, height)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rotation": 90},
        {"sample_aspect": "2:1"},
        {"rotation": 270, "sample_aspect": "4:3"},
        {"width": 50, "height": 98},  # portrait
    ],
)
@pytest.mark.parametrize("size", [(48, 32), (33, 50), (128, 64)])
def test_the_bytes_equal_those_of_resize_and_crop(tmp_path: Path, options: dict, size: tuple[int, int]) -> None:
    path = make_video(tmp_path / "a.mp4", 30, **options)
    ((_, clip),) = read_clips(path, [list(range(4, 30, 3))[:6]])
    frames = list(read_selected(path, Selection(start=4, stride=3, frames=6), *size))
    assert np.array_equal([frame.pixels for frame in frames], resize_and_crop(clip, *size, probe(path).pixel_aspect))
    assert [frame.index for frame in frames] == [4, 7, 10, 13, 16, 19]
    assert [frame.seconds for frame in frames] == pytest.approx([number * 3 / 25 for number in range(6)])
    assert [frame.source_seconds for frame in frames] == pytest.approx([(4 + number * 3) / 25 for number in range(6)])


def test_uneven_timestamps_are_kept_and_used_in_a_selection_by_time(tmp_path: Path) -> None:
    starts = [0, 1, 2, 10, 11, 30, 31, 32]  # in 1/25 s
    path = make_video(tmp_path / "a.mp4", 8, options={"bf": "0"}, starts=starts)
    seconds = [frame.seconds for frame in read_selected(path, Selection(start=2), 64, 48)]
    assert seconds == pytest.approx([(start - 2) / 25 for start in starts[2:]])
    moments = range(0, 33, 5)
    assert numbers(path, Selection(fps=5)) == [max(i for i in range(8) if starts[i] <= moment) for moment in moments]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.webm", "a.ts"])
def test_every_container_is_read_and_a_video_of_one_frame(tmp_path: Path, name: str) -> None:
    codec = {"codec": "libvpx-vp9", "options": {"cpu-used": "8"}} if name == "a.webm" else {}
    for count in (1, 30):
        path = make_video(tmp_path / name, count, **codec)
        frames = list(read_selected(path, Selection(), 64, 48))
        assert [number_of(frame.pixels) for frame in frames] == list(range(count))
        assert [frame.seconds for frame in frames] == pytest.approx([i / 25 for i in range(count)], abs=1e-3)
        assert expected_frames(probe_input(path), Selection()) == count


@pytest.mark.parametrize(
    ("selection", "count", "fps"),
    [
        (Selection(), 60, 25),
        (Selection(start=10), 50, 25),
        (Selection(start=10, stride=4), 13, 6.25),
        (Selection(frames=7), 7, 25),
        (Selection(fps=5), 12, 5),
        (Selection(fps=12.5, start=1, frames=100), 30, 12.5),
        (Selection(fps=50), 120, 50),
    ],
)
def test_the_number_of_frames_is_known_in_advance(tmp_path: Path, selection: Selection, count: int, fps: float) -> None:
    path = make_video(tmp_path / "a.mp4")
    info = probe_input(path)
    assert expected_frames(info, selection) == count == len(numbers(path, selection))
    assert output_fps(info, selection) == fps


def test_a_start_beyond_the_end_is_an_error(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 20)
    assert numbers(path, Selection(start=19)) == [19]
    with pytest.raises(VideoError, match="start=20 is beyond the end: the video has 20 frames"):
        numbers(path, Selection(start=20))
    assert expected_frames(probe_input(path), Selection(start=20)) is None


@pytest.mark.parametrize("damage", [cut_short, overwrite])
@pytest.mark.parametrize("selection", [Selection(), Selection(start=5, stride=2), Selection(fps=7)])
def test_a_damaged_file_is_an_error_with_the_place_and_the_remedy(
    tmp_path: Path, damage: Callable[[Path], None], selection: Selection
) -> None:
    path = make_video(tmp_path / "a.mp4", 120, width=128, height=96)
    original = numbers(path, selection, 128, 96)
    damage(path)
    frames = []
    with pytest.raises(VideoError, match=r"(broken after|damaged at|ends early)") as caught:
        for frame in read_selected(path, selection, 128, 96):
            frames.append(frame)
    assert 0 < len(frames) < len(original)
    assert [number_of(frame.pixels) for frame in frames] == original[: len(frames)]
    assert f"intact up to {frames[-1].source_seconds:.2f} s: frames={len(frames)} stops" in str(caught.value)
    # the remedy works
    remedy = Selection(selection.start, len(frames), selection.stride, selection.fps)
    assert numbers(path, remedy, 128, 96) == original[: len(frames)]


def test_cover_art_is_not_the_video(tmp_path: Path) -> None:
    with (
        av.open(str(make_video(tmp_path / "plain.mp4", 20))) as plain,
        av.open(str(tmp_path / "cover.mp4"), "w") as container,
    ):
        cover = container.add_stream("png", rate=1)
        cover.width = 640
        cover.height = 480
        cover.pix_fmt = "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        video = container.add_stream_from_template(plain.streams.video[0])
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((480, 640, 3), np.uint8), format="rgb24")))
        for packet in plain.demux(plain.streams.video[0]):
            if packet.size:
                packet.stream = video
                container.mux(packet)
    info = probe_input(tmp_path / "cover.mp4")
    assert (info.width, info.height) == (64, 48)
    assert numbers(tmp_path / "cover.mp4", Selection()) == list(range(20))


def test_an_image_is_a_video_of_one_frame(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated clockwise
    Image.fromarray(np.rot90(picture(3)).copy()).save(tmp_path / "a.png", exif=exif)
    info = probe_input(tmp_path / "a.png")
    assert (info.width, info.height, info.frames) == (64, 48, 1)
    for selection in (Selection(), Selection(frames=9, stride=3), Selection(fps=50)):
        (frame,) = read_selected(tmp_path / "a.png", selection, 64, 48)
        assert np.array_equal(frame.pixels, picture(3)) and frame.seconds == 0
    with pytest.raises(VideoError, match="start=1 is beyond the end: an image is"):
        numbers(tmp_path / "a.png", Selection(start=1))


def test_large_frames_stay_in_the_child(tmp_path: Path) -> None:
    """Only resized frames reach this process, one at a time."""
    path = tmp_path / "4k.mp4"
    write_video(path, np.full((3, 2160, 3840, 3), 100, np.uint8), 25)
    frame_bytes = 112 * 64 * 3
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_selected(path, Selection(), 112, 64))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 3 and peak < 10 * frame_bytes + 200_000  # a 4K frame has 25 MB


def test_a_stream_that_is_closed_early_leaves_nothing_open(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4")
    stream = read_selected(path, Selection(), 64, 48)
    assert [number_of(frame.pixels) for frame in islice(stream, 3)] == [0, 1, 2]
    idle = len(decode._idle)
    stream.close()  # type: ignore[attr-defined]
    assert len(decode._idle) == idle + 1
    assert numbers(path, Selection(frames=2)) == [0, 1]


@needs_media
@pytest.mark.parametrize(
    ("name", "selection", "count", "size"),
    [
        ("av1_video.mkv", Selection(stride=8), 16, (640, 360)),
        ("video_90.mov", Selection(), 3, (320, 568)),
        ("unordered.mov", Selection(), 4, (50, 50)),
        ("h265_video.mp4", Selection(start=3), 7, (128, 128)),
        ("nasa_13013.mp4", Selection(frames=5, fps=2), 5, (480, 270)),
    ],
)
def test_frames_of_real_files(name: str, selection: Selection, count: int, size: tuple[int, int]) -> None:
    info = probe_input(MEDIA / name)
    assert (info.width, info.height) == size
    frames = list(read_selected(MEDIA / name, selection, 64, 48))
    seconds = [frame.seconds for frame in frames]
    assert len(frames) == count and seconds == sorted(set(seconds)) and seconds[0] == 0
    assert all(frame.pixels.shape == (48, 64, 3) for frame in frames)


@needs_media
def test_a_real_file_with_damage_in_the_middle() -> None:
    with pytest.raises(VideoError, match=r"broken after 28 frames.*intact up to 1\.10 s: frames=12 stops"):
        list(read_selected(MEDIA / "corrupted.mp4", Selection(), 64, 48))
    assert len(list(read_selected(MEDIA / "corrupted.mp4", Selection(frames=12), 64, 48))) == 12
