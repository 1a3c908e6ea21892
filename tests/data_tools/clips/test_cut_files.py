"""Cuts clips out of real files: cuts, still pictures, and a file that ends early."""

from pathlib import Path

import av
import numpy as np
import pytest

from data_tools.clips.cut import Clip, CutConfig, Drop, Progress, cut_clips
from gen1_train.video.decoding.reading import read_frames
from gen1_train.video.encode import REPRODUCIBLE
from gen1_train.video.errors import VideoError
from tests.video.files import MEDIA, make_video, needs_media, picture


def real(name: str, config: CutConfig) -> list[Clip | Drop]:
    items = cut_clips(read_frames(MEDIA / name), config, 0, lambda rgb: rgb[:16, :16])
    return [item for item in items if not isinstance(item, Progress)]


@needs_media
def test_no_clip_of_a_real_video_crosses_a_cut() -> None:
    cuts = [30, 76, 137, 187, 242]  # near 1.2, 3.0, 5.5, 7.5 and 9.7 seconds
    items = real("bikes.mp4", CutConfig())
    clips = [item for item in items if isinstance(item, Clip)]
    assert [clip.first for clip in clips] == [33, 79, 140, 190]
    assert all(clip.first + 28 + 3 < cut or clip.first >= cut + 3 for clip in clips for cut in cuts)
    drops = [item for item in items if isinstance(item, Drop)]
    assert [(drop.category, drop.seconds) for drop in drops] == [
        ("no room between cuts", (0.0, 1.16)),
        ("no room between cuts", (9.68, 9.96)),
    ]


@needs_media
@pytest.mark.parametrize("name, clips", [("carphone_pristine.mp4", 3), ("bigbuckbunny.mp4", 4)])
def test_moving_clips_of_real_videos_are_kept(name: str, clips: int) -> None:
    items = real(name, CutConfig())
    assert len(items) == clips and all(isinstance(item, Clip) and item.motion > 2 for item in items)


def encode(path: Path, pictures: list[np.ndarray], options: dict[str, str]) -> Path:
    """Writes pictures, uint8 RGB (h, w, 3), to an H.264 file."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options=options | {"x264-params": REPRODUCIBLE})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for pixels in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"crf": "30"}, {"g": "12", "bf": "2"}])
@pytest.mark.parametrize("kind", ["static", "black"])
def test_a_still_picture_encoded_as_a_video_is_dropped(tmp_path: Path, options: dict[str, str], kind: str) -> None:
    shown = picture(0, 320, 240) if kind == "static" else np.zeros((240, 320, 3), np.uint8)
    noise = np.random.default_rng(0)
    pictures = [np.clip(shown + noise.normal(0, 1, shown.shape), 0, 255).astype(np.uint8) for _ in range(70)]
    frames = read_frames(encode(tmp_path / "still.mp4", pictures, options))
    (drop,) = cut_clips(frames, CutConfig(), 70, crop=lambda rgb: rgb)
    assert isinstance(drop, Drop) and drop.category == kind and drop.count == 2


def test_a_truncated_video_gives_its_whole_clips(tmp_path: Path) -> None:
    path = make_video(tmp_path / "cut short.mp4", 120, width=320, height=240)
    whole = [item for item in cut_clips(read_frames(path), CutConfig(), 0, lambda rgb: rgb) if isinstance(item, Clip)]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 7 // 10])
    items: list[Clip | Drop | Progress] = []
    with pytest.raises(VideoError):
        for item in cut_clips(read_frames(path), CutConfig(), 0, lambda rgb: rgb):
            items.append(item)
    assert len(whole) == 3 and 1 <= len(items) < 3
    for item, same in zip(items, whole):
        assert isinstance(item, Clip) and item.first == same.first and np.array_equal(item.frames, same.frames)
