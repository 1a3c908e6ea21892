"""The machine fails, not the files: a full disk, a decoder that hangs or dies, Ctrl-C. Nothing is lost, all is said."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra

from data_tools import read, report
from data_tools.examine import MediaFile
from data_tools.main import main
from data_tools.prepare import run
from data_tools.read import FileReader, Item
from gen1_train.data.shards import ShardSet
from gen1_train.exits import INCOMPLETE
from gen1_train.video import decode
from gen1_train.video.sandbox import Sandbox
from tests.data_tools.bad_files import RECIPE
from tests.data_tools.source import config, make_source
from tests.data_tools.test_kills import content
from tests.running import ENVIRONMENT, REPOSITORY, command
from tests.running import run as run_command
from tests.video.files import is_alive, make_video

pytestmark = pytest.mark.slow

NO_ROOM = "No space left on device"
MIB = 1 << 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("media") / "source")


@pytest.fixture(scope="module")
def straight(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The set of a run in which nothing goes wrong."""
    output = tmp_path_factory.mktemp("straight") / "set"
    assert call(source, output) == INCOMPLETE  # broken.mp4
    return content(output)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder, f"size={4 * MIB}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def mount(folder: Path, options: str) -> None:
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")


def call(source: Path, output: Path, *settings: str) -> int:
    """`gen1-data` in this process; returns its exit code."""
    GlobalHydra.instance().clear()
    arguments, sys.argv = sys.argv, ["gen1-data", f"source={source}", f"output={output}", *RECIPE, *settings]
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv = arguments
    return 0


def leave_room(disk: Path, kibibytes: int) -> None:
    """Fills a disk, but for so much."""
    facts = os.statvfs(disk)
    with open(disk / "ballast", "wb") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, facts.f_bavail * facts.f_bsize - kibibytes * 1024)


def the_error(stderr: str) -> str:
    """The only line of standard error that is no progress."""
    assert "Traceback" not in stderr, stderr
    (line,) = (line for line in stderr.replace("\r", "\n").splitlines() if line.strip() and "|" not in line)
    assert line.startswith("gen1-data: error: ")
    return line


@pytest.mark.parametrize(("steps", "room"), [([], 0), (["plan"], 300), (["plan", "task"], 300)])
def test_a_full_disk(
    source: Path,
    straight: dict[str, bytes],
    disk: Path,
    capsys: pytest.CaptureFixture[str],
    steps: list[str],
    room: int,
) -> None:
    """One line; what is finished is kept; and with more room the same command ends at the same bytes."""
    output = disk / "set"
    for step in steps:
        assert call(source, output, f"step={step}") == 0
    before = content(output)
    leave_room(disk, room)
    capsys.readouterr()
    assert call(source, output) == 2
    line = the_error(capsys.readouterr().err)
    assert f"output={output} " in line and NO_ROOM in line
    after = content(output)
    assert before.items() <= after.items() and "manifest.json" not in after
    assert not [name for name in after if name.endswith(".tmp")]
    if steps == ["plan", "task"]:  # it came half way
        assert "shards/image-64x48-000000.index" in after and "shards/video-64x48-000000.tar" not in after
    (disk / "ballast").unlink()
    assert call(source, output) == INCOMPLETE
    assert content(output) == straight
    assert not (output / ".staging").exists()


def test_a_disk_that_is_full_for_worker_processes(source: Path, straight: dict[str, bytes], disk: Path) -> None:
    """The worker's error reaches the user as the one line that it is."""
    settings = [f"source={source}", f"output={disk / 'set'}", *RECIPE, "recipe.task_seconds=0.1"]
    assert call(source, disk / "set", "step=plan", "recipe.task_seconds=0.1") == 0
    leave_room(disk, 16)
    done = run_command("data_tools.main", *settings, "workers=2")
    line = the_error(done.stderr)
    assert done.returncode == 2 and f"output={disk / 'set'} " in line and NO_ROOM in line
    (disk / "ballast").unlink()
    assert call(source, disk / "set", "recipe.task_seconds=0.1") == INCOMPLETE
    assert tars(content(disk / "set")) == tars(straight)


def tars(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name.endswith(".tar")}


