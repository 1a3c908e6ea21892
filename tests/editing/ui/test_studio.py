"""The studio behind the page: numbered edits, messages in the page's terms, previews, and the time that is left."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gen1_train.diffusion.recommended import Recommended
from gen1_train.editing.config import EditConfig
from gen1_train.editing.ui import studio as studio_module
from gen1_train.editing.ui.pace import Pace
from gen1_train.editing.ui.studio import INPUT, OUTPUT, STRUCTURE, Cancelled, Studio, Visit
from gen1_train.errors import UserError
from gen1_train.video.encode import write_video
from tests.editing.ui.test_form import FORM


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Studio:
    """A studio whose edits write their prompt's text in place of videos."""

    def write_files(config: EditConfig, editor: Any, on_progress: Any, input_output: Path) -> None:
        on_progress("reading", 0.5, "1 of 2 frames")
        logging.getLogger("gen1_train.test").warning("input=%s: its sound cannot be read", config.input)
        if config.prompt == "broken":
            raise UserError(f"input={config.input} cannot be decoded: broken; mask=foreground needs depth; frames=3")
        on_progress(OUTPUT, 1.0, "step 2 of 2")
        for path in (config.output, config.structure_output, input_output):
            Path(str(path)).write_text(str(config.prompt))

    monkeypatch.setattr(studio_module, "edit_files", write_files)
    editor: Any = SimpleNamespace(
        recommended=Recommended({"omega": 3.0}), prior=object(), fps=None, check=lambda sampling: None
    )
    return Studio(EditConfig(), editor, tmp_path)


@pytest.fixture
def form(studio: Studio) -> dict[str, Any]:
    """A form with an upload in the folder of the studio."""
    upload = studio.folder / "0f3e" / "my clip (1).mp4"
    upload.parent.mkdir()
    write_video(upload, np.zeros((4, 64, 64, 3), np.uint8), 8)
    return FORM | {"input": str(upload), "image": None, "prompt": "a fox"}


def folders(studio: Studio) -> list[Path]:
    return sorted(studio.folder.glob("edit-*"))


def test_each_edit_has_a_folder_of_its_own_and_the_last_good_one_is_kept(studio: Studio, form: dict[str, Any]) -> None:
    visit = studio.visit("tab")
    seen: list[str] = []
    first = studio.edit(form, visit, visit.begin(), lambda title, share, detail: seen.append(title))
    assert seen == ["reading", "sampling"] and folders(studio) == [first.folder]
    assert {path.name for path in first.folder.iterdir()} == {INPUT, OUTPUT, STRUCTURE}
    assert first.notes == ("the input my clip (1).mp4: its sound cannot be read",)
    second = studio.edit(form | {"prompt": "a cat"}, visit, visit.begin(), lambda *progress: None)
    assert second.folder != first.folder and folders(studio) == [second.folder]
    assert (second.folder / OUTPUT).read_text() == "a cat"
    with pytest.raises(UserError) as error:
        studio.edit(form | {"prompt": "broken"}, visit, visit.begin(), lambda *progress: None)
    assert studio.failure(error.value) == (
        "error: the input my clip (1).mp4 cannot be decoded: broken; the mask foreground needs depth; frames 3"
    )
    with pytest.raises(Cancelled):
        studio.edit(form, visit, visit.begin(), lambda *progress: visit.cancel())
    assert folders(studio) == [second.folder]
    studio.leave("tab")
    assert folders(studio) == []


def test_a_cancel_ends_the_edits_before_it_and_none_after_it(studio: Studio, form: dict[str, Any]) -> None:
    visit = studio.visit("tab")
    old = visit.begin()
    visit.cancel()
    new = visit.begin()
    with pytest.raises(Cancelled):
        studio.edit(form, visit, old, lambda *progress: None)
    assert studio.edit(form, visit, new, lambda *progress: None).command
    studio.leave("tab")
    with pytest.raises(Cancelled):  # an edit that waited when its tab was closed
        studio.edit(form, studio.visit("tab"), new + 1, lambda *progress: None)
    assert folders(studio) == []


def test_a_bug_is_one_line_without_details(studio: Studio) -> None:
    assert "TypeError on the server" in studio.failure(TypeError("secret")) and "secret" not in studio.failure(
        TypeError("secret")
    )


def test_names_of_files_are_not_mistaken_for_settings(studio: Studio) -> None:
    message = f"input={studio.folder}/0f/steps=3.mp4 cannot be decoded; fps= and stride= both choose"
    assert studio.page_text(message) == "the input steps=3.mp4 cannot be decoded; fps and stride both choose"


def test_an_upload_is_shown_with_its_first_frame(studio: Studio, form: dict[str, Any], tmp_path: Path) -> None:
    shown = studio.preview(form["input"])
    assert "my clip (1).mp4: 64x64, 0.5 s, 8 frames a second" in shown
    assert 'poster="data:image/jpeg;base64,' in shown and "/0f3e/my%20clip%20%281%29.mp4" in shown
    wide = tmp_path / "a<b>&.tiff"
    Image.new("RGB", (900, 300), "red").save(wide)
    shown = studio.preview(str(wide))
    assert "<img src=" in shown and "<video" not in shown and "a&lt;b&gt;&amp;.tiff: 900x300" in shown
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(UserError, match=r"^text.mp4 cannot be decoded"):
        studio.preview(str(tmp_path / "text.mp4"))


def test_the_time_left_is_known_after_a_while_and_starts_again_with_each_part() -> None:
    times = iter((0, 9, 10, 29, 30))  # seconds
    pace = Pace(lambda: next(times))
    parts = (("reading", 0.0), ("sampling", 0.0), ("sampling", 0.1), ("sampling", 0.2))
    lines = [pace.line(title, share, "step 1 of 5") for title, share in parts]
    assert lines[:3] == ["reading, step 1 of 5", "sampling, step 1 of 5", "sampling, step 1 of 5"]
    assert lines[3] == "sampling, step 1 of 5, 1:20 left"
    assert pace.line("reading", None, "3 frames") == "reading, 3 frames"


def test_a_visit_knows_whether_its_newest_edit_is_cancelled() -> None:
    """The page then shows that, whatever Gradio says about the connection."""
    visit = Visit()
    for _ in range(2):
        visit.begin()
        assert not visit.is_cancelled
        visit.cancel()
        assert visit.is_cancelled
