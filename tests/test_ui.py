"""The page of gen1-edit: what it takes, what it refuses, and that it works in a browser."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gen1_train.cli import quoted
from gen1_train.edit import EditConfig, edit
from gen1_train.errors import UserError
from gen1_train.ui_form import WHOLE, Limits, command_line, read_form
from gen1_train.video.encode import write_video
from miniature.render import render_clip
from tests.made_checkpoint import write_checkpoint
from tests.running import ENVIRONMENT, REPOSITORY, command

FORM: dict[str, Any] = {
    **{"input": "/up/clip.mp4", "prompt": "  ", "image": "/up/a b.png", "negative_prompt": None, "mask": None},
    **{"image_share": 0.5, "omega": 7.5, "omega_t": 1.25, "t_s": 3, "init_strength": 1, "temporal": True},
    **{"steps": 2, "solver": "dpm++", "seed": 7, "start": 0, "frames": None, "fps": None, "region": WHOLE},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a clip of 12 frames in a second, and an example image."""
    folder = tmp_path_factory.mktemp("ui")
    write_checkpoint(folder / "runs" / "stage5")
    write_video(folder / "clip.mp4", render_clip(3, 12, 96, 128).frames, 12)
    Image.fromarray(render_clip(5, 1, 64, 64).frames[0]).save(folder / "example.png")
    (folder / "text.mp4").write_text("no video")
    return folder


def test_the_form_is_an_edit_and_what_it_leaves_empty_is_not_given() -> None:
    base = EditConfig(checkpoint="runs/stage5", prompt="of the command line", batch=2)
    config = read_form(FORM, base, Path("/run/edit.mp4"))
    assert (config.input, config.prompt, config.image, config.mask) == ("/up/clip.mp4", None, "/up/a b.png", None)
    assert (config.omega_t, config.t_s, config.solver, config.output) == (1.25, 3, "dpm++", "/run/edit.mp4")
    assert (config.checkpoint, config.batch) == ("runs/stage5", 2)


def test_the_region_is_a_choice_or_a_file_and_not_both() -> None:
    base, output = EditConfig(checkpoint="c"), Path("edit.mp4")
    assert read_form(FORM | {"region": "foreground"}, base, output).mask == "foreground"
    assert read_form(FORM | {"mask": "/up/m.png"}, base, output).mask == "/up/m.png"
    with pytest.raises(UserError, match="given twice"):
        read_form(FORM | {"region": "foreground", "mask": "/up/m.png"}, base, output)
    with pytest.raises(UserError, match="upload a video"):
        read_form(FORM | {"input": None}, base, output)


def test_the_command_line_is_the_same_edit_with_the_files_by_name() -> None:
    form = FORM | {"prompt": 'it\'s a fox, "red" & 100 %', "temporal": False, "frames": 8}
    config = read_form(form, EditConfig(checkpoint="runs/stage5", ui=True, ui_port=80), Path("/run/edit.mp4"))
    name, *arguments = shlex.split(command_line(config))
    assert name == "gen1-edit"
    given = dict(argument.split("=", 1) for argument in arguments)
    assert given == {
        **{"checkpoint": "runs/stage5", "input": "clip.mp4", "image": "a b.png", "output": "edit.mp4"},
        **{"prompt": form["prompt"], "omega_t": "1.25", "t_s": "3", "solver": "dpm++", "steps": "2", "seed": "7"},
        **{"temporal": "false", "frames": "8"},
    }
    assert all(quoted(argument, EditConfig) for argument in arguments)


def test_uploads_that_are_too_much_are_refused_in_one_line(folder: Path) -> None:
    config = EditConfig(input=str(folder / "clip.mp4"), steps=2)
    limits = Limits(megabytes=1, seconds=2)
    assert limits.bounded(config).frames == 120  # of which the clip has 12: a header that lies is cut there
    assert limits.bounded(replace(config, frames=5)).frames == 5
    for wrong, changes, message in (
        (replace(limits, seconds=0.5), {}, r"clip.mp4 lasts 1.0 s: this page takes 0.5 s"),
        (replace(limits, megabytes=0), {}, r"clip.mp4 has .* MB: this page takes 0 MB"),
        (limits, {"steps": 1000}, "steps=1000: this page takes 200"),
        (limits, {"fps": 200.0}, r"200 frames are more than this page edits \(120\)"),
        (limits, {"input": str(folder / "text.mp4")}, "text.mp4 cannot be decoded"),
        (limits, {"input": str(folder / "gone.mp4")}, "gone.mp4 is no longer here"),
    ):
        with pytest.raises(UserError, match=message):
            wrong.bounded(replace(config, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"ui_megabytes": 0}, {"ui_seconds": -1.0}, {"ui_seconds": float("inf")}])
