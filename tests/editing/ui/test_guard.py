"""What strangers can make the server of the page do: requests, uploads and tabs that nobody of ours would send."""

import http.client
import json
import os
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gen1_train.diffusion.recommended import Recommended
from gen1_train.editing.config import EditConfig
from gen1_train.editing.ui import guard as guard_module
from gen1_train.editing.ui import studio as studio_module
from gen1_train.editing.ui.guard import SHOWN
from gen1_train.editing.ui.studio import OUTPUT, Studio
from tests.editing.ui.browser import wait_until
from tests.video.files import make_video

pytest.importorskip("gradio")


@dataclass
class Server:
    """A page whose edits last until they are cancelled."""

    port: int
    studio: Studio
    began: threading.Event  # an edit

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(
                method, path, body, {"Host": self.host} | {k.replace("_", "-"): v for k, v in headers.items()}
            )
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def upload(self, path: Path) -> str:
        """The path of the upload as a browser sees it."""
        status, answer = self.ask("POST", "/gradio_api/upload", multipart(path.name, path.read_bytes()), **MULTIPART)
        assert status == 200, answer
        return str(json.loads(answer)[0])

    def listener_of_upload(self, field: str) -> int:
        """The number of the function that shows an upload; the fields are in the order of the page."""
        config = json.loads(self.ask("GET", "/config")[1])
        files = [box["id"] for box in config["components"] if box["type"] == "file"]
        wanted = [files[("input", "example", "mask").index(field)], "change"]
        (number,) = (each["id"] for each in config["dependencies"] if wanted in each["targets"])
        return int(number)

    def send(self, function: int, data: list[Any], session: str) -> tuple[int, Any]:
        body = json.dumps({"data": data, "fn_index": function, "session_hash": session})
        status, answer = self.ask("POST", "/gradio_api/run/predict", body.encode(), Content_Type="application/json")
        return status, answer


MULTIPART = {"Content_Type": "multipart/form-data; boundary=xyz"}


def multipart(name: str, content: bytes, end: bool = True) -> bytes:
    head = f'--xyz\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    return head + content + (b"\r\n--xyz--\r\n" if end else b"")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("gen1-edit-ui")
    patch = pytest.MonkeyPatch()
    for name, value in (
        ("GRADIO_TEMP_DIR", str(folder)),
        ("GRADIO_ANALYTICS_ENABLED", "False"),
        ("HF_HUB_OFFLINE", "1"),
    ):
        patch.setenv(name, value)
    from gen1_train.editing.ui.page import build, launch

    began = threading.Event()

    def endless(config: EditConfig, editor: Any, on_progress: Any, input_output: Path) -> None:
        Path(str(config.output)).write_text("half")
        while True:
            on_progress(OUTPUT, 0.5, "step 1 of 2")
            began.set()
            time.sleep(0.02)

    patch.setattr(studio_module, "edit_files", endless)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    editor: Any = SimpleNamespace(
        fps=None, recommended=Recommended({"omega": 3.0}), prior=object(), highest_level=7, check=lambda sampling: None
    )
    config = EditConfig(ui_port=port, ui_megabytes=2)
    studio = Studio(config, editor, folder)
    page = build(studio)
    launch(page, config, studio)
    try:
        yield Server(port, studio, began)
    finally:
        page.close(verbose=False)
        patch.undo()


@pytest.fixture(autouse=True)
def no_tabs(server: Server) -> Iterator[None]:
    yield
    server.studio.leave_all()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_video(tmp_path / "clip.mp4", frames=8)


def parts(server: Server) -> list[Path]:
    """Files of uploads that are not complete."""
    return [path for path in server.studio.folder.iterdir() if path.is_file()]


