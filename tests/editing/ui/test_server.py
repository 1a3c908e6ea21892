"""The server of the page of gen1-edit: its start, its end, and what it lets a browser load."""

import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gen1_train.edit import edit
from gen1_train.editing.config import EditConfig
from gen1_train.errors import UserError
from gen1_train.video.encode import write_video
from miniature.world.render import render_clip
from tests.editing.ui.browser import Page, chromium, served_page, wait_until
from tests.made_checkpoint import write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a clip of 12 frames and one second, and an example image."""
    folder = tmp_path_factory.mktemp("ui")
    write_checkpoint(folder / "runs" / "stage5")
    write_video(folder / "clip.mp4", render_clip(3, 12, 96, 128).frames, 12)
    Image.fromarray(render_clip(5, 1, 64, 64).frames[0]).save(folder / "example.png")
    return folder


@pytest.mark.parametrize("settings", [{"ui_megabytes": 0}, {"ui_seconds": -1.0}, {"ui_seconds": float("inf")}])
def test_limits_are_above_zero(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must be above 0"):
        edit(EditConfig(ui=True, checkpoint="c", **settings))


def test_without_gradio_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "gen1_train.editing.ui.page", raising=False)
    with pytest.raises(UserError, match=re.escape("pip install -e '.[ui]' in the checkout")):
        edit(EditConfig(ui=True, checkpoint="c"))


@pytest.mark.slow
def test_the_page_loads_nothing_from_elsewhere_and_leaves_no_files(folder: Path) -> None:
    temporary = folder / "tmp"
    settings = (f"checkpoint={folder / 'runs' / 'stage5'}", "ui_seconds=5", "steps=2")
    with served_page(temporary, *settings) as (process, address), chromium() as browser:
        page = Page(browser, address)
        assert not page.is_enabled("cancel") and page.js("document.querySelector('#prompt textarea').disabled")
        page.upload("input", folder / "clip.mp4")
        page.upload("example", folder / "example.png")
        assert page.edit() == "done"
        for player in ("before", "after", "structure"):
            assert page.pixels(player)
            video = f"document.querySelector('#{player} video')"
            shape = page.js(f"[{video}.videoWidth, {video}.videoHeight, {video}.duration]")
            assert shape[:2] == [112, 64] and shape[2] == pytest.approx(1.0, abs=0.1)
            page.js(f"{video}.play()")
            wait_until(lambda video=video: page.js(f"{video}.currentTime > 0.2"), f"{player} does not play")  # type: ignore[misc]
        command = page.js("document.querySelector('#command').innerText")
        assert "gen1-edit" in command and "steps=2" in command and "input=clip.mp4" in command

        messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        urls = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
        outside = {url for url in urls if not url.startswith((address, "data:", "blob:", "chrome:", "about:"))}
        assert urls and not outside

        assert len(list(temporary.glob("gen1-edit-ui-*/**/edit.mp4"))) == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stdout is not None and process.stdout.read() == "gen1-edit: interrupted\n"
        left = {path.name for path in temporary.iterdir()}
        assert all(name.startswith("torchinductor_") for name in left), left  # torch's cache, which all processes share
