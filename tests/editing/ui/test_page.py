"""The page of gen1-edit in a browser: one edit after another, errors, cancels, and every control."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gen1_train.video.encode import write_video
from miniature.world.render import render_clip
from tests.editing.ui.browser import Page, chromium, served_page, wait_until

pytestmark = pytest.mark.slow
PLAYERS = ("before", "after", "structure")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of one second, a long one, a picture, and a file that is no video."""
    folder = tmp_path_factory.mktemp("page")
    for name, seed in (("one", 3), ("two (2)", 11)):
        write_video(folder / f"{name}.mp4", render_clip(seed, 12, 96, 128).frames, 12)
    write_video(folder / "long.mp4", np.repeat(render_clip(3, 12, 64, 112).frames, 12, axis=0), 12)  # 12 s
    Image.fromarray(render_clip(5, 1, 64, 64).frames[0]).save(folder / "example.png")
    Image.fromarray(render_clip(5, 1, 64, 112).frames[0]).save(folder / "picture.tiff")  # browsers cannot show it
    (folder / "text.mp4").write_text("not a video")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """The page of the miniature's model, which edits two steps by default and at most five seconds."""
    with served_page(folder / "tmp", "checkpoint=miniature", "steps=2", "ui_seconds=5") as (_, address):
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium(1280, 800) as browser:
        yield browser


@pytest.fixture
def page(browser: Any, address: str) -> Page:
    return Page(browser, address)


def results(folder: Path) -> list[Path]:
    return list((folder / "tmp").glob("gen1-edit-ui-*/edit-*"))


def difference(one: list[int], other: list[int]) -> float:
    return float(np.abs(np.subtract(one, other)).mean())


def test_every_edit_is_shown_in_place_of_the_one_before(page: Page, folder: Path) -> None:
    page.upload("input", folder / "one.mp4")
    page.upload("example", folder / "example.png")
    assert page.edit() == "done"
    first = {player: page.pixels(player) for player in PLAYERS}
    page.upload("input", folder / "two (2).mp4")
    assert page.edit() == "done"
    second = {player: page.pixels(player) for player in PLAYERS}
    assert all(difference(first[player], second[player]) > 3 for player in PLAYERS)
    assert "two (2).mp4" in page.js("document.querySelector('#command').innerText")
    page.type("#prompt textarea", "a red ball on green ground")
    assert page.edit() == "done"
    assert difference(page.pixels("after"), second["after"]) > 3
    assert difference(page.pixels("before"), second["before"]) < 1
    assert len(results(folder)) == 1  # the files of the earlier ones are gone


def test_errors_and_cancels_keep_the_last_result_and_a_new_edit_follows_them(page: Page, folder: Path) -> None:
    assert page.edit() == "error: there is nothing to edit: upload a video or an image"
    page.upload("input", folder / "one.mp4")
    assert page.edit() == "error: the content is missing: write a prompt, or upload an example image"
    page.js("document.querySelectorAll('#examples .gallery-item, #examples button')[0].click()")
    wait_until(lambda: page.js("document.querySelector('#prompt textarea').value"), "no example prompt")
    assert not page.is_enabled("cancel")
    assert page.edit() == "done" and not page.is_enabled("cancel")
    good = page.pixels("after")

    page.open_all()
    page.type("#setting-steps input[type=number]", "200")
    for _ in range(2):
        page.start()
        wait_until(lambda: "step" in page.js("document.querySelector('#status').innerText"), "no progress")
        assert page.is_enabled("cancel") and not page.is_enabled("run")
        page.press("cancel")
        wait_until(lambda: page.status == "cancelled" and page.is_enabled("run"), lambda: page.status)
        assert not page.is_enabled("cancel") and page.pixels("after") == good
    page.type("#setting-steps input[type=number]", "3")
    assert page.edit() == "done"
    assert difference(page.pixels("after"), good) > 0.1
    good = page.pixels("after")
    page.upload("input", folder / "text.mp4")
    assert page.status.startswith("error: text.mp4 cannot be decoded") and str(folder / "tmp") not in page.status
    assert page.edit().startswith("error: text.mp4 cannot be decoded")
    assert page.pixels("after") == good and len(results(folder)) == 1
    page.upload("input", folder / "two (2).mp4")
    assert page.edit() == "done"


