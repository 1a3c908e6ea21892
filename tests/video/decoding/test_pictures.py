"""Pictures that Pillow reads in the child process: orientations, HEIC and AVIF, animations."""

import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gen1_train.video.audio import AudioSource, usable_audio
from gen1_train.video.decode import probe, read_clips
from gen1_train.video.errors import VideoError
from gen1_train.video.image import image_size, read_image
from gen1_train.video.stream import Selection, is_image, read_selected
from tests.video.files import FAULTS, make_video, number_of, picture
from tests.video.pictures import FORMATS, ORIENTATIONS, exif_of, stored, write_animation, write_image, xmp_of

ANIMATED = (".gif", ".png", ".webp", ".avif")
LOSS = {".jpg": 3.0, ".avif": 3.0}  # mean difference of lossy formats


def check_upright(path: Path, expected: np.ndarray, loss: float = 0.0) -> None:
    pixels = read_image(path)
    assert image_size(path) == pixels.shape[1::-1] == expected.shape[1::-1]
    assert np.abs(pixels.astype(int) - expected).mean() <= loss
    info = probe(path)
    assert (info.width, info.height) == image_size(path)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_is_upright_in_every_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = write_image(tmp_path / f"a{suffix}", picture(3), orientation)
    check_upright(path, picture(3), LOSS.get(suffix, 0.0))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("mode", ["tiff_lzw", "16 bits", "palette", "gray and alpha", "XMP", "EXIF and XMP"])
def test_every_kind_of_tiff_is_upright(tmp_path: Path, mode: str, orientation: int) -> None:
    image = stored(picture(3), orientation)
    expected = picture(3)
    options: dict = {"exif": exif_of(orientation)}
    if mode == "tiff_lzw":
        options["compression"] = "tiff_lzw"
    elif mode == "16 bits":
        image = Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) << 8)
        expected = picture(3)[..., :1].repeat(3, -1)
    elif mode == "palette":
        image = image.quantize(256)
        expected = np.asarray(image.convert("RGB")) if orientation == 1 else expected
    elif mode == "gray and alpha":
        image = image.convert("LA")
        expected = np.asarray(Image.fromarray(picture(3)).convert("L").convert("RGB"))
    elif mode == "XMP":
        options = {"tiffinfo": {700: xmp_of(orientation)}}
    else:
        options["tiffinfo"] = {700: xmp_of(orientation)}
    image.save(tmp_path / "a.tif", **options)
    check_upright(tmp_path / "a.tif", expected, 3.0 if mode == "palette" else 0.0)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
def test_an_orientation_in_xmp_is_obeyed(tmp_path: Path, suffix: str) -> None:
    options = FORMATS[suffix]
    if suffix == ".png":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp_of(6).decode())
        options = {"pnginfo": info}
    else:
        options = {**options, "xmp": xmp_of(6)}
    stored(picture(3), 6).save(tmp_path / f"a{suffix}", **options)
    check_upright(tmp_path / f"a{suffix}", picture(3), LOSS.get(suffix, 0.0))


@pytest.mark.slow
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_heic_of_tiles_is_read_whole_whatever_its_name(tmp_path: Path, orientation: int) -> None:
    """A phone stores a photo as tiles of 512x512, and ffmpeg reads each as a stream."""
    expected = picture(5, 700, 600)
    path = write_image(tmp_path / "a.heic", expected, orientation, tile_size=512)
    with av.open(str(path)) as container:
        assert {(stream.width, stream.height) for stream in container.streams.video} == {(512, 512)}
        assert len(container.streams.video) == 4
    for name in ("a.heic", "b.jpg", "c.mp4", "d"):
        if name != "a.heic":
            shutil.copy(path, tmp_path / name)
        check_upright(tmp_path / name, expected)
        assert is_image(tmp_path / name)
        (frame,) = read_selected(tmp_path / name, Selection(), 700, 600)
        np.testing.assert_array_equal(frame.pixels, expected)


def test_the_primary_picture_of_several_is_read(tmp_path: Path) -> None:
    first = Image.fromarray(picture(1))
    rest = [Image.fromarray(picture(2)), Image.fromarray(picture(3))]
    options = FORMATS[".heic"]
    first.save(tmp_path / "a.heic", save_all=True, append_images=rest, primary_index=1, **options)
    check_upright(tmp_path / "a.heic", picture(2))


def test_transparent_pixels_of_heic_and_avif_are_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 32, 64))
    for name in ("a.heic", "a.avif"):
        image.save(tmp_path / name, **FORMATS[name[1:]])
        pixels = read_image(tmp_path / name).astype(int)
        assert np.abs(pixels[:, :28] - 255).max() <= 2 and np.abs(pixels[:, 36:] - [255, 0, 0]).max() <= 4


