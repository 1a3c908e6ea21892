"""Image files: upright sRGB from every mode, profile and format, or a VideoError."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from gen1_train.video.errors import VideoError
from gen1_train.video.image import image_size, read_image
from tests.video.colors import (
    ADOBE_RGB,
    CYAN_INK,
    DISPLAY_P3,
    cmyk_profile,
    from_lab,
    from_xyz,
    rgb_profile,
    srgb_curve,
)
from tests.video.files import picture

RAMP = np.linspace(0, 1, 1024)


def plain(color: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    """An image of one color."""
    return Image.new(mode, (16, 16), color if len(color) > 1 else color[0])


def color_of(path: Path) -> list[int]:
    """The color of an image that has only one."""
    pixels = read_image(path)
    assert pixels.dtype == np.uint8 and pixels.shape == (16, 16, 3)
    assert (pixels == pixels[0, 0]).all()
    return pixels[0, 0].tolist()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    Image.fromarray(picture(3)).save(tmp_path / "a.png", exif=exif)
    assert image_size(tmp_path / "a.png") == (48, 64)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(picture(3), -1))
    deep = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) << 4
    Image.fromarray(deep).save(tmp_path / "deep.png", exif=exif)
    assert image_size(tmp_path / "deep.png") == (48, 64)
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png")[..., 0], np.rot90(deep >> 8, -1))


@pytest.mark.parametrize(
    "mode, color, name, expected",
    [
        ("L", (77,), "a.png", [77, 77, 77]),
        ("1", (1,), "a.tif", [255, 255, 255]),
        ("CMYK", (255, 0, 0, 0), "a.tif", [0, 255, 255]),
        ("LA", (77, 255), "a.png", [77, 77, 77]),
        ("RGBA", (10, 20, 30, 255), "a.webp", [10, 20, 30]),
        ("I;16", (0xABCD,), "a.png", [0xAB] * 3),
        ("I;16", (0xABCD,), "a.tif", [0xAB] * 3),
        ("I;16B", (0xABCD,), "a.tif", [0xAB] * 3),
        ("I", (0xABCD,), "a.tif", [0xAB] * 3),
        ("RGB", (1, 2, 3), "a.bmp", [1, 2, 3]),
    ],
)
def test_every_mode_becomes_rgb(
    tmp_path: Path, mode: str, color: tuple[int, ...], name: str, expected: list[int]
) -> None:
    path = tmp_path / name
    plain(color, mode).save(path, **({"lossless": True} if name.endswith("webp") else {}))
    assert color_of(path) == expected
    assert image_size(path) == (16, 16)


def test_palettes_are_applied(tmp_path: Path) -> None:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([9, 9, 9, 200, 100, 50])
    image.save(tmp_path / "a.png")
    assert color_of(tmp_path / "a.png") == [200, 100, 50]
    image.save(tmp_path / "b.png", transparency=1)
    assert color_of(tmp_path / "b.png") == [255, 255, 255]


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    for mode, color, expected in (
        ("RGBA", (0, 0, 0, 0), [255, 255, 255]),
        ("LA", (0, 0), [255, 255, 255]),
        ("RGBA", (0, 100, 200, 51), [204, 224, 244]),  # a fifth of the color, four fifths of white
    ):
        plain(color, mode).save(tmp_path / "a.png")
        assert color_of(tmp_path / "a.png") == expected
    plain((7,), "L").save(tmp_path / "b.png", transparency=7)
    assert color_of(tmp_path / "b.png") == [255, 255, 255]
    plain((0xAB07,), "I;16").save(tmp_path / "c.png", transparency=7)  # a 16-bit value, which does not occur
    assert color_of(tmp_path / "c.png") == [0xAB] * 3


def test_cmyk_jpegs_are_not_inverted(tmp_path: Path) -> None:
    plain((255, 0, 0, 0), "CMYK").save(tmp_path / "a.jpg", quality=100)
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()  # which stores inverted CMYK
    np.testing.assert_allclose(color_of(tmp_path / "a.jpg"), [0, 255, 255], atol=2)


@pytest.mark.parametrize("color", [(200, 100, 50), (90, 180, 120), (255, 255, 255), (0, 0, 0)])
@pytest.mark.parametrize("name", ["display p3", "adobe rgb"])
def test_colors_are_converted_to_srgb(tmp_path: Path, name: str, color: tuple[int, int, int]) -> None:
    primaries, curve = (DISPLAY_P3, srgb_curve(RAMP)) if name == "display p3" else (ADOBE_RGB, RAMP**2.2)
    profile = rgb_profile(primaries, curve)
    expected = from_xyz(primaries @ np.interp(np.array(color) / 255, RAMP, curve))
    if len(set(color)) > 1:
        assert np.abs(expected - color).max() > 8  # so that a missing conversion is detected
    plain(color).save(tmp_path / "a.png", icc_profile=profile)
    np.testing.assert_allclose(color_of(tmp_path / "a.png"), expected, atol=1.5)
    plain((*color, 255), "RGBA").save(tmp_path / "b.png", icc_profile=profile)
    assert color_of(tmp_path / "b.png") == color_of(tmp_path / "a.png")


def test_an_srgb_profile_changes_nothing(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(picture(3)).save(tmp_path / "a.png", icc_profile=profile)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture(3))


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk_is_converted_by_the_profile(tmp_path: Path, name: str) -> None:
    for inks, expected in (
        ((255, 0, 0, 0), from_lab(CYAN_INK)),
        ((0, 0, 0, 0), [255, 255, 255]),
        ((0, 0, 0, 255), [0, 0, 0]),
    ):
        plain(inks, "CMYK").save(tmp_path / name, icc_profile=cmyk_profile(), quality=100)
        np.testing.assert_allclose(color_of(tmp_path / name), expected, atol=3)


def test_a_profile_that_does_not_fit_is_ignored(tmp_path: Path) -> None:
    profile_bytes = rgb_profile(DISPLAY_P3, srgb_curve(RAMP))
    for profile in (b"not a profile", profile_bytes[:200], cmyk_profile()):
        plain((200, 100, 50)).save(tmp_path / "a.png", icc_profile=profile)
        assert color_of(tmp_path / "a.png") == [200, 100, 50]
    plain((77,), "L").save(tmp_path / "gray.png", icc_profile=profile_bytes)  # a color profile for a gray image
    assert color_of(tmp_path / "gray.png") == [77, 77, 77]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_the_first_picture_of_an_animation_is_read(tmp_path: Path, name: str) -> None:
    options = {"lossless": True} if name == "a.webp" else {}
    colors = [(200, 100, 50), (0, 0, 255), (0, 255, 0)]
    first, *rest = [plain(color) for color in colors]
    first.save(tmp_path / name, save_all=True, append_images=rest, duration=100, **options)
    with Image.open(tmp_path / name) as image:
        assert image.n_frames == 3  # type: ignore[attr-defined]
    assert color_of(tmp_path / name) == [200, 100, 50]


def test_an_image_of_one_pixel_is_read(tmp_path: Path) -> None:
    for name in ("a.png", "a.bmp", "a.tif"):
        Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / name)
        assert read_image(tmp_path / name).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "a.tif"])
def test_a_truncated_file_is_a_permanent_error(tmp_path: Path, name: str) -> None:
    Image.fromarray(picture(3)).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    for length in (0, 1, 10, len(content) // 3, len(content) * 2 // 3):
        (tmp_path / name).write_bytes(content[:length])
        with pytest.raises(VideoError) as caught:
            read_image(tmp_path / name)
        assert not caught.value.transient and str(caught.value)


def test_flipped_bits_raise_no_other_error(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "a.tif"):
        Image.fromarray(picture(3)).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        for _ in range(40):
            damaged = bytearray(content)
            damaged[random.integers(min(len(content), 400))] ^= 1 << random.integers(8)
            (tmp_path / name).write_bytes(damaged)
            try:
                assert read_image(tmp_path / name).dtype == np.uint8
            except VideoError as error:
                assert not error.transient


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    header = struct.pack(">2I5B", 60_000, 60_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000))
    content = _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    for read in (image_size, read_image):
        with pytest.raises(VideoError, match="3600000000 pixels") as caught:
            read(tmp_path / "bomb.png")
        assert not caught.value.transient


def test_an_unreadable_file_is_an_error_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((4, 4), 1 << 20, np.int32)).save(tmp_path / "deep.tif")
    for name, reason in (
        ("text.png", "not an image"),
        ("empty.png", "not an image"),
        ("script.png", "not an image"),  # PIL would start another program for it
        ("float.tif", "float pixels"),
        ("deep.tif", "32-bit gray"),
    ):
        with pytest.raises(VideoError, match=reason) as caught:
            read_image(tmp_path / name)
        assert not caught.value.transient
    for name, reason in (("absent.png", "No such file"), (".", "directory")):
        with pytest.raises(VideoError, match=reason) as caught:
            read_image(tmp_path / name)
        assert caught.value.transient


def test_a_picture_of_too_many_pixels_is_refused_before_the_parent_gets_it(tmp_path: Path) -> None:
    Image.new("1", (13_000, 10_400)).save(tmp_path / "wide.png")
    with pytest.raises(VideoError, match="13000x10400 pixels: 134217728 pixels are the maximum") as caught:
        read_image(tmp_path / "wide.png")
    assert not caught.value.transient
