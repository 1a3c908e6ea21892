"""A served page of gen1-edit and a headless browser on it, for the tests of this folder."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.running import ENVIRONMENT, REPOSITORY, command


@contextmanager
def served_page(temporary: Path, *settings: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process that serves the page, and its address; `temporary` is a new folder for its files."""
    temporary.mkdir()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    process = subprocess.Popen(
        command("gen1_train.edit", "ui=true", f"ui_port={port}", "device=cpu", *settings),
        cwd=REPOSITORY,
        env=ENVIRONMENT | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == f"gen1-edit: the page is at http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"
        yield process, f"http://127.0.0.1:{port}/"
    finally:
        process.kill()
        process.wait()


@contextmanager
def chromium(width: int = 1400, height: int = 1400) -> Iterator[Any]:
    """Headless Chromium. Tests are skipped without it, except in CI (.ci/run)."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        assert not os.environ.get("GEN1_NEED_CHROMIUM"), "chromium and chromedriver are not installed"
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", f"window-size={width},{height}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        viewport = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", viewport)
        yield chrome
    finally:
        chrome.quit()


def wait_until(condition: Callable[[], Any], failure: str | Callable[[], str], seconds: float = 60) -> Any:
    """Returns the first true value of the condition."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, failure if isinstance(failure, str) else failure()
        time.sleep(0.1)
    return value


class Page:
    """The page in a tab of a browser."""

    def __init__(self, browser: Any, address: str) -> None:
        self.browser = browser
        browser.get(address)
        wait_until(lambda: self.status == "ready", "the page does not appear")

    def js(self, expression: str) -> Any:
        return self.browser.execute_script(f"return {expression}")

    @property
    def status(self) -> str:
        return str(self.js("document.querySelector('#status textarea')?.value ?? ''"))

    @property
    def errors(self) -> list[str]:
        """Gradio's own messages in a corner, which ours never need."""
        return list(self.js("[...document.querySelectorAll('.toast-body')].map(toast => toast.innerText)"))

    def is_enabled(self, button: str) -> bool:
        return bool(self.js(f"document.querySelector('#{button}') && !document.querySelector('#{button}').disabled"))

    def upload(self, element: str, path: Path) -> None:
        """Uploads a file in place of any other, and waits until it is shown."""
        clear = f"#{element} button[aria-label='Clear'], #{element} button[aria-label='Remove']"
        if self.js(f'document.querySelector("{clear}") !== null'):
            self.js(f'document.querySelector("{clear}").click()')
        field = f"document.querySelector('#{element} input[type=file]')"
        wait_until(lambda: self.js(field), f"no upload in #{element}").send_keys(str(path))
        wait_until(lambda: path.name in (self.js(f"document.querySelector('#{element}').innerText") or ""), "no upload")
        wait_until(lambda: self.js(f"document.querySelector('#{element} :is(img, video, .refused)')"), "no preview")

    def type(self, selector: str, text: str) -> None:
        """Replaces the text of a field by what a user types; it keeps the focus."""
        from selenium.webdriver.common.keys import Keys

        field = self.js(f"document.querySelector('{selector}')")
        self.js(f"document.querySelector('{selector}').scrollIntoView({{block: 'center'}})")
        field.click()
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(Keys.DELETE)
        field.send_keys(text)

    def open_all(self) -> None:
        """Opens every accordion; what is in a closed one is not on the page yet."""
        for heading in self.js("[...document.querySelectorAll('#settings button.label-wrap')]"):
            if "open" not in heading.get_attribute("class"):
                heading.click()
        wait_until(lambda: self.js("document.querySelector('#setting-start input')?.offsetParent"), "still closed")

    def press(self, button: str) -> None:
        self.js(f"document.querySelector('#{button}').click()")

    def edit(self, seconds: float = 90) -> str:
        """Presses Edit; returns the status at the end of the edit."""
        self.start()
        wait_until(lambda: self.is_enabled("run") or self.errors, lambda: f"no end of the edit: {self.status}", seconds)
        assert self.errors == []
        return self.status

    def start(self) -> None:
        """Presses Edit, as with a mouse, and waits until the page has begun: Cancel is enabled, if for a moment."""
        self.browser.execute_script(
            "window.began = false;"
            "const observer = new MutationObserver(() => { window.began = true; observer.disconnect(); });"
            "observer.observe(document.querySelector('#cancel'), {attributes: true});"
        )
        before = self.status
        button = self.js("document.querySelector('#run')")
        self.js("document.querySelector('#run').scrollIntoView({block: 'center'})")
        button.click()
        wait_until(lambda: self.js("window.began") or self.status != before or self.errors, "Edit does nothing")

    def pixels(self, player: str) -> list[int]:
        """The first frame that a player shows, as RGBA values."""
        video = f"document.querySelector('#{player} video')"
        wait_until(lambda: self.js(f"{video} && {video}.readyState >= 2"), f"no {player}")
        self.js(f"{video}.pause()")
        self.js(f"{video}.currentTime = 0")
        wait_until(lambda: self.js(f"!{video}.seeking && {video}.currentTime == 0"), f"{player} cannot be rewound")
        return list(
            self.browser.execute_script(
                f"const v = {video}, c = document.createElement('canvas');"
                "c.width = v.videoWidth; c.height = v.videoHeight;"
                "const d = c.getContext('2d'); d.drawImage(v, 0, 0);"
                "return Array.from(d.getImageData(0, 0, c.width, c.height).data)"
            )
        )