def test_no_room_for_the_page(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The set is frozen by then; the same command again writes the page, and tells again that some failed."""

    def refuse(path: Path, data: bytes) -> None:
        raise OSError(28, NO_ROOM)

    monkeypatch.setattr(report, "write_atomically", refuse)
    assert call(source, tmp_path / "set") == 2
    assert "the set itself is whole" in the_error(capsys.readouterr().err)
    monkeypatch.undo()
    assert call(source, tmp_path / "set") == INCOMPLETE
    assert (tmp_path / "set" / "report.html").stat().st_size > 1000


@pytest.mark.parametrize("kind", ["read-only", "a file", "in a file"])
def test_an_output_that_cannot_be_written(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    output = tmp_path / "place" / "set" if kind == "in a file" else tmp_path / "place"
    if kind == "read-only":
        output.mkdir()
        mount(output, "ro,size=64k")
    else:
        (tmp_path / "place").touch()
    try:
        assert call(source, output) == 2
    finally:
        if kind == "read-only":
            subprocess.run(["umount", str(output)], check=True)
    reason = {"read-only": "Read-only file system", "a file": "File exists", "in a file": "Not a directory"}[kind]
    line = the_error(capsys.readouterr().err)
    assert f"output={output} cannot be written: {reason}" in line


def strike(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> list[int]:
    """Sends a signal to the decoder of long.mp4 once it has given a clip; returns a list that gets its process id."""
    struck: list[int] = []
    items, request = FileReader.items, FileReader.request

    def strikes(reader: FileReader, file: MediaFile, header: dict, frames: np.ndarray | None) -> Iterator[Item]:
        if file.path == "long.mp4" and not struck:
            assert reader.sandbox._process is not None
            struck.append(reader.sandbox._process.pid)
            os.kill(struck[0], number)
            reader.sandbox.deadline = 1.0  # nobody wants to wait for a minute
        yield from items(reader, file, header, frames)

    def patiently(reader: FileReader, file: MediaFile, path: Path) -> dict:
        reader.sandbox.deadline = 60.0
        return request(reader, file, path)

    monkeypatch.setattr(FileReader, "items", strikes)
    monkeypatch.setattr(FileReader, "request", patiently)
    return struck


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGSTOP, "no answer from the decoding process for 1 s"),
        (signal.SIGKILL, "the decoding process crashed (SIGKILL)"),
    ],
)
def test_a_decoder_that_hangs_or_dies_in_the_middle_of_a_file(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, reason: str
) -> None:
    """The file's failure may pass, what was whole of it is kept, the rest goes on, and `retry` brings all of it."""
    copy = shutil.copytree(source, tmp_path / "source")
    make_video(copy / "long.mp4", frames=200)  # more clips than fit between two processes
    changes = {"clips_per_video": None, "task_seconds": 1.0}
    struck = strike(monkeypatch, number)
    assert run(config(copy, tmp_path / "set", **changes)) == INCOMPLETE
    (pid,) = struck
    assert not is_alive(pid)
    lost = failures(tmp_path / "set")
    assert lost.keys() == {"broken.mp4", "long.mp4", "short.mp4", "tiny.png"}
    found = lost["long.mp4"]
    assert (found["category"], found["reason"], found["transient"]) == ("not read this time", reason, True)
    assert 0 < found["clips"] < 50
    assert clips(tmp_path / "set") == {"a.mp4": 15, "sub/b.c.mkv": 10, "photo.png": 1, "long.mp4": found["clips"]}
    monkeypatch.undo()
    assert run(config(copy, tmp_path / "set", retry="transient", **changes)) == INCOMPLETE
    assert clips(tmp_path / "set") == {"a.mp4": 15, "sub/b.c.mkv": 10, "photo.png": 1, "long.mp4": 50}
    assert failures(tmp_path / "set").keys() == {"broken.mp4", "short.mp4", "tiny.png"}


def failures(output: Path) -> dict[str, dict]:
    lines = (output / "failures.jsonl").read_text().splitlines()
    return {entry["file"]: entry for entry in map(json.loads, lines)}


def clips(output: Path) -> dict[str, int]:
    """File -> its samples."""
    shards = ShardSet(output)
    pools = shards.manifest.pools.items()
    read = (shards.read(name, index, ("meta",)).meta for name, pool in pools for index in range(pool.samples))
    return dict(Counter(meta["source"] for meta in read if meta))


@pytest.mark.parametrize("while_planning", [False, True])
def test_decoders_without_memory(
    source: Path, straight: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, while_planning: bool
) -> None:
    """It is said of each file, and another try may bring them; no file is left out because its header was not read."""
    small = partial(Sandbox, memory=32 * MIB)
    monkeypatch.setattr(read, "Sandbox", small)
    if while_planning:
        monkeypatch.setattr(decode, "Sandbox", small)
        monkeypatch.setattr(decode, "_idle", [])  # those have more
    assert call(source, tmp_path / "set") == 2  # not one sample: that is no set
    assert not (tmp_path / "set" / "manifest.json").exists()
    lost = failures(tmp_path / "set")
    passing = {name: loss["reason"] for name, loss in lost.items() if loss["transient"]}
    told = "the decoding process took more than 32 MiB of memory"
    names = ["a.mp4", "photo.png", "sub/b.c.mkv", *(["broken.mp4", "short.mp4"] if while_planning else [])]
    assert passing == dict.fromkeys(names, told)
    monkeypatch.undo()
    assert call(source, tmp_path / "set", "retry=transient") == INCOMPLETE
    assert tars(content(tmp_path / "set")) == tars(straight)
    assert failures(tmp_path / "set").keys() == {"broken.mp4", "short.mp4", "tiny.png"}


@pytest.mark.parametrize("moment", ["it plans", "the workers start", "the workers work"])
def test_ctrl_c_ends_everything(source: Path, straight: dict[str, bytes], tmp_path: Path, moment: str) -> None:
    """At once, with one line and no process left behind; and the same command again goes on."""
    output = tmp_path / "set"
    settings = [f"source={source}", f"output={output}", *RECIPE, "recipe.task_seconds=0.1", "workers=2"]
    process = subprocess.Popen(
        command("data_tools.main", *settings),
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    reached = {
        "it plans": lambda: b"gen1_train.video.worker" in commands(process.pid),
        "the workers start": lambda: commands(process.pid).count(b"spawn_main") >= 2,
        "the workers work": lambda: any(output.glob(".staging/.task-*/.*.tmp")),
    }
    wait_for(reached[moment])
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.replace("\r", "\n").splitlines()[-1] == "gen1-data: interrupted"
    assert "Traceback" not in stderr
    wait_for(lambda: not session(process.pid))
    assert not (output / "manifest.json").exists()
    assert call(source, output, "recipe.task_seconds=0.1") == INCOMPLETE
    assert tars(content(output)) == tars(straight)


def session(leader: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(folder.name))
    return found


def commands(leader: int) -> bytes:
    """The command lines of a session's processes."""
    found = b""
    for number in session(leader):
        with suppress(OSError):
            found += Path(f"/proc/{number}/cmdline").read_bytes()
    return found


def wait_for(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < deadline, "it did not come so far in time"
        time.sleep(0.02)
