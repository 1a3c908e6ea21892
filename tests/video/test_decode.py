"""Windows of frames: those that were asked for, whoever decodes and whatever happens to the child, or a VideoError."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from gen1_train.video import decode
from gen1_train.video.decode import VideoError, count, read_clips
from gen1_train.video.sandbox import Sandbox, SandboxError
from tests.video.files import MEDIA, copy_stream, is_alive, make_video, needs_media, number_of
from tests.video.test_frames import cut_short, overwrite

ROOT = Path(__file__).parents[2]
PAIRS = [[i, i + 4] for i in range(0, 112, 8)]
NUMBERS = [[0, 4, 8, 12], [16, 20, 24, 28], [32, 36, 40, 44]]
ORDERS = [("pyav", "decord"), ("decord", "pyav")]
MIB = 1 << 20


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """The child that the test's first stream gets; its limits may be changed."""
    sandbox = Sandbox("gen1_train.video.worker")
    monkeypatch.setattr(decode, "_idle", [sandbox])
    yield sandbox
    decode.close()
    sandbox.close()


def child(sandbox: Sandbox) -> int:
    assert sandbox._process is not None
    return sandbox._process.pid


def served(path: Path, windows: Sequence[Sequence[int]], decoders: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Who served each window, and which frames came."""
    return [(name, [number_of(frame) for frame in clip]) for name, clip in read_clips(path, windows, decoders)]


def until_error(path: Path, decoders: Sequence[str]) -> tuple[list[np.ndarray], str]:
    """The windows of a broken file that came before the VideoError, and its message."""
    came = []
    with pytest.raises(VideoError) as caught:
        for _, clip in read_clips(path, PAIRS, decoders):
            came.append(clip)
    assert 0 < len(came) < len(PAIRS)
    return came, str(caught.value)


@pytest.mark.parametrize("decoders", ORDERS)
@pytest.mark.parametrize("windows", [NUMBERS, [[0, 1, 2, 3], [2, 4, 6], [3, 20]], [[59]], [[5], [5], [5, 6]]])
def test_the_frames_that_were_asked_for(tmp_path: Path, decoders: tuple, windows: list) -> None:
    path = make_video(tmp_path / "plain.mp4")
    assert served(path, windows, decoders) == [(decoders[0], window) for window in windows]
    assert count(path) == 60
    for _, clip in read_clips(path, windows, decoders):
        assert clip.dtype == np.uint8 and clip.shape[1:] == (48, 64, 3)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_clips_are_upright(tmp_path: Path, rotation: int) -> None:
    path = make_video(tmp_path / "turned.mp4", frames=8, rotation=rotation)
    ((_, clip),) = read_clips(path, [[0, 7]])
    assert clip.shape[1:3] == ((64, 48) if rotation % 180 else (48, 64))
    assert number_of(np.rot90(clip[1], -rotation // 90)) == 7


def test_no_windows_need_no_file() -> None:
    assert list(read_clips("absent.mp4", [])) == []


def test_a_window_beyond_the_end_is_an_error(tmp_path: Path) -> None:
    path = make_video(tmp_path / "plain.mp4")
    came = []
    with pytest.raises(VideoError, match="frame 60 was asked for, and there are 60"):
        for _, clip in read_clips(path, [[0], [50, 60]]):
            came.append(number_of(clip[0]))
    assert came == [0]


@pytest.mark.parametrize("harm", [cut_short, overwrite])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_broken_file_gives_its_whole_clips_whoever_reads(
    tmp_path: Path, suffix: str, harm: Callable[[Path], None]
) -> None:
    """decord's threads notice the damage sooner or later; what comes out must not depend on it."""
    path = make_video(tmp_path / "broken.mp4", frames=120)
    if suffix == ".mkv":
        path = copy_stream(path, path.with_suffix(suffix), lambda stream: None)
    whole = [clip for _, clip in read_clips(path, PAIRS)]
    assert len(whole) == len(PAIRS)
    harm(path)
    came, reason = until_error(path, ("pyav", "decord"))
    assert any(clause in reason for clause in ("ends early", "damaged at", "broken after"))
    np.testing.assert_array_equal(came, whole[: len(came)])
    if suffix == ".mp4":  # in Matroska decord skips what is broken and tells nobody: one more reason to ask PyAV first
        for _ in range(3):
            again, reason_again = until_error(path, ("decord", "pyav"))
            assert len(again) == len(came) and reason_again == reason
            np.testing.assert_array_equal(again, came)


@pytest.mark.parametrize("name", ["ten_bits.mp4", "repeated.mp4"])
def test_what_decord_does_wrong_is_served_by_pyav(tmp_path: Path, name: str) -> None:
    options: dict = {"pixel_format": "yuv420p10le"}
    if name == "repeated.mp4":
        options = {"options": {"bf": "0"}, "starts": [0] * 20 + list(range(1, 41))}
    path = make_video(tmp_path / name, **options)
    assert served(path, NUMBERS, ("decord", "pyav")) == [("pyav", numbers) for numbers in NUMBERS]


@needs_media
def test_what_decord_cannot_read_is_served_by_pyav() -> None:
    clips = list(read_clips(MEDIA / "av1_video.mkv", [[0, 4], [120, 124]], ("decord", "pyav")))
    assert [name for name, _ in clips] == ["pyav", "pyav"]


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_a_child_that_hangs_is_lost_and_the_request_with_it(tmp_path: Path, sandbox: Sandbox, decoder: str) -> None:
    path = make_video(tmp_path / "plain.mp4")
    count(path)
    stopped = child(sandbox)
    os.kill(stopped, signal.SIGSTOP)  # as if it were decoding for ever
    sandbox.deadline = 1
    with pytest.raises(SandboxError, match="no answer from the decoding process for 1 s") as caught:
        list(read_clips(path, NUMBERS, [decoder]))
    assert caught.value.transient and not is_alive(stopped)
    sandbox.deadline = 60
    assert served(path, NUMBERS, [decoder]) == [(decoder, numbers) for numbers in NUMBERS]  # a new child


def test_pyav_goes_on_where_decord_hung(tmp_path: Path, sandbox: Sandbox) -> None:
    path = make_video(tmp_path / "plain.mp4")
    count(path)
    os.kill(child(sandbox), signal.SIGSTOP)
    sandbox.deadline = 5
    assert served(path, NUMBERS, ("decord", "pyav")) == [("pyav", numbers) for numbers in NUMBERS]


def test_a_child_of_decord_that_dies_in_the_middle_loses_no_clip(tmp_path: Path, sandbox: Sandbox) -> None:
    path = make_video(tmp_path / "plain.mp4", 200, width=320, height=256)  # more than a socket holds
    windows = [[i, i + 1] for i in range(0, 190, 10)]
    names, numbers = [], []
    for name, clip in read_clips(path, windows, ("decord", "pyav")):
        names.append(name)
        numbers.append([number_of(frame) for frame in clip])
        if len(names) == 1:
            os.kill(child(sandbox), signal.SIGKILL)
    assert numbers == windows
    assert names[0] == "decord" and names[-1] == "pyav"


def test_decord_is_not_asked_when_the_child_of_pyav_died(tmp_path: Path, sandbox: Sandbox) -> None:
    path = make_video(tmp_path / "plain.mp4", 200, width=320, height=256)
    came = []
    with pytest.raises(SandboxError, match="SIGKILL"):
        for name, _ in read_clips(path, [[i] for i in range(190)], ("pyav", "decord")):
            came.append(name)
            if len(came) == 1:
                os.kill(child(sandbox), signal.SIGKILL)
    assert set(came) == {"pyav"}


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_a_file_that_needs_too_much_memory_is_given_up(tmp_path: Path, sandbox: Sandbox, decoder: str) -> None:
    path = make_video(tmp_path / "large.mp4", 30, width=3200, height=2048, options={"preset": "ultrafast", "g": "30"})
    sandbox.memory = 200 * MIB
    with pytest.raises(SandboxError, match="took more than 200 MiB of memory") as caught:
        list(read_clips(path, [[0, 29]], [decoder]))
    assert caught.value.transient


def test_a_file_that_vanishes_while_it_is_read_does_no_harm(tmp_path: Path) -> None:
    path = make_video(tmp_path / "plain.mp4", 200, width=320, height=256)
    clips = read_clips(path, [[i] for i in range(200)])
    first = next(clips)
    path.unlink()
    assert [number_of(clip[0]) for _, clip in [first, *clips]] == list(range(200))  # the child has it open


def test_a_file_that_is_cut_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = make_video(tmp_path / "plain.mp4", 250, width=640, height=480)
    clips = read_clips(path, [[i] for i in range(250)])
    numbers = [number_of(next(clips)[1][0])]
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(VideoError):
        for _, clip in clips:
            numbers.append(number_of(clip[0]))
    assert numbers == list(range(len(numbers)))


def test_threads_and_open_streams_have_children_of_their_own(tmp_path: Path) -> None:
    path = make_video(tmp_path / "plain.mp4")
    for (_, a), (_, b) in zip(read_clips(path, NUMBERS), read_clips(path, NUMBERS[::-1][:1] * 3), strict=True):
        assert number_of(b[0]) == 32 and number_of(a[0]) in (0, 16, 32)
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(count(path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [60] * 3


def test_the_children_go_with_the_process(tmp_path: Path) -> None:
    path = make_video(tmp_path / "plain.mp4")
    script = (
        "import sys; from gen1_train.video import decode; decode.count(sys.argv[1]); "
        "print(decode._idle[0]._process.pid)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, capture_output=True, check=True)
    until = time.monotonic() + 20
    while is_alive(int(done.stdout)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not is_alive(int(done.stdout))


def test_nothing_heavy_is_imported() -> None:
    code = "import sys; import gen1_train.video.worker; print({'torch', 'decord', 'cv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
