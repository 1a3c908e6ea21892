"""The machine fails, not the files: a full disk, a decoder that hangs or dies. No sample is lost silently."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra

from data_tools.clips import read
from data_tools.clips.read import FileReader, Item
from data_tools.main import main
from data_tools.prepare import run
from data_tools.sets import report
from data_tools.source.examine import MediaFile
from gen1_train.data.shards import ShardSet
from gen1_train.errors import INCOMPLETE
from gen1_train.video import decode
from gen1_train.video.decoding.sandbox import Sandbox
from tests.data_tools.bad_files import RECIPE
from tests.data_tools.small_source import config, make_source
from tests.digests import set_digests
from tests.running import run as run_command
from tests.video.files import is_alive, make_video

pytestmark = pytest.mark.slow

NO_ROOM = "No space left on device"
MIB = 1 << 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("media") / "source")


@pytest.fixture(scope="module")
def straight(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a set made by a run without mishaps."""
    output = tmp_path_factory.mktemp("straight") / "set"
    assert call(source, output) == INCOMPLETE  # broken.mp4
    return set_digests(output)


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
    """Runs `gen1-data` in this process and returns its exit code."""
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
    """Fills a disk except for `kibibytes`."""
    facts = os.statvfs(disk)
    with open(disk / "ballast", "wb") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, facts.f_bavail * facts.f_bsize - kibibytes * 1024)


def the_error(stderr: str) -> str:
    """Returns the only line of standard error that is not a progress bar."""
    assert "Traceback" not in stderr, stderr
    (line,) = (line for line in stderr.replace("\r", "\n").splitlines() if line.strip() and "|" not in line)
    assert line.startswith("gen1-data: error: ")
    return line


@pytest.mark.parametrize(("steps", "room"), [([], 0), (["plan"], 300), (["plan", "task"], 300)])
def test_a_full_disk(
    source: Path,
    straight: dict[str, str],
    disk: Path,
    capsys: pytest.CaptureFixture[str],
    steps: list[str],
    room: int,
) -> None:
    """Ends with one line and keeps what is finished; with more room the same command ends with the same bytes."""
    output = disk / "set"
    for step in steps:
        assert call(source, output, f"step={step}") == 0
    before = set_digests(output)
    leave_room(disk, room)
    capsys.readouterr()
    assert call(source, output) == 2
    line = the_error(capsys.readouterr().err)
    assert f"output={output} " in line and NO_ROOM in line
    after = set_digests(output)
    assert before.items() <= after.items() and "manifest.json" not in after
    assert not [name for name in after if name.endswith(".tmp")]
    if steps == ["plan", "task"]:  # the freeze wrote some of its shards
        assert "shards/image-64x48-000000.index" in after and "shards/video-64x48-000000.tar" not in after
    (disk / "ballast").unlink()
    assert call(source, output) == INCOMPLETE
    assert set_digests(output) == straight
    assert not (output / ".staging").exists()


def test_a_full_disk_in_worker_processes(source: Path, straight: dict[str, str], disk: Path) -> None:
    """The worker's error reaches the user as one line."""
    settings = [f"source={source}", f"output={disk / 'set'}", *RECIPE, "recipe.task_seconds=0.1"]
    assert call(source, disk / "set", "step=plan", "recipe.task_seconds=0.1") == 0
    leave_room(disk, 16)
    done = run_command("data_tools.main", *settings, "workers=2")
    line = the_error(done.stderr)
    assert done.returncode == 2 and f"output={disk / 'set'} " in line and NO_ROOM in line
    (disk / "ballast").unlink()
    assert call(source, disk / "set", "recipe.task_seconds=0.1") == INCOMPLETE
    lost = failures(disk / "set")
    assert lost.keys() == {"broken.mp4", "short.mp4", "tiny.png"}, lost
    assert tars(set_digests(disk / "set")) == tars(straight)


def tars(files: dict[str, str]) -> dict[str, str]:
    return {name: data for name, data in files.items() if name.endswith(".tar")}


