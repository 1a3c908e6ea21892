"""Masks: cropped exactly like the input, one for each of its frames."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gen1_train.video.encode import write_video
from gen1_train.video.errors import VideoError
from gen1_train.video.mask import read_mask
from gen1_train.video.stream import Selection, read_selected
from tests.video.files import make_video
from tests.video.pictures import write_animation, write_image

SIZE = (64, 48)  # of the input


def gray(values: np.ndarray) -> np.ndarray:
    return values.astype(np.uint8)[..., None].repeat(3, -1)


def test_an_image_is_used_for_all_frames(tmp_path: Path) -> None:
    values = np.arange(48 * 64).reshape(48, 64) % 256
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "mask.png")
    masks = list(read_mask(tmp_path / "mask.png", Selection(start=40, frames=5, stride=2), 5, *SIZE, SIZE))
    assert len(masks) == 5
    for mask in masks:
        assert mask.dtype == np.float32 and mask.shape == (48, 64)
        assert np.abs(mask - values / 255).max() < 1e-6


def test_white_is_edited_and_black_is_not_at_any_size(tmp_path: Path) -> None:
    """The mask differs in size from the input, and the crop removes its sides like those of the input."""
    values = np.zeros((96, 128))
    values[:, :64] = 255
    Image.fromarray(gray(values)).save(tmp_path / "mask.png")
    (mask,) = read_mask(tmp_path / "mask.png", Selection(), 1, 32, 48, SIZE)
    assert (mask[:, :15] == 1).all() and (mask[:, 17:] == 0).all()
    assert 0 <= mask.min() and mask.max() <= 1


def test_the_crop_equals_that_of_the_input(tmp_path: Path) -> None:
    """A mask with the pictures of the input equals the frames of the input."""
    path = make_video(tmp_path / "a.mp4", 20, rotation=90, sample_aspect="4:3")
    selection = Selection(start=2, stride=3)
    frames = [frame.pixels for frame in read_selected(path, selection, 40, 40)]
    masks = list(read_mask(path, selection, len(frames), 40, 40, (48, 85)))
    for frame, mask in zip(frames, masks, strict=True):
        assert np.abs(mask - frame @ np.array([0.299, 0.587, 0.114]) / 255).max() < 1e-5


def test_a_video_has_one_mask_for_each_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "mask.mp4", [gray(np.full((48, 64), 20 * number)) for number in range(12)], fps=25)
    masks = list(read_mask(tmp_path / "mask.mp4", Selection(start=3, frames=4, stride=2), 4, *SIZE, SIZE))
    assert [mask.mean() for mask in masks] == pytest.approx([20 * n / 255 for n in (3, 5, 7, 9)], abs=0.01)


@pytest.mark.parametrize("name", ["mask.webp", "mask.gif", "mask.png"])
def test_an_animation_is_a_mask_for_each_frame(tmp_path: Path, name: str) -> None:
    frames = [gray(np.full((48, 64), 20 * number)) for number in range(6)]
    write_animation(tmp_path / name, frames, [40, 60] * 3)
    masks = list(read_mask(tmp_path / name, Selection(start=1), 5, *SIZE, SIZE))
    assert [mask.mean() for mask in masks] == pytest.approx([20 * n / 255 for n in range(1, 6)], abs=0.01)


def test_a_heic_is_a_mask_for_all_frames(tmp_path: Path) -> None:
    values = np.zeros((48, 64))
    values[:, :32] = 255
    write_image(tmp_path / "mask.heic", gray(values), 8, tile_size=16).rename(tmp_path / "mask.mp4")
    masks = list(read_mask(tmp_path / "mask.mp4", Selection(), 3, *SIZE, SIZE))
    assert len(masks) == 3 and all(np.abs(mask - values / 255).max() == 0 for mask in masks)


@pytest.mark.parametrize("count", [8, 15])
def test_another_number_of_frames_is_an_error_with_both_numbers(tmp_path: Path, count: int) -> None:
    path = make_video(tmp_path / "mask.mp4", 12)
    with pytest.raises(VideoError, match=f"it has 12 frames where the input has {count}"):
        list(read_mask(path, Selection(), count, *SIZE, SIZE))


@pytest.mark.parametrize("name", ["mask.png", "mask.mp4"])
def test_another_aspect_ratio_is_an_immediate_error_with_both_sizes(tmp_path: Path, name: str) -> None:
    if name == "mask.png":
        Image.fromarray(gray(np.zeros((48, 64)))).save(tmp_path / name)
    else:
        make_video(tmp_path / name, 3)
    with pytest.raises(VideoError, match="it is 64x48, and the input is 1280x720: a mask must have the aspect"):
        read_mask(tmp_path / name, Selection(), 3, *SIZE, (1280, 720))
    read_mask(tmp_path / name, Selection(), 3, *SIZE, (853, 640))  # 4:3, except for rounding


def test_an_unreadable_mask_is_an_immediate_error(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_text("not an image")
    with pytest.raises(VideoError, match="not an image"):
        read_mask(tmp_path / "mask.png", Selection(), 3, *SIZE, SIZE)