def test_limits_are_numbers_above_zero(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must be above 0"):
        edit(EditConfig(ui=True, checkpoint="c", **wrong))


def test_without_gradio_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "gen1_train.ui_page", raising=False)
    with pytest.raises(UserError, match=re.escape("pip install 'gen1-train[ui]'")):
        edit(EditConfig(ui=True, checkpoint="c"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """The process of the page, its address, and the folder that it has for temporary files."""
    temporary, port = folder / "tmp", free_port()
    temporary.mkdir()
    process = subprocess.Popen(
        command(
            "gen1_train.edit",
            *(
                "ui=true",
                f"checkpoint={folder / 'runs' / 'stage5'}",
                f"ui_port={port}",
                "device=cpu",
                "ui_seconds=5",
                "steps=2",
            ),
        ),
        cwd=REPOSITORY,
        env=ENVIRONMENT | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said == f"gen1-edit: the page is at http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"
        yield process, f"http://127.0.0.1:{port}/", temporary
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def browser() -> Iterator[Any]:
    """Headless Chromium; where it is not installed the tests are skipped, but not in CI (.ci/run)."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        assert not os.environ.get("GEN1_NEED_CHROMIUM"), "chromium and chromedriver are not installed"
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1400,1400"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


def until(true: Any, what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def status(browser: Any) -> str:
    return str(browser.execute_script("return document.querySelector('#status textarea')?.value ?? ''"))


def upload(browser: Any, where: str, path: Path) -> None:
    selector = f"return document.querySelector('#{where} input[type=file]')"
    until(lambda: browser.execute_script(selector), f"no upload in #{where}")
    browser.execute_script(selector).send_keys(str(path))


def press(browser: Any, button: str) -> None:
    until(lambda: browser.execute_script(f"return document.querySelector('#{button}')"), f"no #{button}")
    browser.execute_script(f"document.querySelector('#{button}').click()")


@pytest.mark.slow
def test_in_a_browser_an_upload_becomes_an_edit_and_both_play(served: Any, browser: Any, folder: Path) -> None:
    process, address, temporary = served
    browser.get(address)
    until(lambda: status(browser) == "ready", "the page does not come up")

    press(browser, "run")
    until(lambda: status(browser) == "error: there is nothing to edit: upload a video or an image", status(browser))

    upload(browser, "input", folder / "clip.mp4")
    upload(browser, "example", folder / "example.png")
    until(lambda: browser.execute_script("return document.querySelector('#example img')"), "no example")
    until(lambda: status(browser) == "ready", "the upload is not checked")
    press(browser, "run")
    until(lambda: status(browser) == "done" or status(browser).startswith("error"), "no end of the edit", 90)
    assert status(browser) == "done"

    for player in ("before", "after", "structure"):
        video = f"document.querySelector('#{player} video')"
        until(lambda video=video: browser.execute_script(f"return {video} && {video}.readyState >= 2"), f"no {player}")
        shape = browser.execute_script(f"return [{video}.videoWidth, {video}.videoHeight, {video}.duration]")
        assert shape[:2] == [112, 64] and shape[2] == pytest.approx(1.0, abs=0.1)
        browser.execute_script(f"{video}.muted = true; {video}.currentTime = 0; {video}.play()")
        until(lambda video=video: browser.execute_script(f"return {video}.currentTime > 0.2"), f"{player} stands still")
    said = browser.execute_script("return document.querySelector('#command').innerText")
    assert "gen1-edit" in said and "steps=2" in said and "input=clip.mp4" in said

    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"}
    outside = {url for url in urls if not url.startswith((address, "data:", "blob:", "chrome:", "about:"))}
    assert urls and not outside

    assert len(list(temporary.glob("gen1-edit-ui-*/**/edit.mp4"))) > 0
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert process.stdout.read() == "gen1-edit: interrupted\n"
    left = {path.name for path in temporary.iterdir()}
    assert all(name.startswith("torchinductor_") for name in left), left  # torch's own cache, which all processes share
