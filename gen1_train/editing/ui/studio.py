"""The editor behind the page of `gen1-edit ui=true`, and the browser tabs that use it."""

import logging
import re
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from typing_extensions import override

from gen1_train.editing.config import EditConfig
from gen1_train.editing.counting import OnProgress
from gen1_train.editing.editor import Gen1Editor
from gen1_train.editing.run import edit_files
from gen1_train.editing.ui.form import Limits, command_line, read_form, with_values
from gen1_train.editing.ui.preview import upload_html
from gen1_train.errors import UserError

OUTPUT = "edit.mp4"  # files of an edit
STRUCTURE = "structure.mp4"
INPUT = "input.mp4"
# what the page calls a setting, if not by its name
LABELS = {
    "input": "the input",
    "image": "the example image",
    "mask": "the mask",
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt",
}
SETTING = re.compile(rf"(?<!/)\b({'|'.join(field.name for field in fields(EditConfig))})=(?=(\S?))")


UPLOAD = re.compile(r"[0-9a-f]{64}")  # the folder of an upload, which Gradio names by the hash of the content
GONE = 60.0  # seconds without a heartbeat after which a tab is taken for closed; ours
UNUSED = 600.0  # seconds after which an upload is removed that no tab has used; ours


class Cancelled(Exception):
    """The visitor has cancelled the edit."""


class Visit:
    """A browser tab. Its edits are numbered, so that a cancelled one never stops or replaces a later one."""

    def __init__(self) -> None:
        self.newest = 0  # number of the edit that was asked for last
        self._cancelled = 0  # all edits up to this number are cancelled
        self._shown: Path | None = None  # the folder of the last edit that was finished
        self.uploads: set[Path] = set()  # the folders of its uploads
        self.seen = time.monotonic()  # when it was asked for last

    def begin(self) -> int:
        """Returns the number of a new edit."""
        self.newest += 1
        return self.newest

    def cancel(self) -> None:
        """Cancels all edits that have begun."""
        self._cancelled = self.newest

    @property
    def is_cancelled(self) -> bool:
        """Whether the newest edit is."""
        return self._cancelled == self.newest

    def check(self, number: int) -> None:
        """Raises Cancelled if an edit is cancelled, or if it was asked for in a tab that has been closed since."""
        if not self._cancelled < number <= self.newest:
            raise Cancelled

    def show(self, folder: Path | None) -> None:
        """Remembers the folder of the edit that is shown now, and removes the one that was shown before."""
        if self._shown is not None:
            shutil.rmtree(self._shown, ignore_errors=True)
        self._shown = folder


@dataclass(frozen=True)
class Result:
    """A finished edit."""

    folder: Path  # with the files INPUT, OUTPUT and STRUCTURE
    command: str  # the call of gen1-edit that makes it
    notes: tuple[str, ...] = ()  # warnings, such as that the sound cannot be read


