"""gen1-edit from files to files: the output is a whole edit at the input's pace, or it does not exist."""

import functools
import shutil
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
from gen1_train.errors import UserError
from gen1_train.system.console import console
from gen1_train.video import audio
from gen1_train.video.encode import write_video
from gen1_train.video.errors import VideoError
from gen1_train.video.geometry import resize_and_crop
from miniature.world.render import render_clip
from tests.made_checkpoint import edit_info, write_checkpoint
from tests.video.files import FAULTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and inputs: a clip of 12 frames and an example image."""
    folder = tmp_path_factory.mktemp("edit")
    write_checkpoint(folder / "runs" / "stage5")
    write_video(folder / "clip.mp4", render_clip(3, 12, 96, 128).frames, 30000 / 1001)
    Image.fromarray(render_clip(5, 1, 64, 64).frames[0]).save(folder / "example.png")
    (folder / "text.png").write_text("not an image")
    return folder


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    """Shares one editor among the tests: loading it takes most of the time of an edit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gen1Editor, "from_pretrained", functools.cache(Gen1Editor.from_pretrained))
        yield


def config(folder: Path, **changes: Any) -> EditConfig:
    base = EditConfig(
        checkpoint=str(folder / "runs" / "stage5"),
        input=str(folder / "clip.mp4"),
        image=str(folder / "example.png"),
        output=str(folder / "out" / "edit.mp4"),
        steps=2,
        device="cpu",
    )
    return replace(base, **changes)


def frames_of(path: Path) -> tuple[np.ndarray, Any]:
    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]), rate


