"""gen1-edit from files to files: whatever goes in, the output is the edit at the input's pace, or there is none."""

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from gen1_train.edit import EditConfig, edit
from gen1_train.editor import Gen1Editor
from gen1_train.errors import UserError
from gen1_train.video.encode import write_video
from miniature.render import render_clip
from tests.made_checkpoint import write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and inputs: a clip of 12 frames and an example image."""
    folder = tmp_path_factory.mktemp("edit")
    write_checkpoint(folder / "runs" / "stage5")
    write_video(folder / "clip.mp4", render_clip(3, 12, 96, 128).frames, 30000 / 1001)
    Image.fromarray(render_clip(5, 1, 64, 64).frames[0]).save(folder / "example.png")
    (folder / "text.png").write_text("no image")
    return folder


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    """Each edit here takes the same editor; loading it is most of the time that an edit takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gen1Editor, "from_pretrained", functools.cache(Gen1Editor.from_pretrained))
        yield


def config(folder: Path, **changes: Any) -> EditConfig:
    given = EditConfig(
        checkpoint=str(folder / "runs" / "stage5"),
        input=str(folder / "clip.mp4"),
        image=str(folder / "example.png"),
        output=str(folder / "out" / "edit.mp4"),
        steps=2,
        device="cpu",
    )
    return replace(given, **changes)


def frames_of(path: Path) -> tuple[np.ndarray, Any]:
    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]), rate


def test_an_edit_has_the_inputs_frames_at_its_pace_and_the_buckets_size(folder: Path, tmp_path: Path) -> None:
    edit(config(folder, output=str(tmp_path / "new" / "edit.mp4"), structure_output=str(tmp_path / "grey.mp4")))
    frames, rate = frames_of(tmp_path / "new" / "edit.mp4")
    assert frames.shape == (12, 64, 112, 3) and abs(float(rate) - 29.97) < 0.01
    grey, _ = frames_of(tmp_path / "grey.mp4")
    assert grey.shape == frames.shape and np.ptp(grey.astype(int), axis=-1).max() < 12  # grey, but for the codec
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["edit.mp4", "grey.mp4", "new"]


@pytest.mark.parametrize(
    ("changes", "count", "rate"),
    [
        ({"frames": 1}, 1, None),
        ({"start": 3, "frames": 5}, 5, 29.97),
        ({"stride": 4}, 3, 7.49),
        ({"fps": 10.0}, 4, 10.0),
        ({"input": "example.png"}, 1, None),
    ],
)
def test_a_selection_of_the_input(
    folder: Path, tmp_path: Path, changes: dict[str, Any], count: int, rate: float | None
) -> None:
    if "input" in changes:
        changes = {"input": str(folder / changes["input"])}
    edit(config(folder, output=str(tmp_path / "edit.mp4"), **changes))
    frames, found = frames_of(tmp_path / "edit.mp4")
    assert len(frames) == count and (rate is None or abs(float(found) - rate) < 0.02)


def test_same_seed_same_frames_and_another_seed_others(folder: Path, tmp_path: Path) -> None:
    """To the bit before x264, which now and then makes another file, off by a few levels, of the same frames."""
    for name, changes in {"a": {}, "b": {}, "c": {"seed": 1}}.items():
        edit(config(folder, output=str(tmp_path / f"{name}.mp4"), frames=3, **changes))
    a, b, c = (frames_of(tmp_path / f"{name}.mp4")[0].astype(int) for name in "abc")
    assert np.abs(a - b).mean() < 1 < 3 < np.abs(a - c).mean()
    editor = Gen1Editor.from_pretrained(str(folder / "runs" / "stage5"), "cpu")
    clip, example = render_clip(3, 3, 64, 112).frames, render_clip(5, 1, 64, 64).frames[0]
    first, again = (editor(clip, image=example, steps=2) for _ in range(2))
    assert np.array_equal(first, again)


def test_the_batch_and_other_prompts_beside_it_change_no_frame(folder: Path) -> None:
    """But for the rounding of sums, which may move a pixel by one."""
    editor = Gen1Editor.from_pretrained(str(folder / "runs" / "stage5"), "cpu")
    clip, example = render_clip(3, 12, 64, 112).frames, render_clip(5, 1, 64, 64).frames[0]
    made = [editor(clip, image=example, steps=2, batch=batch, omega_t=1.5).astype(int) for batch in (1, 3, 16)]
    assert all(np.abs(other - made[0]).max() <= 1 for other in made[1:])
    other_seed = editor(clip, image=example, steps=2, omega_t=1.5, seed=1)
    assert np.abs(other_seed.astype(int) - made[0]).mean() > 3


