"""Windows of frames: the requested frames, with any decoder and any failure of the child, or a VideoError."""

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
from gen1_train.video.decoding.sandbox import Sandbox, SandboxError
from tests.running import REPOSITORY
from tests.video.files import (
    MEDIA,
    copy_stream,
    cut_short,
    is_alive,
    make_video,
    needs_media,
    number_of,
    overwrite,
)

PAIRS = [[i, i + 4] for i in range(0, 112, 8)]
NUMBERS = [[0, 4, 8, 12], [16, 20, 24, 28], [32, 36, 40, 44]]
ORDERS = [("pyav", "decord"), ("decord", "pyav")]
MIB = 1 << 20


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """The child that the first stream of a test uses; the test may change its limits."""
    sandbox = Sandbox("gen1_train.video.decoding.worker")
    monkeypatch.setattr(decode, "_idle", [sandbox])
    yield sandbox
    decode.close()
    sandbox.close()


def child(sandbox: Sandbox) -> int:
    assert sandbox._process is not None
    return sandbox._process.pid


def read_numbers(path: Path, windows: Sequence[Sequence[int]], decoders: Sequence[str]) -> list[tuple[str, list[int]]]:
    """The decoder of each window, and the numbers that its frames show."""
    return [(name, [number_of(frame) for frame in clip]) for name, clip in read_clips(path, windows, decoders)]


def read_until_error(path: Path, decoders: Sequence[str]) -> tuple[list[np.ndarray], str]:
    """The windows of a damaged file before the VideoError, and its message."""
    clips = []
    with pytest.raises(VideoError) as caught:
        for _, clip in read_clips(path, PAIRS, decoders):
            clips.append(clip)
    assert 0 < len(clips) < len(PAIRS)
    return clips, str(caught.value)


