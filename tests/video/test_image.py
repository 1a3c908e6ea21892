from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gen1_train.video.image import image_size, read_image
from gen1_train.video.probe import VideoError
from tests.video.files import picture


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    Image.fromarray(picture(3)).save(tmp_path / "a.png", exif=exif)
    assert image_size(tmp_path / "a.png") == (48, 64)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(picture(3), -1))


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1"])
def test_every_common_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    Image.fromarray(picture(3)).convert(mode).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif").shape == (48, 64, 3)


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 4), np.uint8), "RGBA").save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == 255).all()


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(picture(0)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:300])
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    for name, reason in (("text.png", "no image"), ("cut.png", "truncated"), ("deep.png", "8 bits")):
        with pytest.raises(VideoError, match=reason) as caught:
            read_image(tmp_path / name)
        assert not caught.value.transient
    with pytest.raises(VideoError, match="No such file") as caught:
        read_image(tmp_path / "absent.png")
    assert caught.value.transient