def test_hdr_pictures_are_refused(tmp_path: Path) -> None:
    """By the transfer function PQ, like videos: their colors would be pale."""
    write_image(tmp_path / "a.heic", picture(3), color_primaries=9, transfer_characteristics=16)
    make_video(tmp_path / "b.avif", 1, "libsvtav1", width=128, height=128, color_tags={"color_trc": 16})
    for name in ("a.heic", "b.avif"):
        with pytest.raises(VideoError, match=r"HDR picture \(PQ") as caught:
            read_image(tmp_path / name)
        assert not caught.value.transient
    make_video(tmp_path / "c.avif", 1, "libsvtav1", width=128, height=128, color_tags={"color_trc": 1})
    assert read_image(tmp_path / "c.avif").shape == (128, 128, 3)


def test_a_raw_photo_is_refused_instead_of_its_preview(tmp_path: Path) -> None:
    for name, tags in (("a.dng", {254: 1, 50706: b"\1\4\0\0"}), ("b.nef", {254: 1, 330: 8})):
        Image.fromarray(picture(3)).save(tmp_path / name, format="TIFF", tiffinfo=tags)
        with pytest.raises(VideoError, match="a raw photo, whose first picture is only a preview"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["a.heic", "a.avif"])
def test_a_damaged_file_is_a_permanent_error(tmp_path: Path, name: str) -> None:
    content = write_image(tmp_path / name, picture(3)).read_bytes()
    for length in (0, 1, 10, len(content) // 3, len(content) * 2 // 3):
        (tmp_path / name).write_bytes(content[:length])
        with pytest.raises(VideoError) as caught:
            read_image(tmp_path / name)
        assert not caught.value.transient and str(caught.value)


@pytest.mark.parametrize("name", ["a.heic", "a.avif"])
def test_flipped_bits_raise_no_other_error(tmp_path: Path, name: str) -> None:
    random = np.random.default_rng(0)
    content = write_image(tmp_path / name, picture(3)).read_bytes()
    for _ in range(60):
        damaged = bytearray(content)
        damaged[random.integers(len(content))] ^= 1 << random.integers(8)
        (tmp_path / name).write_bytes(damaged)
        try:
            assert read_image(tmp_path / name).dtype == np.uint8
        except VideoError as error:
            assert str(error)


@pytest.mark.parametrize("name", ["a.heic", "a.avif"])
def test_a_header_with_too_many_pixels_is_refused(tmp_path: Path, name: str) -> None:
    content = write_image(tmp_path / name, picture(3)).read_bytes()
    sizes = content.count(b"ispe\0\0\0\0")
    assert sizes
    for start in range(len(content)):
        if content[start : start + 8] == b"ispe\0\0\0\0":
            content = content[: start + 8] + (30_000).to_bytes(4, "big") * 2 + content[start + 16 :]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VideoError, match=r"not an image|size") as caught:
        read_image(tmp_path / name)
    assert not caught.value.transient


@pytest.mark.parametrize("suffix", ANIMATED)
def test_the_pictures_of_an_animation_come_at_their_times(tmp_path: Path, suffix: str) -> None:
    durations = [40, 200, 100, 30, 500]
    path = write_animation(tmp_path / f"a{suffix}", [picture(n) for n in range(5)], durations)
    assert not is_image(path)
    frames = list(read_selected(path, Selection(), 64, 48))
    assert [number_of(frame.pixels) for frame in frames] == list(range(5))
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.04, 0.24, 0.34, 0.37])
    info = probe(path)
    assert (info.width, info.height, info.frames) == (64, 48, 5)
    assert info.fps == pytest.approx(5 / 0.87) and info.seconds == pytest.approx(0.87)
    numbers = [number_of(frame.pixels) for frame in read_selected(path, Selection(fps=20), 64, 48)]
    assert numbers[:8] == [0, 1, 1, 1, 1, 2, 2, 3]  # on display at 0, 50, 100, … ms
    ((decoder, clip),) = read_clips(path, [[1, 3]])
    assert [number_of(frame) for frame in clip] == [1, 3]
    assert decoder == ("pyav" if suffix == ".gif" else "pillow")
    assert number_of(read_image(path)) == 0 and image_size(path) == (64, 48)