def test_other_host_names_and_other_pages_get_one_line(server: Server) -> None:
    for headers in ({"Host": f"evil.example:{server.port}"}, {"Origin": "https://evil.example"}):
        for method, path in (("GET", "/config"), ("POST", "/gradio_api/queue/join"), ("POST", "/gradio_api/upload")):
            status, answer = server.ask(method, path, b"{}", **headers)
            assert status == 403 and len(answer.splitlines()) == 1
    assert server.ask("GET", "/config", Origin=f"http://{server.host}")[0] == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/file=https://example.com/a.png"),
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", f"/gradio_api/file={SHOWN}/../../../../../../etc/passwd"),
        ("GET", f"/gradio_api/file={SHOWN}/%2e%2e/%2e%2e/etc/passwd"),
        ("GET", "/gradio_api/file=pyproject.toml"),
        ("GET", "/gradio_api/proxy=https://example.com/"),
        ("GET", "/gradio_api/info"),
        ("GET", "/gradio_api/openapi.json"),
        ("GET", "/monitoring"),
        ("POST", "/gradio_api/process_recording"),  # Gradio would run ffmpeg on what is sent
        ("POST", "/gradio_api/call/predict"),
        ("PUT", "/config"),
    ],
)
def test_gradio_s_other_routes_and_files_are_not_served(server: Server, method: str, path: str) -> None:
    status, answer = server.ask(method, path)
    assert status in (403, 404) and len(answer.splitlines()) == 1
    assert b"root:" not in answer and str(server.studio.folder).encode() not in answer


def test_no_answer_has_a_path_of_the_server(server: Server, clip: Path) -> None:
    shown = server.upload(clip)
    assert shown.startswith(f"{SHOWN}/") and shown.endswith("/clip.mp4")
    file = {"path": shown, "meta": {"_type": "gradio.FileData"}, "orig_name": "clip.mp4"}
    status, preview = server.send(server.listener_of_upload("input"), [file], "looker")
    assert status == 200 and f"file={SHOWN}/".encode() in preview and b"64x48" in preview
    status, content = server.ask("GET", f"/gradio_api/file={shown}")
    assert status == 200 and content == clip.read_bytes()
    status, missing = server.ask("GET", f"/gradio_api/file={SHOWN}/none.mp4")
    assert status == 403 and b"none.mp4" in missing
    answers = [preview, missing, *(server.ask("GET", path)[1] for path in ("/", "/config", "/theme.css"))]
    for answer in answers:
        for path in (server.studio.folder, Path.home(), Path.cwd(), Path(guard_module.__file__).parents[3]):
            assert len(str(path)) < 3 or str(path).encode() not in answer


def test_a_form_names_only_files_of_the_page(server: Server) -> None:
    function = server.listener_of_upload("input")
    for path in ("/etc/passwd", "https://example.com/endless.mp4", f"{SHOWN}/../x", 7, None):
        status, answer = server.send(function, [{"path": path, "meta": {"_type": "gradio.FileData"}}], "thief")
        assert (status, answer) == (403, b"this is not a file of the page\n")
    assert server.ask("POST", "/gradio_api/queue/join", b" " * (2 << 20))[0] == 413
    assert server.ask("POST", "/gradio_api/queue/join", b"[" * 100_000)[0] == 400
    assert server.ask("POST", "/gradio_api/queue/join", b"no json")[0] == 400


def test_an_upload_has_at_most_its_limit_and_leaves_nothing(server: Server) -> None:
    status, answer = server.ask("POST", "/gradio_api/upload", multipart("a.mp4", bytes(4_000_000)), **MULTIPART)
    assert (status, answer) == (413, b"upload at most 3 MB\n")
    assert server.ask("POST", "/gradio_api/upload", multipart("a.mp4", bytes(2_500_000)), **MULTIPART)[0] == 413
    wait_until(lambda: parts(server) == [], "a part of an upload is left", 10)