def test_an_edit_has_the_frames_and_pace_of_the_input_and_the_size_of_the_bucket(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with console("gen1-edit"):
        edit(config(folder, output=str(tmp_path / "new" / "edit.mp4"), structure_output=str(tmp_path / "gray.mp4")))
    assert capsys.readouterr().out == (
        f"gen1-edit: 12 frames written to {tmp_path / 'gray.mp4'}\n"
        f"gen1-edit: 12 frames written to {tmp_path / 'new' / 'edit.mp4'}\n"
    )
    frames, rate = frames_of(tmp_path / "new" / "edit.mp4")
    assert frames.shape == (12, 64, 112, 3) and abs(float(rate) - 29.97) < 0.01
    gray, _ = frames_of(tmp_path / "gray.mp4")
    assert gray.shape == frames.shape and np.ptp(gray.astype(int), axis=-1).max() < 12  # gray, up to the codec
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["edit.mp4", "gray.mp4", "new"]


def test_a_picture_is_edited_without_looking_for_sound(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a video, this JPEG has a stream of sound."""
    with console("gen1-edit"):
        edit(config(folder, input=str(FAULTS / "noise40.jpg"), output=str(tmp_path / "edit.mp4")))
    assert frames_of(tmp_path / "edit.mp4")[0].shape[0] == 1
    assert "sound" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(("name", "seconds"), [("chan_cont.ts", 3.9), ("concat.ts", 4.0)])
def test_the_sound_of_a_broadcast_is_kept(folder: Path, tmp_path: Path, name: str, seconds: float) -> None:
    edit(config(folder, input=str(FAULTS / name), output=str(tmp_path / "edit.mp4"), fps=1.0))
    with av.open(str(tmp_path / "edit.mp4")) as container:
        sound = container.streams.audio[0]
        assert float(sound.duration * sound.time_base) == pytest.approx(seconds, abs=0.2)


def test_unusable_sound_costs_only_the_sound(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise VideoError("broken")

    monkeypatch.setattr(audio, "open_audio", fail)
    with console("gen1-edit"):
        edit(config(folder, output=str(tmp_path / "edit.mp4"), frames=2))
    assert frames_of(tmp_path / "edit.mp4")[0].shape[0] == 2
    line = f"gen1-edit: warning: input={folder}/clip.mp4: its sound cannot be read: broken; the output is silent\n"
    assert line in "".join(capsys.readouterr())


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
def test_a_selection_of_the_input_is_edited(
    folder: Path, tmp_path: Path, changes: dict[str, Any], count: int, rate: float | None
) -> None:
    if "input" in changes:
        changes = {"input": str(folder / changes["input"])}
    edit(config(folder, output=str(tmp_path / "edit.mp4"), **changes))
    frames, output_rate = frames_of(tmp_path / "edit.mp4")
    assert len(frames) == count and (rate is None or abs(float(output_rate) - rate) < 0.02)


@pytest.mark.parametrize(
    ("changes", "count", "rate"),
    [({}, 3, 7.49), ({"stride": 1}, 12, 29.97), ({"fps": 10.0}, 4, 10.0), ({"input": "example.png"}, 1, None)],
)
def test_frames_come_at_the_pace_of_the_clips_that_the_model_learned(
    folder: Path, tmp_path: Path, changes: dict[str, Any], count: int, rate: float | None
) -> None:
    """Where the checkpoint records it, and unless a stride or fps= is given."""
    shutil.copytree(folder / "runs" / "stage5", tmp_path / "run", symlinks=True)
    edit_info(next((tmp_path / "run" / "checkpoints").glob("step-*")), lambda content: content.update(fps=7.0))
    if "input" in changes:
        changes = {"input": str(folder / changes["input"])}
    out = tmp_path / "edit.mp4"
    with console("gen1-edit"):
        edit(config(folder, checkpoint=str(tmp_path / "run"), output=str(out), **changes))
    frames, output_rate = frames_of(out)
    assert len(frames) == count and (rate is None or abs(float(output_rate) - rate) < 0.02)


def test_frames_depend_on_the_seed_alone(folder: Path, tmp_path: Path) -> None:
    for name, changes in {"a": {}, "b": {}, "c": {"seed": 1}}.items():
        edit(config(folder, output=str(tmp_path / f"{name}.mp4"), frames=3, **changes))
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    a, c = (frames_of(tmp_path / f"{name}.mp4")[0].astype(int) for name in "ac")
    assert 3 < np.abs(a - c).mean()
    editor = Gen1Editor.from_pretrained(str(folder / "runs" / "stage5"), "cpu")
    clip, example = render_clip(3, 3, 64, 112).frames, render_clip(5, 1, 64, 64).frames[0]
    first, again = (editor(clip, image=example, steps=2) for _ in range(2))
    assert np.array_equal(first, again)


@pytest.mark.slow
def test_the_batch_changes_no_frame(folder: Path) -> None:
    """Up to the rounding of sums, which may change a pixel by one level."""
    editor = Gen1Editor.from_pretrained(str(folder / "runs" / "stage5"), "cpu")
    clip, example = render_clip(3, 12, 64, 112).frames, render_clip(5, 1, 64, 64).frames[0]
    edits = [editor(clip, image=example, steps=2, batch=batch, omega_t=1.5).astype(int) for batch in (1, 3, 16)]
    assert all(np.abs(other - edits[0]).max() <= 1 for other in edits[1:])
    other_seed = editor(clip, image=example, steps=2, omega_t=1.5, seed=1)
    assert np.abs(other_seed.astype(int) - edits[0]).mean() > 3


def test_a_sweep_is_one_labeled_video_with_the_input_first(folder: Path, tmp_path: Path) -> None:
    edit(config(folder, output=str(tmp_path / "sweep.mp4"), sweep="t_s=0,7", frames=3))
    frames, _ = frames_of(tmp_path / "sweep.mp4")
    assert len(frames) == 3 and frames.shape[2] >= 3 * 112
    differences = {}
    for t_s in (0, 7):
        edit(config(folder, output=str(tmp_path / "one.mp4"), t_s=t_s, frames=3, overwrite=True))
        single, _ = frames_of(tmp_path / "one.mp4")
        third = frames[:, :, 2 * (112 + 4) : 2 * (112 + 4) + 112].astype(int)  # below its label
        differences[t_s] = min(np.abs(third[:, y : y + 64] - single).mean() for y in range(frames.shape[1] - 63))
    assert differences[7] < differences[0] / 2, differences  # both are encoded, which changes noisy frames a lot


def test_the_input_stays_outside_of_the_mask(folder: Path, tmp_path: Path) -> None:
    mask = np.zeros((96, 128), np.uint8)
    mask[:, 64:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    edit(config(folder, output=str(tmp_path / "masked.mp4"), mask=str(tmp_path / "mask.png")))
    edit(config(folder, output=str(tmp_path / "all.mp4")))
    masked, everywhere = (frames_of(tmp_path / name)[0].astype(int) for name in ("masked.mp4", "all.mp4"))
    editor = Gen1Editor.from_pretrained(str(folder / "runs" / "stage5"), "cpu", "ema", None)
    assert editor.window == 8
    source = render_clip(3, 12, 96, 128).frames
    resized = resize_and_crop(source, 112, 64).astype(int)
    assert np.abs(masked - resized)[:, :, :48].mean() < 4 < np.abs(everywhere - resized)[:, :, :48].mean()
    assert np.abs(masked - resized)[:, :, 64:].mean() > 4


@pytest.mark.parametrize(
    ("size", "bucket", "line"),
    [
        ((72, 128), None, "(72x128) is edited: 68 % of the picture is cropped to fit 112x64; "),
        ((72, 128), "64x112", None),
        ((96, 96), None, "(96x96) is edited: 43 % of the picture is cropped to fit 112x64; "),
        ((96, 72), None, None),  # a quarter
    ],
)
def test_a_large_crop_is_named_with_a_bucket_that_avoids_it(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    size: tuple[int, int],
    bucket: str | None,
    line: str | None,
) -> None:
    write_video(tmp_path / "clip.mp4", render_clip(3, 1, size[1], size[0]).frames, 10)
    made = config(folder, input=str(tmp_path / "clip.mp4"), output=str(tmp_path / "edit.mp4"), bucket=bucket)
    with console("gen1-edit"):
        edit(made)
    out = capsys.readouterr().out
    assert ("cropped" in out) == (line is not None)
    if line is not None:
        assert f"only the center of input={made.input} {line}" in out
        suggested = out.partition("as in bucket=")[2].split()[0]
        with console("gen1-edit"):
            edit(replace(made, bucket=suggested, overwrite=True))
        assert (
            "cropped" not in capsys.readouterr().out
            and frames_of(tmp_path / "edit.mp4")[0].shape[1:3]
            == (tuple(int(side) for side in suggested.split("x"))[::-1])
        )


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"checkpoint": None}, "checkpoint is not given"),
    ({"input": None}, "input is not given"),
    ({"output": None}, "output is not given"),
    ({"output": "edit.avi"}, "output=edit.avi must end with .mp4"),
    ({"input": "no.mp4"}, "input=no.mp4 does not exist"),
    ({"image": None}, "add prompt=TEXT or image=FILE"),
    ({"image": "FOLDER/text.png"}, "cannot be read"),
    ({"image": None, "prompt": "a fox"}, "a prompt needs a prior"),
    ({"input": "FOLDER/text.png"}, "cannot be decoded"),
    ({"start": 12}, "has 12 frames: start=12 is beyond its end"),
    ({"start": -1}, "start=-1"),
    ({"fps": 0.0}, "fps=0 is out of range"),
    ({"fps": 5.0, "stride": 2}, "fps= and stride="),
    ({"bucket": "wide"}, "'wide' is not a bucket"),
    ({"bucket": "100x60"}, "must be multiples of 8"),
    ({"mask": "FOLDER/no.png"}, "mask=FOLDER/no.png cannot be used"),
    ({"mask": "FOLDER/text.png"}, "cannot be used"),
    ({"mask": "FOLDER/short.mp4"}, "cannot be used"),
    ({"mask": "FOLDER/square.png"}, "cannot be used"),
    ({"t_s": 9}, "t_s=9 is out of range"),
    ({"checkpoint": "FOLDER/nothing"}, "no checkpoint at FOLDER/nothing"),
    ({"prior": "FOLDER/nothing"}, "FOLDER/nothing"),
    ({"output": "/proc/no/edit.mp4"}, "cannot be written to"),
    ({"structure_output": "/proc/no/gray.mp4"}, "/proc/no cannot be written to"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_leaves_no_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if not (folder / "short.mp4").exists():
        write_video(folder / "short.mp4", render_clip(3, 7, 96, 128).frames, 30)
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(folder / "square.png")
    changes = {key: str(value).replace("FOLDER", str(folder)) if isinstance(value, str) else value
               for key, value in changes.items()}  # fmt: skip
    with pytest.raises(UserError) as error:
        edit(config(folder, **{"output": str(tmp_path / "edit.mp4"), **changes}))
    assert message.replace("FOLDER", str(folder)) in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gen1_train.video import encode

    def full(self: Any, frame: np.ndarray, seconds: float | None = None) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(encode.VideoWriter, "write", full)
    with pytest.raises(UserError, match=r"edit\.mp4 cannot be written: .*No space left"):
        edit(config(folder, output=str(tmp_path / "edit.mp4")))
    assert list(tmp_path.iterdir()) == []