@pytest.mark.parametrize("suffix", ANIMATED)
def test_transparent_pixels_of_an_animation_are_white(tmp_path: Path, suffix: str) -> None:
    pictures = []
    for number in range(3):
        image = Image.new("RGBA", (64, 48), (0, 0, 0, 0))
        image.paste((255, 0, 0, 255), (number * 16, 0, number * 16 + 16, 48))
        pictures.append(image)
    disposal = {".gif": 2, ".png": 1}
    options = {"disposal": disposal[suffix]} if suffix in disposal else {}
    path = write_animation(tmp_path / f"a{suffix}", pictures, 100, **options)
    for number, frame in enumerate(read_selected(path, Selection(), 64, 48)):
        expected = np.full((48, 64, 3), 255)
        expected[:, number * 16 : number * 16 + 16] = [255, 0, 0]
        assert np.abs(frame.pixels - expected).mean() < 2


@pytest.mark.parametrize("suffix", ANIMATED[:3])
def test_a_picture_without_a_duration_is_shown_for_a_tenth_of_a_second(tmp_path: Path, suffix: str) -> None:
    path = write_animation(tmp_path / f"a{suffix}", [picture(n) for n in range(3)], [0, 20, 50])
    assert [frame.seconds for frame in read_selected(path, Selection(), 64, 48)] == pytest.approx([0, 0.1, 0.12])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", [".png", ".webp"])  # libavif's encoder of Pillow 12.3 crashes for AVIF
def test_an_animation_is_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    pictures = [stored(picture(number), orientation) for number in range(3)]
    path = write_animation(tmp_path / f"a{suffix}", pictures, 100, exif=exif_of(orientation))
    info = probe(path)
    assert (info.width, info.height) == image_size(path) == (64, 48)
    for number, frame in enumerate(read_selected(path, Selection(), 64, 48)):
        assert np.abs(frame.pixels.astype(int) - picture(number)).mean() <= LOSS.get(suffix, 0.0)


def test_the_default_image_of_an_apng_is_not_part_of_the_animation(tmp_path: Path) -> None:
    path = write_animation(tmp_path / "a.png", [picture(n) for n in range(4)], 100, default_image=True)
    assert probe(path).frames == 3
    assert [number_of(frame.pixels) for frame in read_selected(path, Selection(), 64, 48)] == [1, 2, 3]


@pytest.mark.parametrize("suffix", ANIMATED)
def test_an_animation_that_was_cut_off_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = write_animation(tmp_path / f"a{suffix}", [picture(n) for n in range(8)], 100)
    content = path.read_bytes()
    for share in (0.5, 0.7, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(VideoError) as caught:
            list(read_selected(path, Selection(), 64, 48))
        assert not caught.value.transient


def test_too_large_an_animation_is_refused(tmp_path: Path) -> None:
    pictures = [Image.new("1", (9000, 9000), number) for number in (0, 1)]
    path = write_animation(tmp_path / "a.png", pictures, 100)
    with pytest.raises(VideoError, match="9000x9000 pixels"):
        probe(path)


def test_a_sequence_in_a_heif_file_is_read_without_its_still_picture(tmp_path: Path) -> None:
    """Made of an AVIF sequence, whose brands are replaced by those that say nothing about its codec."""
    path = write_animation(tmp_path / "a.avif", [picture(n) for n in range(5)], 40)
    content = path.read_bytes()
    length = int.from_bytes(content[:4], "big")
    brands = content[16:length].replace(b"avif", b"iso9").replace(b"avis", b"iso9")
    path.with_suffix(".heics").write_bytes(content[:8] + b"msf1" + content[12:16] + brands + content[length:])
    with av.open(str(path.with_suffix(".heics"))) as container:
        assert len(container.streams.video) == 2
    assert [
        number_of(frame.pixels) for frame in read_selected(path.with_suffix(".heics"), Selection(), 64, 48)
    ] == list(range(5))


@pytest.mark.parametrize("name", ["a.jpg", "a.heic", "b.gif", "b.png", "b.webp", "b.avif"])
def test_pictures_have_no_sound_and_no_line_about_it(tmp_path: Path, name: str) -> None:
    if name.startswith("a"):
        write_image(tmp_path / name, picture(3))
    else:
        write_animation(tmp_path / name, [picture(n) for n in range(3)], 100)
    assert usable_audio(AudioSource(tmp_path / name)) == (None, None)


def test_a_jpeg_that_ffmpeg_takes_for_something_else_has_no_sound() -> None:
    assert usable_audio(AudioSource(FAULTS / "noise40.jpg")) == (None, None)
    (frame,) = read_selected(FAULTS / "noise40.jpg", Selection(), 64, 48)
    assert frame.pixels.shape == (48, 64, 3)