@pytest.mark.parametrize("way", ["closed", "silent", "trickling"])
def test_a_client_that_vanishes_in_an_upload_leaves_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(guard_module, "SILENCE", 1.0)
    body = multipart("a.mp4", bytes(1_000_000), end=False)
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {server.host}\r\nContent-Type: {MULTIPART['Content_Type']}\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(f"{head}Content-Length: 1900000\r\n\r\n".encode() + body[: 500 if way == "trickling" else None])
        if way != "trickling":
            wait_until(lambda: parts(server), "the upload does not begin", 10)
        if way == "closed":
            client.close()
        until = time.monotonic() + 4
        while way == "trickling" and time.monotonic() < until:
            try:
                client.sendall(b"0")
            except OSError:  # the server has hung up
                break
            time.sleep(0.1)
        wait_until(lambda: parts(server) == [], "a part of the upload is left", 10)


def test_a_tab_that_vanishes_in_an_edit_cancels_it_and_its_files_go_away(server: Server, clip: Path) -> None:
    shown = server.upload(clip)
    file = {"path": shown, "meta": {"_type": "gradio.FileData"}}
    heartbeat = socket.create_connection(("127.0.0.1", server.port))
    heartbeat.sendall(f"GET /gradio_api/heartbeat/gone HTTP/1.1\r\nHost: {server.host}\r\n\r\n".encode())
    assert heartbeat.recv(1000)
    server.send(server.listener_of_upload("input"), [file], "gone")
    upload = server.studio.folder / Path(shown).parent.name
    assert upload.is_dir()
    visit = server.studio.visit("gone")
    form = server_form(str(upload / "clip.mp4"))
    failures: list[BaseException] = []

    def edit() -> None:
        try:
            server.studio.edit(form, visit, visit.begin(), lambda *progress: None)
        except BaseException as error:
            failures.append(error)

    server.began.clear()
    thread = threading.Thread(target=edit)
    thread.start()
    assert server.began.wait(60) and list(server.studio.folder.glob("edit-*"))
    heartbeat.close()
    thread.join(20)
    assert [type(error) for error in failures] == [studio_module.Cancelled]
    assert list(server.studio.folder.glob("edit-*")) == []
    wait_until(lambda: not upload.exists(), "the upload of a closed tab is kept", 10)


def test_a_tab_that_never_says_a_word_again_is_left(
    server: Server, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio = server.studio
    upload = studio.folder / Path(server.upload(clip)).parent.name
    abandoned = studio.folder / ("f" * 64)
    abandoned.mkdir()
    os.utime(abandoned, (0, 0))
    studio.keep_upload("mute", upload / "clip.mp4")
    studio.connect("open")
    studio.visit("open").begin()
    studio.reap()
    assert upload.is_dir() and not abandoned.exists()
    monkeypatch.setattr(studio_module, "GONE", 0.0)
    studio.keep_upload("open", upload / "clip.mp4")
    studio.reap()
    assert set(studio.visits) == {"open"} and upload.is_dir()  # another tab uses it
    studio.disconnect("open")
    studio.reap()
    assert not studio.visits and not upload.exists()


def server_form(path: str) -> dict[str, Any]:
    from tests.editing.ui.test_form import FORM

    return FORM | {"input": path, "image": None, "prompt": "a fox"}


def bomb(path: Path, width: int, height: int) -> Path:
    """A black PNG."""
    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * width)
    data = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    chunks = ((b"IHDR", struct.pack("!IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", data), (b"IEND", b""))
    content = [struct.pack("!I", len(c)) + kind + c + struct.pack("!I", zlib.crc32(kind + c)) for kind, c in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(content))
    return path


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_a_picture_that_inflates_to_gigabytes_is_refused_while_memory_stays_flat(
    server: Server, tmp_path: Path
) -> None:
    """In every field. The server is this process; the child has a limit of its own."""
    shown = server.upload(bomb(tmp_path / "bomb.png", 18_000, 17_000))
    file = {"path": shown, "meta": {"_type": "gradio.FileData"}}
    before = resident()
    highest = before
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.01):
            highest = max(highest, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        answers = [
            server.send(server.listener_of_upload(field), [file], "bomber") for field in ("input", "example", "mask")
        ]
    finally:
        done.set()
        watcher.join()
    assert all(status == 200 and b"bomb.png cannot be decoded" in answer for status, answer in answers)
    assert highest - before < 100 << 20