class Studio:
    """The editor, and the tabs that use it. `folder` belongs to the studio alone and holds all files."""

    def __init__(self, config: EditConfig, editor: Gen1Editor, folder: Path) -> None:
        """`config`: the initial values of the page. Raises UserError for one that the editor cannot take."""
        self.config = with_values(config, editor.recommended)
        editor.check(self.config.sampling)
        self.editor = editor
        self.folder = folder
        self.limits = Limits.of(config)
        self.visits: dict[str, Visit] = {}
        self._connections: Counter[str] = Counter()  # heartbeats of tabs, which last as long as the tabs
        self._lock = threading.RLock()  # of both and of the uploads

    def visit(self, session: str) -> Visit:
        with self._lock:
            visit = self.visits.setdefault(session, Visit())
            visit.seen = time.monotonic()
            return visit

    def connect(self, session: str) -> None:
        """Notes that a tab has opened a heartbeat."""
        with self._lock:
            self._connections[session] += 1

    def disconnect(self, session: str) -> None:
        """Notes that a heartbeat has ended."""
        with self._lock:
            self._connections[session] -= 1
            self._connections = +self._connections

    def keep_upload(self, session: str, path: Path) -> None:
        """Notes that a tab uses an upload, which is kept until the last tab that uses it is closed."""
        if UPLOAD.fullmatch(path.parent.name) and path.parent.parent.resolve() == self.folder.resolve():
            self.visit(session).uploads.add(path.parent)

    def leave(self, session: str) -> None:
        """Cancels the edits of a tab that was closed, and removes its results and uploads."""
        with self._lock:
            if visit := self.visits.pop(session, None):
                visit.cancel()
                visit.show(None)
                self._remove_uploads(visit.uploads)

    def reap(self) -> None:
        """Leaves the tabs that have vanished without a word, and removes uploads that no tab uses."""
        now = time.monotonic()
        with self._lock:
            for session, visit in list(self.visits.items()):
                if not self._connections[session] and now - visit.seen > GONE:
                    self.leave(session)
            old = time.time() - UNUSED
            uploads = [path for path in self.folder.glob("*") if is_upload(path)]
            self._remove_uploads({path for path in uploads if changed(path) < old})

    def _remove_uploads(self, folders: set[Path]) -> None:
        for folder in folders.difference(*(visit.uploads for visit in self.visits.values())):
            shutil.rmtree(folder, ignore_errors=True)

    def leave_all(self) -> None:
        for session in list(self.visits):
            self.leave(session)

    def edit(self, form: dict[str, Any], visit: Visit, number: int, on_progress: OnProgress) -> Result:
        """Makes a visit's edit in a folder of its own, so that no browser mistakes it for an earlier one.

        Raises UserError, and Cancelled when the visitor cancels; the visit's last result then stays as it is.
        """

        def count(title: str, share: float | None, detail: str) -> None:
            visit.check(number)
            on_progress("sampling" if title == OUTPUT else title, share, detail)

        visit.check(number)
        folder = Path(tempfile.mkdtemp(prefix="edit-", dir=self.folder))
        try:
            config = read_form(form, self.config, folder / OUTPUT, self.editor.prior is not None)
            bounded = self.limits.bounded(config, self.editor.fps)
            with warnings_of_this_thread() as notes:
                edit_files(
                    replace(bounded, structure_output=str(folder / STRUCTURE)),
                    self.editor,
                    count,
                    input_output=folder / INPUT,
                )
            visit.check(number)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        visit.show(folder)
        command = command_line(config, self.editor.recommended)
        return Result(folder, command, tuple(self.page_text(note) for note in notes))

    def preview(self, path: str) -> str:
        """Returns the elements that show an upload. Raises UserError for one that cannot be edited."""
        return upload_html(path, Path(path).name, self.limits.check_upload(path))

    def page_text(self, message: str) -> str:
        """Returns a message in the terms of the page: labels in place of settings, and files by name alone."""
        text = SETTING.sub(lambda found: LABELS.get(found[1], found[1]) + " " * bool(found[2].strip()), message)
        text = re.sub(rf"{re.escape(str(self.folder))}(/[\w.-]+)*/", "", text)
        return " ".join(text.split())

    def failure(self, error: Exception) -> str:
        """Returns the page's status line for an edit that did not finish, or an upload that cannot be used."""
        if isinstance(error, Cancelled):
            return "cancelled"
        if isinstance(error, UserError):
            return f"error: {self.page_text(str(error))}"
        return (
            f"error: {type(error).__name__} on the server, whose terminal shows more; this is a bug, please report it"
        )


def is_upload(path: Path) -> bool:
    return UPLOAD.fullmatch(path.name) is not None


def changed(path: Path) -> float:
    """When a file was changed, in seconds of `time.time`; now, if it does not exist any more."""
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()


@contextmanager
def warnings_of_this_thread() -> Iterator[list[str]]:
    """Collects the warnings that this thread logs; they also go to the terminal of the server."""
    notes: list[str] = []
    thread = threading.get_ident()

    class Collector(logging.Handler):
        @override
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread:
                notes.append(record.getMessage())

    collector = Collector(logging.WARNING)
    project = logging.getLogger("gen1_train")
    project.addHandler(collector)
    try:
        yield notes
    finally:
        project.removeHandler(collector)
