"""What an edit writes never replaces what it reads, and replaces nothing else without overwrite=true."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gen1_train.editing.config import EditConfig
from gen1_train.editing.editor import Gen1Editor
from gen1_train.editing.run import edit_files
from gen1_train.errors import UserError
from gen1_train.video.encode import write_video

Edit = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with an input, an example image, a mask, and prompts."""
    monkeypatch.chdir(tmp_path)
    frames = np.full((4, 64, 96, 3), 90, np.uint8)
    for name in ("clip.mp4", "mask.mp4", "many-2.mp4"):
        write_video(tmp_path / name, frames, 10)
    Image.fromarray(frames[0]).save(tmp_path / "image.png")
    os.replace(tmp_path / "image.png", tmp_path / "image.mp4")  # the content of a file decides what it is
    (tmp_path / "prompts.mp4").write_text("a ball\na box\n")
    (tmp_path / "linked.mp4").symlink_to("clip.mp4")
    (tmp_path / "hard.mp4").hardlink_to(tmp_path / "clip.mp4")
    (tmp_path / "nowhere.mp4").symlink_to("gone.mp4")
    (tmp_path / "folder.mp4").mkdir()
    return tmp_path


@pytest.fixture
def refusal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Edit:
    """Returns the message of an edit that must be refused before a model is loaded; all files must stay as they are."""

    def load(*args: Any, **kwargs: Any) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr(Gen1Editor, "from_pretrained", load)
    base = EditConfig(checkpoint="none", input="clip.mp4", prompt="a ball", output="new.mp4")

    def call(**changes: Any) -> str:
        before = contents(folder)
        with pytest.raises(UserError) as error:
            edit_files(replace(base, **changes))
        assert contents(folder) == before and "\n" not in str(error.value)
        return str(error.value)

    return call


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


SAME = [
    ({"output": "clip.mp4"}, "output=clip.mp4 is the same file as input=clip.mp4"),
    ({"output": "folder.mp4/../clip.mp4"}, "is the same file as input=clip.mp4"),
    ({"output": "linked.mp4"}, "output=linked.mp4 is the same file as input=clip.mp4"),
    ({"output": "hard.mp4"}, "output=hard.mp4 is the same file as input=clip.mp4"),
    ({"input": "linked.mp4", "output": "hard.mp4"}, "is the same file as input=linked.mp4"),
    ({"structure_output": "clip.mp4"}, "structure_output=clip.mp4 is the same file as input=clip.mp4"),
    ({"mask": "mask.mp4", "output": "mask.mp4"}, "is the same file as mask=mask.mp4"),
    ({"image": "image.mp4", "structure_output": "image.mp4"}, "is the same file as image=image.mp4"),
    ({"prompt": None, "prompts": "prompts.mp4", "structure_output": "prompts.mp4"}, "as prompts=prompts.mp4"),
    (
        {"prompt": None, "prompts": "prompts.mp4", "input": "many-2.mp4", "output": "many.mp4"},
        "output=many-2.mp4 is the same file as input=many-2.mp4",
    ),
    ({"structure_output": "new.mp4"}, "structure_output=new.mp4 is the same file as output=new.mp4"),
    ({"structure_output": "./folder.mp4/../new.mp4"}, "is the same file as output=new.mp4"),
]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(("changes", "message"), SAME)
def test_an_output_that_is_an_input_is_refused(
    refusal: Edit, changes: dict[str, Any], message: str, overwrite: bool
) -> None:
    assert message in refusal(**changes, overwrite=overwrite)


EXISTING = [
    ({"output": "mask.mp4"}, "output=mask.mp4 exists already: give another name, or add overwrite=true"),
    ({"output": "nowhere.mp4"}, "output=nowhere.mp4 exists already"),
    ({"structure_output": "mask.mp4"}, "structure_output=mask.mp4 exists already"),
    ({"prompt": None, "prompts": "prompts.mp4", "output": "many.mp4"}, "output=many-2.mp4 exists already"),
    ({"output": "folder.mp4"}, "output=folder.mp4 is a folder"),
]


@pytest.mark.parametrize(("changes", "message"), EXISTING)
def test_an_output_that_exists_is_refused(refusal: Edit, changes: dict[str, Any], message: str) -> None:
    assert message in refusal(**changes)


def test_overwrite_lets_an_existing_output_pass(refusal: Edit) -> None:
    assert "bad.mp4 does not exist" in refusal(output="mask.mp4", overwrite=True, input="bad.mp4")
    assert "folder.mp4 is a folder" in refusal(output="folder.mp4", overwrite=True)
