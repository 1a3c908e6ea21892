"""`gen1-edit ui=true`: a page in the browser to edit from. It makes the same edits, by the same calls, as gen1-edit."""

import atexit
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from gen1_train.edit import EditConfig
from gen1_train.edit_files import edit_files
from gen1_train.editor import Gen1Editor
from gen1_train.errors import UserError
from gen1_train.exits import INTERRUPTED
from gen1_train.ui_form import Limits, command_line, read_form

OUTPUT, STRUCTURE, INPUT = "edit.mp4", "structure.mp4", "input.mp4"  # of a run


class Cancelled(Exception):
    """The visitor wants no more of this edit."""


class Visit:
    """What a browser tab has here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cancelled = threading.Event()

    def fresh(self) -> Path:
        """An empty folder for the files of a run, in the place of those of the run before."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        return self.folder


class Studio:
    """The editor behind the page, and who is visiting. `folder` is its own, for all files."""

    def __init__(self, config: EditConfig, editor: Gen1Editor, folder: Path) -> None:
        self.config, self.editor, self.folder = config, editor, folder
        self.limits = Limits.of(config)
        self.visits: dict[str, Visit] = {}

    def visit(self, who: str) -> Visit:
        return self.visits.setdefault(who, Visit(Path(tempfile.mkdtemp(dir=self.folder))))

    def leave(self, who: str) -> None:
        """Ends what the tab has running and removes its results."""
        if visit := self.visits.pop(who, None):
            visit.cancelled.set()
            shutil.rmtree(visit.folder, ignore_errors=True)

    def leave_all(self) -> None:
        for who in list(self.visits):
            self.leave(who)

    def edit(self, form: dict[str, Any], visit: Visit, watch: Callable[[str, int, int | None], object]) -> str:
        """Makes INPUT, OUTPUT and STRUCTURE in the visit's folder; returns the command line. Raises UserError."""

        def count(what: str, done: int, total: int | None) -> None:
            if visit.cancelled.is_set():
                raise Cancelled
            watch("sampling" if what == OUTPUT else what, done, total)

        count("waiting", 0, None)
        folder = visit.fresh()
        config = read_form(form, self.config, folder / OUTPUT)
        bounded = self.limits.bounded(config)
        edit_files(
            replace(bounded, structure_output=str(folder / STRUCTURE)), self.editor, count, input_output=folder / INPUT
        )
        return command_line(config)


class reported(suppress):
    """Puts what a visitor can mend, as one line, into a list of one; the page lives on."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(UserError, Cancelled)
        self.said = said

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if isinstance(error, Cancelled):
            self.said[0] = "cancelled"
        elif isinstance(error, UserError):
            self.said[0] = "error: " + " ".join(str(error).split())
        return super().__exit__(kind, error, trace)


def serve(config: EditConfig) -> None:
    """Serves the page until Ctrl-C. Raises UserError, also where the address cannot be listened at."""
    if config.checkpoint is None:
        raise UserError("checkpoint is not given: add checkpoint=…")
    Limits.of(config)
    with tempfile.TemporaryDirectory(prefix="gen1-edit-ui-") as name:
        os.environ |= {"GRADIO_TEMP_DIR": name, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
        try:
            from gen1_train.ui_page import build, launch
        except ModuleNotFoundError as error:
            raise UserError("ui=true needs Gradio: pip install 'gen1-train[ui]'") from error
        editor = Gen1Editor.from_pretrained(config.checkpoint, config.device, config.weights, config.prior)
        studio = Studio(config, editor, Path(name))
        address = launch(build(studio), config)
        print(f"gen1-edit: the page is at {address} (Ctrl-C ends it)", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing stays on the disk
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            studio.leave_all()
            shutil.rmtree(name, ignore_errors=True)
            print("gen1-edit: interrupted", flush=True)
            atexit._run_exitfuncs()  # libraries have temporary folders too
            os._exit(INTERRUPTED)  # a step of the sampler cannot be interrupted, and Python would wait for its thread
