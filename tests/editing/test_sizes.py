"""The size of an edit and its windows: a bucket by default, the input's own size to the pixel with size=input."""

import functools
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from gen1_train.edit import edit
from gen1_train.editing.config import EditConfig
from gen1_train.editing.editor import Gen1Editor
from gen1_train.editing.sizes import EditSize, choose_size
from gen1_train.errors import UserError
from gen1_train.video.decoding.probe import VideoInfo
from gen1_train.video.encode import VideoWriter
from miniature.world.render import render_clip
from tests.made_checkpoint import write_checkpoint

BUCKETS = ("112x64", "64x112", "80x80")
FRAMES = render_clip(3, 9, 101, 155).frames
DIALS: dict[str, Any] = {"steps": 2, "omega_t": 1.3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of three buckets, a clip of 9 frames of 155x101, one of the bucket's size, and an example image."""
    folder = tmp_path_factory.mktemp("sizes")
    write_checkpoint(folder / "stage5", buckets=BUCKETS)
    for name, frames in (("odd", FRAMES), ("bucket", render_clip(3, 9, 64, 112).frames)):
        with VideoWriter(folder / f"{name}.mp4", 12, keep_odd=True) as writer:
            for frame in frames:
                writer.write(frame)
    Image.fromarray(FRAMES[0, :64, :64]).save(folder / "example.png")
    mask = np.zeros((101, 155), np.uint8)
    mask[:, 90:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return folder


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gen1Editor, "from_pretrained", functools.cache(Gen1Editor.from_pretrained))
        yield


@pytest.fixture
def editor(folder: Path) -> Gen1Editor:
    return Gen1Editor.of(config(folder, folder / "edit.mp4"))  # the one that `edit` loads


def config(folder: Path, output: Path, **changes: Any) -> EditConfig:
    base = EditConfig(
        checkpoint=str(folder / "stage5"),
        input=str(folder / "odd.mp4"),
        image=str(folder / "example.png"),
        output=str(output),
        overwrite=True,
        device="cpu",
        **DIALS,
    )
    return replace(base, **changes)


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def sized(width: int, height: int, **settings: Any) -> EditSize:
    info = VideoInfo(width, height, 25, 9, 1, rotation=0, codec="h264", pixel_format="yuv420p")
    return choose_size(EditConfig(input="a.mp4", **settings), BUCKETS, 8, info)


def test_windows_have_the_size_of_the_bucket_with_the_nearest_aspect() -> None:
    assert sized(1280, 720) == EditSize((112, 64), (112, 64), 8)
    assert sized(1280, 720, size="input") == EditSize((1280, 720), (112, 64), 8)
    assert sized(719, 1281, size="input") == EditSize((719, 1281), (64, 112), 8)
    assert sized(1280, 720, size="500x500") == EditSize((500, 500), (80, 80), 8)
    assert sized(1280, 720, size="input", bucket="80x80") == EditSize((1280, 720), (80, 80), 8)
    assert sized(1280, 720, size="input").area == (8, 14)


def test_padding_reaches_the_next_multiple_and_is_cut_off_again() -> None:
    size = EditSize((155, 101), (112, 64), 8)
    padded = size.padded(FRAMES[0])
    assert padded.shape == (104, 160, 3) and np.array_equal(padded[103], padded[100])
    assert np.array_equal(size.cropped(padded), FRAMES[0])


def test_a_crop_and_a_frame_smaller_than_a_window_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "gen1_train"):
        sized(1280, 720, size="640x352")
        assert not caplog.records
        sized(1280, 720, size="400x400")
        sized(100, 60, size="input")
    assert [record.getMessage() for record in caplog.records] == [
        "only the center of input=a.mp4 (1280x720) is edited: 44 % of the picture is cropped to fit 400x400; "
        "size=WIDTHxHEIGHT chooses another shape, as in size=533x300",
        "size=input: 100x60 is smaller than 112x64, the size at which the model is at its best: leave size= out",
    ]


@pytest.mark.parametrize("size", ["wide", "100", "0x5", "-3x4", "5x", "Input", ""])
def test_what_is_no_size_is_one_line(folder: Path, tmp_path: Path, size: str) -> None:
    with pytest.raises(UserError) as error:
        edit(config(folder, tmp_path / "edit.mp4", size=size))
    assert str(error.value) == f"size={size}: give size=input, or WIDTHxHEIGHT in pixels"


def test_at_the_size_of_the_bucket_the_file_is_that_of_a_plain_edit(folder: Path, tmp_path: Path) -> None:
    settings = {"input": str(folder / "bucket.mp4"), "t_s": 3, "mask": "foreground"}
    files = []
    for number, size in enumerate((None, "input", "112x64")):
        output = tmp_path / f"{number}.mp4"
        edit(config(folder, output, size=size, **settings))
        files.append(output.read_bytes())
    assert files[0] == files[1] == files[2]


def test_the_output_has_the_input_s_own_odd_size_and_its_pixels_outside_of_the_mask(
    folder: Path, tmp_path: Path, editor: Gen1Editor
) -> None:
    seen: set[tuple[int, ...]] = set()
    hook = editor.unet.register_forward_pre_hook(lambda module, inputs: seen.add(tuple(inputs[0].shape[3:])))
    gray = tmp_path / "gray.mp4"
    edit(config(folder, tmp_path / "edit.mp4", size="input", mask=str(folder / "mask.png"), structure_output=str(gray)))
    hook.remove()
    assert seen == {(8, 14)}  # latents of a window
    edited = frames_of(tmp_path / "edit.mp4").astype(int)
    assert edited.shape == FRAMES.shape == frames_of(gray).shape
    assert np.abs(edited - FRAMES)[:, :, :80].mean() < 3 < np.abs(edited - FRAMES)[:, :, 100:].mean()
    edit(config(folder, tmp_path / "sweep.mp4", size="155x101", sweep="t_s=0,7", frames=1))
    assert frames_of(tmp_path / "sweep.mp4").shape[2] >= 3 * 155


def test_in_python_frames_are_edited_in_windows_of_a_size(editor: Gen1Editor) -> None:
    settings: dict[str, Any] = {"image": FRAMES[0], **DIALS}
    plain, same = editor(FRAMES, **settings), editor(FRAMES, window_size="200x200", **settings)
    assert np.array_equal(plain, same)
    nearest, other = (editor(FRAMES, window_size=size, **settings) for size in ("nearest", "112x64"))
    assert nearest.shape == FRAMES.shape and np.array_equal(nearest, other) and not np.array_equal(nearest, plain)
    with pytest.raises(UserError, match=r"^window_size=100x60: both sides must be multiples of 8 pixels$"):
        editor(FRAMES, window_size="100x60", **settings)
    with pytest.raises(UserError, match=r"^window_size=big: 'big' is not a bucket"):
        editor(FRAMES, window_size="big", **settings)
