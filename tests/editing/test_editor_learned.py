"""What a checkpoint has not learned is refused or left out: levels of t_s, and positions of frames."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from gen1_train.diffusion.structure import PIXELS, RELATIVE
from gen1_train.edit import edit
from gen1_train.editing.config import EditConfig
from gen1_train.editing.editor import Gen1Editor
from gen1_train.errors import UserError
from gen1_train.training.checkpoints.checkpoint import find_checkpoint
from gen1_train.training.stages import read_recorded
from gen1_train.video.encode import write_video
from miniature.world.render import render_clip
from tests.made_checkpoint import edit_info, write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of stages 4 and 5, the latter of clips of 4 frames; a video of 9 frames and an example image."""
    folder = tmp_path_factory.mktemp("learned")
    write_checkpoint(folder / "stage4", stage="4")
    write_checkpoint(folder / "stage5", frames=4)
    write_video(folder / "clip.mp4", render_clip(3, 9, 64, 112).frames, 10)
    Image.fromarray(render_clip(5, 1, 64, 64).frames[0]).save(folder / "example.png")
    return folder


def config(folder: Path, output: Path, **changes: Any) -> EditConfig:
    paths = {"input": str(folder / "clip.mp4"), "image": str(folder / "example.png"), "output": str(output)}
    return EditConfig(**{"checkpoint": str(folder / "stage4"), "device": "cpu", "steps": 2, **paths, **changes})


@pytest.mark.slow
def test_positions_that_were_never_trained_have_no_effect(folder: Path) -> None:
    """In a checkpoint of clips of 4 frames, the positions of frames 5 to 8 are as random as at the start."""
    editor = Gen1Editor.from_pretrained(folder / "stage5", "cpu", structure=True)
    assert editor.window == 4
    clip, example = render_clip(3, 9, 64, 112).frames, render_clip(5, 1, 64, 64).frames[0]
    before = editor(clip, image=example, steps=2, omega_t=1.5)
    for name, weight in editor.unet.named_parameters():
        if name.endswith(".positions"):
            weight[4:] = 100 * torch.randn_like(weight[4:])
    assert np.array_equal(editor(clip, image=example, steps=2, omega_t=1.5), before)
    for name, weight in editor.unet.named_parameters():
        if name.endswith(".positions"):
            weight[3] = 100 * torch.randn_like(weight[3])
    assert not np.array_equal(editor(clip, image=example, steps=2, omega_t=1.5), before)


def test_an_edit_follows_what_t_s_did_in_training(folder: Path, tmp_path: Path) -> None:
    """In a checkpoint of an older version, which does not record it, t_s blurs in pixels, as in the released one."""
    older = write_checkpoint(tmp_path / "older")
    config = yaml.safe_load((older / "config.yaml").read_text())
    del config["stage"]["degradation"]
    (older / "config.yaml").write_text(yaml.safe_dump(config))
    edit_info(older, lambda info: None)
    write_checkpoint(tmp_path / "pixels", degradation=PIXELS)
    write_checkpoint(tmp_path / "relative", degradation=RELATIVE)
    editors = {name: Gen1Editor.from_pretrained(tmp_path / name, "cpu") for name in ("older", "pixels", "relative")}
    assert {name: editor.degradation for name, editor in editors.items()} == {
        "older": PIXELS, "pixels": PIXELS, "relative": RELATIVE
    }  # fmt: skip
    clip, example = render_clip(3, 2, 64, 112).frames, render_clip(5, 1, 64, 64).frames[0]
    edits = {name: editor(clip, image=example, steps=1, t_s=5) for name, editor in editors.items()}
    assert np.array_equal(edits["older"], edits["pixels"]) and not np.array_equal(edits["relative"], edits["pixels"])
    at_0 = [editor(clip, image=example, steps=1) for editor in editors.values()]
    assert all(np.array_equal(edit, at_0[0]) for edit in at_0)
    assert read_recorded(find_checkpoint(Path("miniature"))).stage.degradation == PIXELS


@pytest.mark.parametrize("dials", [{"t_s": 1}, {"sweep": "t_s"}, {"sweep": "t_s=0,3"}])
def test_gen1_edit_refuses_a_level_before_it_reads_a_frame(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dials: dict[str, Any]
) -> None:
    monkeypatch.setattr("gen1_train.editing.run.read_footage", lambda *_: pytest.fail("the input was read"))
    with pytest.raises(UserError, match=r"^t_s=[123]: this checkpoint has learned only t_s=0: give 0, or a checkpoint"):
        edit(config(folder, tmp_path / "edit.mp4", **dials))
    assert not (tmp_path / "edit.mp4").exists()


def test_the_python_interface_refuses_a_level(folder: Path) -> None:
    editor = Gen1Editor.from_pretrained(folder / "stage4", "cpu")
    clip, example = render_clip(3, 2, 64, 112).frames, render_clip(5, 1, 64, 64).frames[0]
    with pytest.raises(UserError, match=r"^t_s=7: this checkpoint has learned only t_s=0"):
        editor(clip, image=example, t_s=7)
    with pytest.raises(UserError, match=r"^overlap=8: this checkpoint takes 8 frames at once: give fewer"):
        editor(clip, image=example, overlap=8)
    assert editor(clip, image=example, steps=1).shape == clip.shape


@pytest.mark.slow
def test_the_windows_of_an_edit_have_the_lengths_of_the_clips_in_training(folder: Path, tmp_path: Path) -> None:
    """Without a rest, the edits are those of a checkpoint of the longest length alone, to the bit."""
    several = write_checkpoint(tmp_path / "several", frames=8)
    edit_info(several, lambda info: info.update(lengths=[4, 8]))
    editors = [
        Gen1Editor.from_pretrained(path, "cpu") for path in (write_checkpoint(tmp_path / "one", frames=8), several)
    ]
    assert [(editor.window, editor.shorter) for editor in editors] == [(8, ()), (8, (4,))]
    example = render_clip(5, 1, 64, 64).frames[0]
    clip = render_clip(3, 12, 64, 112).frames
    for frames in (3, 6, 8, 12):  # one window up to the longest length; then 12 = 8 + 4, which overlap by half
        edits = [editor(clip[:frames], image=example, steps=1) for editor in editors]
        assert np.array_equal(*edits), frames
    sizes: list[list[int]] = [[], []]
    content = editors[0].content(image=example)[None]
    for editor, taken in zip(editors, sizes):
        with editor.structure(clip[:10]) as structure:
            scene = editor.scene(clip[:10], structure, editor.recommended.sampling)
        sampling = replace(editor.recommended.sampling, steps=1, batch=1)
        assert editor.sample(scene, content, sampling, on_frames=taken.append).isfinite().all()
    assert sizes == [[8, 8, 8, 8], [8, 8, 4, 4]]  # with and without content: the last two frames need a window of 4
    longer = config(folder, tmp_path / "edit.mp4", checkpoint=str(tmp_path / "several"))  # its progress counts the same
    edit(longer)
    assert (tmp_path / "edit.mp4").exists()
