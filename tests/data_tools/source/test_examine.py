"""What a file of the source is: a video or an image, by its content."""

import os
from pathlib import Path

import numpy as np
import pytest

from data_tools.clips.cut import CutConfig
from data_tools.clips.read import FileReader
from data_tools.failures import Failure
from data_tools.pipeline import Clip
from data_tools.source.examine import MediaFile, examine
from data_tools.source.sources import open_source
from gen1_train.errors import UserError
from gen1_train.video.encode import write_video
from tests.data_tools.small_source import quick_recipe
from tests.video.files import make_video, number_of, picture
from tests.video.pictures import write_animation, write_image

ANIMATED = (".gif", ".png", ".webp", ".avif")


def examined(folder: Path, **recipe: object) -> dict[str, MediaFile | Failure]:
    source = open_source(str(folder))
    return {file.path: examine(source, quick_recipe(**recipe), file) for file in source.scan(folder / "out").files}


def clips_of(folder: Path, media: MediaFile, **recipe: object) -> list[Clip]:
    reader = FileReader(open_source(str(folder)), quick_recipe(**recipe), stills=False)
    try:
        return [item for item in reader.read(media) if isinstance(item, Clip)]
    finally:
        reader.close()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ANIMATED)
def test_an_animation_gives_clips_and_a_still_picture_an_image(tmp_path: Path, suffix: str) -> None:
    write_animation(tmp_path / f"moving{suffix}", [picture(n) for n in range(20)], [40, 80] * 10)
    write_image(tmp_path / f"still{suffix}", picture(7))
    moving, still = examined(tmp_path).values()
    assert isinstance(moving, MediaFile) and isinstance(still, MediaFile)
    assert (moving.kind, moving.frames, moving.width, moving.height) == ("video", 20, 64, 48)
    assert moving.fps == pytest.approx(1 / 0.06)
    assert (still.kind, still.frames, still.fps, still.bucket) == ("image", 1, 0.0, "64x48")
    clips = clips_of(tmp_path, moving)
    assert clips and all(clip.pool.kind == "video" for clip in clips)
    assert clips[0].meta["decoder"] == ("pyav" if suffix == ".gif" else "pillow")
    first = clips[0].meta["first_frame"]
    assert [number_of(frame) for frame in clips[0].frames] == [first, first + 2]
    (image,) = clips_of(tmp_path, still)
    assert image.pool.kind == "image" and image.meta["kind"] == "image" and number_of(image.frames[0]) == 7


@pytest.mark.parametrize(("wanted", "strides"), [(None, (2, 2)), (12.5, (2, 3)), (8.0, (3, 5)), (100.0, (1, 1))])
def test_clips_are_cut_at_the_wanted_frames_a_second(
    tmp_path: Path, wanted: float | None, strides: tuple[int, int]
) -> None:
    """A whole stride for each video: the one that comes nearest, and at least 1."""
    cut = CutConfig(frames=3, stride=2, fps=wanted, shots=False, trim=0, min_motion=0.0)
    for rate, stride in zip((25, 40), strides):
        folder = tmp_path / str(rate)
        folder.mkdir()
        write_video(folder / "a.mp4", np.stack([picture(n) for n in range(12)]), rate)
        (media,) = examined(folder, cut=cut).values()
        assert isinstance(media, MediaFile) and media.fps == rate
        first = clips_of(folder, media, cut=cut)[0]
        assert first.meta["stride"] == stride and first.meta["seconds"] == [0, pytest.approx(2 * stride / rate)]
        assert [number_of(frame) for frame in first.frames] == [0, stride, 2 * stride]
    assert cut.of_video(25).of_video(40) == cut.of_video(25)


def test_a_video_is_too_short_by_the_stride_that_it_gets(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", np.stack([picture(n) for n in range(12)]), 25)
    for wanted, found in ((5.0, MediaFile), (4.0, Failure)):  # 11 of 12 frames, and 13
        (media,) = examined(tmp_path, cut=CutConfig(frames=3, fps=wanted)).values()
        assert isinstance(media, found), media
    with pytest.raises(UserError, match=r"recipe\.cut\.fps=0.0"):
        CutConfig(fps=0.0).check()


def test_the_content_decides_where_the_suffix_is_wrong(tmp_path: Path) -> None:
    expected = picture(5, 640, 480)
    write_image(tmp_path / "a.heic", expected, 6, tile_size=256).rename(tmp_path / "photo.mp4")
    make_video(tmp_path / "b.mp4", 20).rename(tmp_path / "video.jpg")
    photo, video = examined(tmp_path).values()
    assert isinstance(photo, MediaFile) and isinstance(video, MediaFile)
    assert (photo.path, photo.kind, photo.width, photo.height) == ("photo.mp4", "image", 640, 480)
    assert (video.path, video.kind, video.frames) == ("video.jpg", "video", 20)
    (image,) = clips_of(tmp_path, photo)
    assert np.abs(image.frames[0].astype(int) - picture(5)).mean() < 90 and image.pool.kind == "image"
    assert clips_of(tmp_path, video)


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_the_bucket_has_the_aspect_of_the_upright_picture(tmp_path: Path, orientation: int) -> None:
    for suffix in (".jpg", ".tif", ".heic", ".avif", ".png", ".webp"):
        write_image(tmp_path / f"a{suffix}", picture(3, 64, 96), orientation)
    found = examined(tmp_path, image_buckets=["64x48", "48x64"]).values()
    assert len(found) == 6
    for media in found:
        assert isinstance(media, MediaFile)
        assert (media.width, media.height, media.bucket) == (64, 96, "48x64")


def test_a_listed_file_without_a_suffix_is_examined(tmp_path: Path) -> None:
    write_image(tmp_path / "a.heic", picture(3)).rename(tmp_path / "photo")
    make_video(tmp_path / "b.mp4", 20).rename(tmp_path / "video")
    (tmp_path / "text").write_text("not for training")
    (tmp_path / "list.csv").write_text("path\nphoto\nvideo\ntext\n")
    source = open_source(str(tmp_path / "list.csv"))
    files = source.scan(tmp_path / "out").files
    photo, text, video = [examine(source, quick_recipe(), file) for file in files]
    assert isinstance(photo, MediaFile) and photo.kind == "image"
    assert isinstance(video, MediaFile) and video.kind == "video"
    assert isinstance(text, Failure) and text.category == "unreadable"


def test_a_picture_that_is_gone_stays_in_its_task(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", picture(3))
    source = open_source(str(tmp_path))
    (file,) = source.scan(tmp_path / "out").files
    os.unlink(tmp_path / "a.png")
    media = examine(source, quick_recipe(), file)
    assert isinstance(media, MediaFile) and media.bucket == ""