def test_every_control_can_be_changed_and_cleared(page: Page, folder: Path) -> None:
    page.upload("input", folder / "one.mp4")
    page.upload("example", folder / "example.png")
    page.open_all()
    assert page.edit() == "done"
    values = {
        "omega": "2.5",
        "omega_t": "0.5",
        "t_s": "2",
        "steps": "3",
        "seed": "4",
        "init_strength": "0.8",
        "rescale": "0.5",
        "image_share": "0.7",
        "start": "2",
        "frames": "6",
        "fps": "6",
        "negative_prompt": "a blue box",
    }
    for name, value in values.items():
        page.type(f"#setting-{name} :is(input[type=number], textarea, input[type=text])", value)
    page.js("document.querySelector('#setting-temporal input').click()")
    page.js("document.querySelectorAll('#setting-solver input')[0].click()")
    page.js("document.querySelectorAll('#setting-region input')[1].click()")
    page.type("#prompt textarea", "a red ball on green ground")
    assert page.edit() == "done"
    command = page.js("document.querySelector('#command').innerText").replace("\n", " ")
    shown = {f"{name}={value}" for name, value in values.items() if name != "negative_prompt"}
    assert {each for each in shown if each not in command} == set(), command
    assert "mask=foreground" in command and "temporal=false" in command and "solver=ddim" in command

    for name in values:
        page.type(f"#setting-{name} :is(input[type=number], textarea, input[type=text])", "")
    assert page.edit() == "done"
    for name, value in (("frames", "all"), ("fps", "-1"), ("start", "-3")):
        page.type(f"#setting-{name} :is(input[type=number], textarea, input[type=text])", value)
        assert name in page.edit() and page.status.startswith("error: ") and "=" not in page.status
        page.type(f"#setting-{name} :is(input[type=number], textarea, input[type=text])", "")
    assert page.edit() == "done"


def test_an_upload_is_shown_and_edit_is_in_sight(page: Page, folder: Path) -> None:
    def bottom(button: str) -> float:
        return float(page.js(f"document.querySelector('#{button}').getBoundingClientRect().bottom"))

    page.js("window.scrollTo(0, 0)")
    assert bottom("run") < 800
    page.upload("input", folder / "one.mp4")
    video = "document.querySelector('#input video')"
    wait_until(lambda: page.js(f"{video}?.videoWidth"), "the upload does not play")
    assert page.js(f"[{video}.videoWidth, {video}.videoHeight]") == [128, 96]
    assert "one.mp4: 128x96, 1.0 s" in page.js("document.querySelector('#input').innerText")
    page.js("window.scrollTo(0, 0)")
    assert bottom("run") < 800
    page.upload("input", folder / "picture.tiff")
    image = "document.querySelector('#input img')"
    wait_until(lambda: page.js(f"{image}?.naturalWidth"), "a picture is not shown")
    assert page.js(f"[{image}.naturalWidth, {image}.naturalHeight]") == [112, 64]
    page.upload("example", folder / "example.png")
    assert page.edit() == "done"


def test_a_part_of_a_long_video_is_edited(page: Page, folder: Path) -> None:
    page.upload("input", folder / "long.mp4")
    page.upload("example", folder / "example.png")
    assert page.status == "ready"
    message = "error: 12.0 s of long.mp4 are selected, and this page edits up to 5 s: set frames 60 or less"
    assert page.edit().startswith(message)
    page.open_all()
    page.type("#setting-start input", "100")
    page.type("#setting-frames :is(textarea, input)", "12")
    assert page.edit() == "done"
    assert page.js("document.querySelector('#after video').duration") == pytest.approx(1.0, abs=0.1)


def test_two_tabs_have_edits_of_their_own(page: Page, browser: Any, address: str, folder: Path) -> None:
    page.upload("input", folder / "one.mp4")
    page.upload("example", folder / "example.png")
    assert page.edit() == "done"
    good = page.pixels("after")
    page.open_all()
    page.type("#setting-steps input[type=number]", "200")
    page.start()
    wait_until(lambda: "step" in page.js("document.querySelector('#status').innerText"), "no progress")
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    try:
        other = Page(browser, address)
        other.upload("input", folder / "two (2).mp4")
        other.upload("example", folder / "example.png")
        other.start()
        other.press("cancel")  # while it waits for the first tab's
        wait_until(lambda: other.status == "cancelled" and other.is_enabled("run"), lambda: other.status, 5)
        other.start()
        browser.switch_to.window(first)
        assert page.is_enabled("cancel")
        page.press("cancel")
        wait_until(lambda: page.status == "cancelled", lambda: page.status)
        assert page.pixels("after") == good
        browser.switch_to.window(browser.window_handles[-1])
        wait_until(lambda: other.is_enabled("run"), lambda: other.status)
        assert other.status == "done" and difference(other.pixels("after"), good) > 3
    finally:
        browser.switch_to.window(browser.window_handles[-1])
        browser.close()
        browser.switch_to.window(first)
    wait_until(lambda: len(results(folder)) == 1, "the results of a closed tab are kept")