def test_a_full_disk_when_the_page_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The set is already frozen; the same command again writes the page and reports the failures by its exit code."""

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


def send_signal(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> list[int]:
    """Sends a signal to the decoder of long.mp4 after its first clip; returns a list that receives the process id."""
    signaled: list[int] = []
    items, request = FileReader.items, FileReader.request

    def items_then_signal(
        reader: FileReader, file: MediaFile, header: dict, frames: np.ndarray | None
    ) -> Iterator[Item]:
        if file.path == "long.mp4" and not signaled:
            assert reader.sandbox._process is not None
            signaled.append(reader.sandbox._process.pid)
            os.kill(signaled[0], number)
            reader.sandbox.deadline = 1.0  # instead of a minute
        yield from items(reader, file, header, frames)

    def request_with_full_deadline(reader: FileReader, file: MediaFile, path: Path) -> dict:
        reader.sandbox.deadline = 60.0
        return request(reader, file, path)

    monkeypatch.setattr(FileReader, "items", items_then_signal)
    monkeypatch.setattr(FileReader, "request", request_with_full_deadline)
    return signaled


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGSTOP, "no answer from the decoding process for 1 s"),
        (signal.SIGKILL, "the decoding process crashed (SIGKILL)"),
    ],
)
def test_a_decoder_that_hangs_or_dies_within_a_file(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, reason: str
) -> None:
    """The failure is transient, the file's whole clips and other files are kept, and `retry` adds the rest."""
    copy = shutil.copytree(source, tmp_path / "source")
    make_video(copy / "long.mp4", frames=200)  # more clips than the queues hold
    changes = {"clips_per_video": None, "task_seconds": 1.0}
    signaled = send_signal(monkeypatch, number)
    assert run(config(copy, tmp_path / "set", **changes)) == INCOMPLETE
    (pid,) = signaled
    assert not is_alive(pid)
    lost = failures(tmp_path / "set")
    assert lost.keys() == {"broken.mp4", "long.mp4", "short.mp4", "tiny.png"}
    failure = lost["long.mp4"]
    assert (failure["category"], failure["reason"], failure["transient"]) == ("not read this time", reason, True)
    assert 0 < failure["clips"] < 50
    assert clips(tmp_path / "set") == {"a.mp4": 15, "sub/b.c.mkv": 10, "photo.png": 1, "long.mp4": failure["clips"]}
    monkeypatch.undo()
    assert run(config(copy, tmp_path / "set", retry="transient", **changes)) == INCOMPLETE
    assert clips(tmp_path / "set") == {"a.mp4": 15, "sub/b.c.mkv": 10, "photo.png": 1, "long.mp4": 50}
    assert failures(tmp_path / "set").keys() == {"broken.mp4", "short.mp4", "tiny.png"}


def failures(output: Path) -> dict[str, dict]:
    lines = (output / "failures.jsonl").read_text().splitlines()
    return {entry["file"]: entry for entry in map(json.loads, lines)}


def clips(output: Path) -> dict[str, int]:
    """Returns file -> number of its samples."""
    shards = ShardSet(output)
    pools = shards.manifest.pools.items()
    read = (shards.read(name, index, ("meta",)).meta for name, pool in pools for index in range(pool.samples))
    return dict(Counter(meta["source"] for meta in read if meta))


@pytest.mark.parametrize("while_planning", [False, True])
def test_decoders_without_memory(
    source: Path, straight: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, while_planning: bool
) -> None:
    """Each file has a transient failure; no file is left out of the plan because its header was not read."""
    small = partial(Sandbox, memory=32 * MIB)
    monkeypatch.setattr(read, "Sandbox", small)
    if while_planning:
        monkeypatch.setattr(decode, "Sandbox", small)
        monkeypatch.setattr(decode, "_idle", [])  # the idle processes have more memory
    assert call(source, tmp_path / "set") == 2  # without a sample there is no set
    assert not (tmp_path / "set" / "manifest.json").exists()
    lost = failures(tmp_path / "set")
    passing = {name: loss["reason"] for name, loss in lost.items() if loss["transient"]}
    reason = "the decoding process used more than 32 MiB of memory"
    names = ["a.mp4", "photo.png", "sub/b.c.mkv", *(["broken.mp4", "short.mp4", "tiny.png"] if while_planning else [])]
    assert passing == dict.fromkeys(names, reason)
    monkeypatch.undo()
    assert call(source, tmp_path / "set", "retry=transient") == INCOMPLETE
    lost = failures(tmp_path / "set")
    assert lost.keys() == {"broken.mp4", "short.mp4", "tiny.png"}, lost
    assert tars(set_digests(tmp_path / "set")) == tars(straight)
