"""Whatever people have as frames, masks and pictures is converted exactly, or refused in one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gen1_train.editing.editor import Gen1Editor
from gen1_train.editing.inputs import padded, to_frames, to_mask, to_picture
from gen1_train.errors import UserError
from gen1_train.video.encode import write_video
from miniature.world.render import render_clip
from tests.made_checkpoint import write_checkpoint

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 12, 20, 3), dtype=np.uint8)
AS_TENSOR = torch.from_numpy(FRAMES)


@pytest.mark.parametrize(
    "given",
    [
        FRAMES,
        FRAMES / 255,
        (FRAMES / 255).astype(np.float32),
        AS_TENSOR,
        AS_TENSOR.movedim(-1, 1),
        AS_TENSOR.movedim(-1, 1) / 255,
        [Image.fromarray(frame) for frame in FRAMES],
        tuple(FRAMES),
        list(AS_TENSOR.movedim(-1, 1)),
        (frame for frame in FRAMES),
    ],
    ids=[
        "uint8",
        "float64",
        "float32",
        "tensor",
        "channels first",
        "floats first",
        "PIL",
        "tuple",
        "tensors",
        "generator",
    ],
)
def test_frames_of_any_kind_are_the_same(given: Any) -> None:
    frames = to_frames(given)
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, FRAMES)


def test_one_picture_is_one_frame() -> None:
    for given in (FRAMES[0], AS_TENSOR[0].movedim(-1, 0), Image.fromarray(FRAMES[0])):
        np.testing.assert_array_equal(to_frames(given), FRAMES[:1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (FRAMES.astype(np.float32), r"floating-point values from 0 to 255: give them in \[0, 1\], or uint8"),
        (FRAMES / 127.5 - 1, "floating-point values from -1 to 1"),
        (np.full((1, 4, 4, 3), np.nan), "floating-point values from nan to nan"),
        (FRAMES.astype(np.int64), "the type int64: give uint8"),
        (FRAMES.astype(np.uint16), "the type uint16: give uint8"),
        (FRAMES[..., 0], r"the shape \(5, 12, 20\): give \(n, height, width, 3\), RGB"),
        (FRAMES[:0], r"the shape \(0, 12, 20, 3\)"),
        (np.moveaxis(FRAMES, -1, 1), r"the shape \(5, 3, 12, 20\)"),
        (torch.zeros(3, 8, 3), "it is unclear which side holds the channels"),
        ([], "frames are empty"),
        ([FRAMES[0], FRAMES[1, :6]], r"frames\[1\] is 20x6, and frames\[0\] is 20x12: all must have one size"),
        ([FRAMES[0], None], r"frames\[1\] is a NoneType: give an array"),
        (None, "frames are a NoneType: give an array"),
        ("nowhere.mp4", "frames=nowhere.mp4 does not exist"),
    ],
)
def test_other_frames_are_refused_in_one_line(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        to_frames(given)
    assert "\n" not in str(error.value)


def test_a_file_is_read_at_its_own_size(tmp_path: Path) -> None:
    Image.fromarray(FRAMES[0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(to_frames(tmp_path / "a.png"), FRAMES[:1])
    np.testing.assert_array_equal(to_picture(str(tmp_path / "a.png"), "image"), FRAMES[0])
    write_video(tmp_path / "a.mp4", FRAMES, 25)
    assert to_frames(str(tmp_path / "a.mp4")).shape == FRAMES.shape
    (tmp_path / "b.mp4").write_text("no video")
    with pytest.raises(UserError, match=r"frames=.*b\.mp4 cannot be decoded"):
        to_frames(tmp_path / "b.mp4")
    with pytest.raises(UserError, match=r"image=.*b\.mp4 cannot be read"):
        to_picture(tmp_path / "b.mp4", "image")


def test_a_transparent_picture_becomes_white() -> None:
    clear = Image.new("RGBA", (4, 3), (10, 20, 30, 0))
    assert (to_picture(clear, "image") == 255).all()
    assert (to_picture(Image.new("L", (4, 3), 7), "image") == 7).all()


MASK = np.zeros((5, 12, 20), np.float32)
MASK[:, 3:, 7:] = 1


@pytest.mark.parametrize(
    "given",
    [
        MASK,
        MASK > 0,
        (MASK * 255).astype(np.uint8),
        torch.from_numpy(MASK),
        MASK[0],
        Image.fromarray((MASK[0] * 255).astype(np.uint8)),
        [Image.fromarray((frame * 255).astype(np.uint8)) for frame in MASK],
    ],
    ids=["float", "bool", "uint8", "tensor", "one", "PIL", "PILs"],
)
def test_masks_of_any_kind_are_the_same(given: Any) -> None:
    mask = to_mask(given, (5, 12, 20))
    assert mask.dtype == np.float32
    np.testing.assert_allclose(mask, MASK, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (MASK[:3], r"mask has the shape \(3, 12, 20\): give \(5, 12, 20\), or \(12, 20\) for all frames"),
        (MASK[:, :6], r"mask has the shape \(5, 6, 20\)"),
        (MASK * 255, r"mask has values from 0 to 255: give them in \[0, 1\]"),
        (MASK.astype(int), "mask has the type int64"),
        (Image.new("L", (20, 20)), "mask is 20x20, and the frames are 20x12"),
    ],
)
def test_other_masks_are_refused(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        to_mask(given, (5, 12, 20))


def test_padding_repeats_the_last_row_and_column() -> None:
    out = padded(FRAMES, 8, height_axis=1)
    assert out.shape == (5, 16, 24, 3)
    np.testing.assert_array_equal(out[:, :12, :20], FRAMES)
    np.testing.assert_array_equal(out[:, 15, 23], FRAMES[:, 11, 19])
    assert padded(out, 8, height_axis=1).shape == out.shape


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Gen1Editor:
    folder = tmp_path_factory.mktemp("editor")
    write_checkpoint(folder / "stage5")
    return Gen1Editor.from_pretrained(folder / "stage5", device="cpu")


def test_an_edit_has_the_size_that_was_given(editor: Gen1Editor) -> None:
    frames = render_clip(3, 3, 66, 116).frames
    example = render_clip(5, 1, 64, 64).frames[0]
    edited = editor(frames, image=example, steps=2)
    assert edited.shape == frames.shape and edited.dtype == np.uint8
    for same, image in (((frames / 255).astype(np.float32), Image.fromarray(example)), (list(frames), example / 255)):
        np.testing.assert_array_equal(editor(same, image=image, steps=2), edited)


def test_a_mask_keeps_the_input_exactly_at_any_size(editor: Gen1Editor) -> None:
    frames = render_clip(3, 3, 66, 116).frames
    mask = np.zeros((66, 116), bool)
    mask[:30, 50:] = True
    edited = editor(frames, image=frames[0], mask=mask, steps=2)
    np.testing.assert_array_equal(edited[:, ~mask], frames[:, ~mask])
    assert (edited[:, mask] != frames[:, mask]).any()


def test_the_foreground_is_a_mask(editor: Gen1Editor) -> None:
    frames = render_clip(3, 3, 64, 112).frames
    far = editor(frames, image=frames[0], mask="background", steps=2)
    near = editor(frames, image=frames[0], mask="foreground", steps=2)
    kept = (far == frames).all(axis=-1) | (near == frames).all(axis=-1)
    assert kept.all()  # every pixel is in one of the two


def test_nothing_is_printed_without_a_terminal(editor: Gen1Editor, capfd: pytest.CaptureFixture[str]) -> None:
    editor(render_clip(3, 1, 64, 112).frames, image=FRAMES[0], steps=1)
    assert "".join(capfd.readouterr()) == ""


def test_an_empty_list_of_prompts_is_refused(editor: Gen1Editor) -> None:
    with pytest.raises(UserError, match="prompt is an empty list"):
        editor(FRAMES, prompt=[])
