"""The child of decord may hang, crash or be left alone: nobody waits for it, and it is gone afterwards."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gen1_train.video.decode import DecordReader, PyAVReader, VideoError, read_clips
from tests.video.files import is_alive, make_video, number_of

WINDOWS = [[0, 4], [8, 12], [16, 20]]


def child(reader: DecordReader) -> int:
    assert reader._process is not None
    return reader._process.pid


def test_a_child_that_hangs_is_killed_and_pyav_goes_on(tmp_path: Path) -> None:
    path = make_video(tmp_path / "plain.mp4")
    reader = DecordReader(deadline=1)
    reader.count(path)
    stopped = child(reader)
    os.kill(stopped, signal.SIGSTOP)  # as if it were decoding for ever
    begin = time.monotonic()
    clips = list(read_clips(path, WINDOWS, [reader, PyAVReader()]))
    assert time.monotonic() - begin < 5
    assert [name for name, _ in clips] == ["pyav"] * 3
    assert not is_alive(stopped)
    assert [name for name, _ in read_clips(path, WINDOWS, [reader])] == ["decord"] * 3  # a new child
    reader.close()


def test_a_child_that_dies_in_the_middle_loses_no_clip(tmp_path: Path) -> None:
    path = make_video(tmp_path / "plain.mp4")
    reader = DecordReader()
    numbers = []
    for name, clip in read_clips(path, WINDOWS, [reader, PyAVReader()]):
        numbers.append([number_of(frame) for frame in clip])
        if name == "decord":
            os.kill(child(reader), signal.SIGKILL)
    assert numbers == WINDOWS
    reader.close()


def test_a_crash_is_transient(tmp_path: Path) -> None:
    path = make_video(tmp_path / "plain.mp4")
    reader = DecordReader(deadline=1)
    reader.count(path)
    os.kill(child(reader), signal.SIGSTOP)
    with pytest.raises(VideoError, match="crashed or took more than 1 s") as caught:
        reader.count(path)
    assert caught.value.transient


def test_a_child_with_too_much_memory_gives_the_file_up(tmp_path: Path) -> None:
    path = make_video(tmp_path / "plain.mp4")
    reader = DecordReader(memory=1)
    with pytest.raises(VideoError, match="in use"):
        list(reader.clips(path, WINDOWS))
    assert [name for name, _ in read_clips(path, WINDOWS, [reader, PyAVReader()])] == ["pyav"] * 3
    reader.close()


def test_the_child_goes_with_its_reader(tmp_path: Path) -> None:
    path = make_video(tmp_path / "plain.mp4")
    reader = DecordReader()
    reader.count(path)
    pid = child(reader)
    del reader
    assert not is_alive(pid)


def test_the_child_goes_with_a_killed_parent(tmp_path: Path) -> None:
    path = make_video(tmp_path / "plain.mp4")
    script = (
        "import sys, time; from gen1_train.video.decode import DecordReader; r = DecordReader(); "
        "r.count(sys.argv[1]); print(r._process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    os.kill(pid, signal.SIGSTOP)  # it could not even notice that its pipe is closed
    parent.kill()
    parent.wait()
    os.kill(pid, signal.SIGCONT)
    until = time.monotonic() + 5
    while is_alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(pid)
    parent.stdout.close()


def test_decord_is_not_imported_here() -> None:
    code = "import sys; import gen1_train.video.decode; assert 'decord' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