@pytest.mark.parametrize("decoders", ORDERS)
@pytest.mark.parametrize("windows", [NUMBERS, [[0, 1, 2, 3], [2, 4, 6], [3, 20]], [[59]], [[5], [5], [5, 6]]])
def test_windows_contain_the_requested_frames(tmp_path: Path, decoders: tuple, windows: list) -> None:
    path = make_video(tmp_path / "plain.mp4")
    assert read_numbers(path, windows, decoders) == [(decoders[0], window) for window in windows]
    assert count(path) == 60
    for _, clip in read_clips(path, windows, decoders):
        assert clip.dtype == np.uint8 and clip.shape[1:] == (48, 64, 3)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_clips_are_upright(tmp_path: Path, rotation: int) -> None:
    path = make_video(tmp_path / "rotated.mp4", frames=8, rotation=rotation)
    ((_, clip),) = read_clips(path, [[0, 7]])
    assert clip.shape[1:3] == ((64, 48) if rotation % 180 else (48, 64))
    assert number_of(np.rot90(clip[1], -rotation // 90)) == 7


def test_without_windows_no_file_is_opened() -> None:
    assert list(read_clips("absent.mp4", [])) == []


def test_a_window_beyond_the_end_is_an_error(tmp_path: Path) -> None:
    path = make_video(tmp_path / "plain.mp4")
    numbers = []
    with pytest.raises(VideoError, match="frame 60 is beyond the end: the video has 60 frames"):
        for _, clip in read_clips(path, [[0], [50, 60]]):
            numbers.append(number_of(clip[0]))
    assert numbers == [0]


@pytest.mark.parametrize("damage", [cut_short, overwrite])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_damaged_file_gives_its_intact_clips_with_any_decoder(
    tmp_path: Path, suffix: str, damage: Callable[[Path], None]
) -> None:
    """decord's threads detect damage at a varying time, on which the result must not depend."""
    path = make_video(tmp_path / "damaged.mp4", frames=120)
    if suffix == ".mkv":
        path = copy_stream(path, path.with_suffix(suffix), lambda stream: None)
    original = [clip for _, clip in read_clips(path, PAIRS)]
    assert len(original) == len(PAIRS)
    damage(path)
    clips, reason = read_until_error(path, ("pyav", "decord"))
    assert any(clause in reason for clause in ("ends early", "damaged at", "broken after"))
    np.testing.assert_array_equal(clips, original[: len(clips)])
    if suffix == ".mp4":  # in Matroska, decord silently skips damage: one more reason to use PyAV first
        for _ in range(3):
            again, reason_again = read_until_error(path, ("decord", "pyav"))
            assert len(again) == len(clips) and reason_again == reason
            np.testing.assert_array_equal(again, clips)


@pytest.mark.parametrize("name", ["ten_bits.mp4", "repeated.mp4"])
def test_pyav_reads_what_decord_would_decode_incorrectly(tmp_path: Path, name: str) -> None:
    options: dict = {"pixel_format": "yuv420p10le"}
    if name == "repeated.mp4":
        options = {"options": {"bf": "0"}, "starts": [0] * 20 + list(range(1, 41))}
    path = make_video(tmp_path / name, **options)
    assert read_numbers(path, NUMBERS, ("decord", "pyav")) == [("pyav", numbers) for numbers in NUMBERS]


@needs_media
def test_pyav_reads_what_decord_does_not_support() -> None:
    clips = list(read_clips(MEDIA / "av1_video.mkv", [[0, 4], [120, 124]], ("decord", "pyav")))
    assert [name for name, _ in clips] == ["pyav", "pyav"]


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_a_child_that_hangs_fails_the_request(tmp_path: Path, sandbox: Sandbox, decoder: str) -> None:
    path = make_video(tmp_path / "plain.mp4")
    count(path)
    stopped = child(sandbox)
    os.kill(stopped, signal.SIGSTOP)  # as if it were decoding forever
    sandbox.deadline = 1
    with pytest.raises(SandboxError, match="no answer from the decoding process for 1 s") as caught:
        list(read_clips(path, NUMBERS, [decoder]))
    assert caught.value.transient and not is_alive(stopped)
    sandbox.deadline = 60
    assert read_numbers(path, NUMBERS, [decoder]) == [(decoder, numbers) for numbers in NUMBERS]  # a new child


@pytest.mark.slow
def test_pyav_continues_where_decord_hung(tmp_path: Path, sandbox: Sandbox) -> None:
    path = make_video(tmp_path / "plain.mp4")
    count(path)
    os.kill(child(sandbox), signal.SIGSTOP)
    sandbox.deadline = 2
    assert read_numbers(path, NUMBERS, ("decord", "pyav")) == [("pyav", numbers) for numbers in NUMBERS]


def test_no_clip_is_lost_if_the_child_of_decord_dies(tmp_path: Path, sandbox: Sandbox) -> None:
    path = make_video(tmp_path / "plain.mp4", 200, width=320, height=256)  # more than a socket buffers
    windows = [[i, i + 1] for i in range(0, 190, 10)]
    names = []
    numbers = []
    for name, clip in read_clips(path, windows, ("decord", "pyav")):
        names.append(name)
        numbers.append([number_of(frame) for frame in clip])
        if len(names) == 1:
            os.kill(child(sandbox), signal.SIGKILL)
    assert numbers == windows
    assert names[0] == "decord" and names[-1] == "pyav"


def test_decord_is_not_used_if_the_child_of_pyav_dies(tmp_path: Path, sandbox: Sandbox) -> None:
    path = make_video(tmp_path / "plain.mp4", 200, width=320, height=256)
    names = []
    with pytest.raises(SandboxError, match="SIGKILL"):
        for name, _ in read_clips(path, [[i] for i in range(190)], ("pyav", "decord")):
            names.append(name)
            if len(names) == 1:
                os.kill(child(sandbox), signal.SIGKILL)
    assert set(names) == {"pyav"}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 12 frames with 225 MiB of pixels."""
    path = tmp_path_factory.mktemp("large") / "large.mp4"
    return make_video(path, 12, width=3200, height=2048, options={"preset": "ultrafast"}, color_tags={"colorspace": 1})


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_a_file_that_needs_too_much_memory_is_given_up(large: Path, sandbox: Sandbox, decoder: str) -> None:
    sandbox.memory = 200 * MIB
    with pytest.raises(SandboxError, match="used more than 200 MiB of memory") as caught:
        list(read_clips(large, [list(range(12))], [decoder]))
    assert caught.value.transient


def test_a_file_that_is_deleted_while_it_is_read_is_read_completely(tmp_path: Path) -> None:
    path = make_video(tmp_path / "plain.mp4", 200, width=320, height=256)
    clips = read_clips(path, [[i] for i in range(200)])
    first = next(clips)
    path.unlink()
    assert [number_of(clip[0]) for _, clip in [first, *clips]] == list(range(200))  # the child has it open


@pytest.mark.slow
def test_a_file_that_is_truncated_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = make_video(tmp_path / "plain.mp4", 250, width=640, height=480, options={"preset": "ultrafast"})
    clips = read_clips(path, [[i] for i in range(250)])
    numbers = [number_of(next(clips)[1][0])]
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(VideoError):
        for _, clip in clips:
            numbers.append(number_of(clip[0]))
    assert numbers == list(range(len(numbers)))


def test_threads_and_open_streams_have_separate_children(tmp_path: Path) -> None:
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


def test_the_children_end_with_the_process(tmp_path: Path) -> None:
    path = make_video(tmp_path / "plain.mp4")
    script = (
        "import sys; from gen1_train.video import decode; decode.count(sys.argv[1]); "
        "print(decode._idle[0]._process.pid)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], cwd=REPOSITORY, capture_output=True, check=True)
    deadline = time.monotonic() + 20
    while is_alive(int(done.stdout)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(int(done.stdout))


def test_the_child_imports_no_large_library() -> None:
    code = "import sys; import gen1_train.video.decoding.worker; print({'torch', 'decord', 'cv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