def test_a_sweep_is_one_labelled_video_with_the_input_first(folder: Path, tmp_path: Path) -> None:
    edit(config(folder, output=str(tmp_path / "sweep.mp4"), sweep="t_s=0,7", frames=3))
    frames, _ = frames_of(tmp_path / "sweep.mp4")
    assert len(frames) == 3 and frames.shape[2] >= 3 * 112
    apart = {}
    for t_s in (0, 7):
        edit(config(folder, output=str(tmp_path / "one.mp4"), t_s=t_s, frames=3))
        alone, _ = frames_of(tmp_path / "one.mp4")
        third = frames[:, :, 2 * (112 + 4) : 2 * (112 + 4) + 112].astype(int)  # below its label
        apart[t_s] = min(np.abs(third[:, y : y + 64] - alone).mean() for y in range(frames.shape[1] - 63))
    assert apart[7] < apart[0] / 2, apart  # both were encoded, and of noise little is left as it was


def test_outside_of_the_mask_the_input_stays(folder: Path, tmp_path: Path) -> None:
    mask = np.zeros((96, 128), np.uint8)
    mask[:, 64:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    edit(config(folder, output=str(tmp_path / "masked.mp4"), mask=str(tmp_path / "mask.png")))
    edit(config(folder, output=str(tmp_path / "all.mp4")))
    masked, everywhere = (frames_of(tmp_path / name)[0].astype(int) for name in ("masked.mp4", "all.mp4"))
    editor = Gen1Editor.from_pretrained(str(folder / "runs" / "stage5"), "cpu", "ema", None)
    assert editor.window == 8
    source = render_clip(3, 12, 96, 128).frames
    from gen1_train.video.geometry import resize_and_crop

    given = resize_and_crop(source, 112, 64).astype(int)
    assert np.abs(masked - given)[:, :, :48].mean() < 4 < np.abs(everywhere - given)[:, :, :48].mean()
    assert np.abs(masked - given)[:, :, 64:].mean() > 4


BAD: list[tuple[dict[str, Any], str]] = [
    ({"checkpoint": None}, "checkpoint is not given"),
    ({"input": None}, "input is not given"),
    ({"output": None}, "output is not given"),
    ({"output": "edit.avi"}, "output=edit.avi must end with .mp4"),
    ({"input": "no.mp4"}, "input=no.mp4 is not there"),
    ({"image": None}, "add prompt=TEXT or image=FILE"),
    ({"image": "FOLDER/text.png"}, "cannot be read"),
    ({"image": None, "prompt": "a fox"}, "a prompt needs a prior"),
    ({"input": "FOLDER/text.png"}, "cannot be decoded"),
    ({"start": 12}, "has 12 frames: start=12 is beyond its end"),
    ({"start": -1}, "start=-1"),
    ({"fps": 0.0}, "fps=0 is out of range"),
    ({"fps": 5.0, "stride": 2}, "fps= and stride="),
    ({"bucket": "wide"}, "'wide' is no bucket"),
    ({"bucket": "100x60"}, "must be multiples of 8"),
    ({"mask": "FOLDER/no.png"}, "mask=FOLDER/no.png cannot be used"),
    ({"mask": "FOLDER/text.png"}, "cannot be used"),
    ({"mask": "FOLDER/short.mp4"}, "cannot be used"),
    ({"mask": "FOLDER/square.png"}, "cannot be used"),
    ({"t_s": 9}, "t_s=9 is out of range"),
    ({"checkpoint": "FOLDER/nothing"}, "no checkpoint at FOLDER/nothing"),
    ({"prior": "FOLDER/nothing"}, "FOLDER/nothing"),
    ({"output": "/proc/no/edit.mp4"}, "cannot be written to"),
    ({"structure_output": "/proc/no/grey.mp4"}, "/proc/no cannot be written to"),
]


@pytest.mark.parametrize(("changes", "line"), BAD)
def test_bad_input_is_one_line_and_no_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if not (folder / "short.mp4").exists():
        write_video(folder / "short.mp4", render_clip(3, 7, 96, 128).frames, 30)
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(folder / "square.png")
    changes = {key: str(value).replace("FOLDER", str(folder)) if isinstance(value, str) else value
               for key, value in changes.items()}  # fmt: skip
    with pytest.raises(UserError) as error:
        edit(config(folder, **{"output": str(tmp_path / "edit.mp4"), **changes}))
    assert line.replace("FOLDER", str(folder)) in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_no_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gen1_train.video import encode

    def full(self: Any, frame: np.ndarray, seconds: float | None = None) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(encode.VideoWriter, "write", full)
    with pytest.raises(UserError, match=r"edit\.mp4 cannot be written: .*No space left"):
        edit(config(folder, output=str(tmp_path / "edit.mp4")))
    assert list(tmp_path.iterdir()) == []
