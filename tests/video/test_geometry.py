"""Buckets, and resizing frames to their size."""

import numpy as np
import pytest

from gen1_train.video.geometry import enlargement, nearest_bucket, parse_bucket, resize_and_crop

PAPER = ["320x320", "384x320", "320x384", "448x256", "256x448"]


def test_buckets_are_parsed() -> None:
    assert parse_bucket("448x256") == (448, 256)
    for wrong in ("448", "448x", "x256", "448X256", "0x64", "-8x8", "448x256 "):
        with pytest.raises(ValueError, match="not a bucket"):
            parse_bucket(wrong)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [((1920, 1080), "448x256"), ((1080, 1920), "256x448"), ((640, 480), "384x320"), ((500, 499), "320x320")],
)
def test_the_nearest_bucket_has_the_closest_aspect_ratio(size: tuple[int, int], bucket: str) -> None:
    assert nearest_bucket(*size, PAPER) == bucket


def test_the_crop_is_centered_and_resizing_keeps_the_picture() -> None:
    ramp = np.linspace(0, 255, 300).astype(np.uint8)
    wide = np.broadcast_to(ramp[None, None, :, None], (2, 100, 300, 3))
    out = resize_and_crop(wide, 50, 50)
    assert out.shape == (2, 50, 50, 3) and out.dtype == np.uint8
    # the middle third of the ramp remains, at its place
    assert out[0, 0, 0, 0] == pytest.approx(86, abs=2) and out[0, 0, -1, 0] == pytest.approx(169, abs=2)
    assert np.abs(out[0, 25, :, 0].astype(int) - np.linspace(86, 169, 50)).max() <= 2


def test_shrinking_does_not_alias() -> None:
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    assert np.abs(resize_and_crop(stripes, 16, 16).astype(int) - 127).max() < 20


def test_frames_of_the_target_size_are_unchanged() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize_and_crop(frames, 64, 48), frames)


def test_enlargement_is_the_scale_of_the_frame() -> None:
    assert enlargement(224, 256, 448, 256) == 2
    assert enlargement(896, 512, 448, 256) == 0.5


@pytest.mark.parametrize("pixel_aspect", [0.5, 0.75, 4 / 3, 2.0])
def test_pixels_that_are_not_square_are_stretched(pixel_aspect: float) -> None:
    """A circle that is stored in pixels that are not square becomes a circle again."""
    stored_width = round(200 / pixel_aspect)
    rows, columns = np.mgrid[:100, :stored_width]
    inside = ((columns + 0.5) * pixel_aspect - 100) ** 2 + (rows + 0.5 - 50) ** 2 < 30**2
    frames = np.where(inside, 255, 0).astype(np.uint8)[None, :, :, None].repeat(3, -1)
    for width, height in ((200, 100), (100, 100), (64, 96)):
        out = resize_and_crop(frames, width, height, pixel_aspect)[0, :, :, 0] > 127
        assert out.shape == (height, width)
        across, down = out.any(0).sum(), out.any(1).sum()
        assert across == pytest.approx(down, abs=2)
        assert across == pytest.approx(min(60 * enlargement(200, 100, width, height), width), abs=2)
