"""Reading frames: the choice of the decoder, and damaged files, which give intact frames and then an error."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from gen1_train.video.decoding import reading
from gen1_train.video.decoding.frames import Frame, PyAVFrame
from gen1_train.video.decoding.reading import read_any, read_frames
from gen1_train.video.errors import VideoError
from tests.video.files import (
    MEDIA,
    copy_stream,
    cut_short,
    flip_bit,
    make_video,
    needs_media,
    overwrite,
    overwrite_repeatedly,
)


def test_an_unknown_decoder_is_an_error() -> None:
    with pytest.raises(ValueError, match="'ffmpeg' is not a decoder; choose from pyav, decord"):
        read_frames("some.mp4", "ffmpeg")


class FakeDecoders:
    """Replaces `read_frames` by decoders that yield some frames and then raise an error or end."""

    def __init__(self, **behavior: tuple[int, VideoError | None]) -> None:
        self.behavior = behavior
        self.calls: list[str] = []

    def __call__(self, path: str | Path, decoder: str) -> Iterator[Frame]:
        self.calls.append(decoder)
        count, error = self.behavior[decoder]
        for index in range(count):
            yield PyAVFrame(index, index / 25, None, None, decoder=decoder)  # type: ignore[arg-type]
        if error is not None:
            raise error


UNSUPPORTED = VideoError("no decoder", unsupported=True)


@pytest.mark.parametrize(
    ("order", "pyav", "decord", "calls", "sources"),
    [
        ("pyav decord", (5, None), (5, None), "pyav", "ppppp"),
        ("pyav decord", (0, UNSUPPORTED), (5, None), "pyav decord", "ddddd"),
        ("decord pyav", (5, None), (5, None), "decord", "ddddd"),
        ("decord pyav", (5, None), (2, VideoError("lost")), "decord pyav", "ddppp"),
    ],
)
def test_the_next_decoder_continues(
    monkeypatch: pytest.MonkeyPatch, order: str, pyav: tuple, decord: tuple, calls: str, sources: str
) -> None:
    decoders = FakeDecoders(pyav=pyav, decord=decord)
    monkeypatch.setattr(reading, "read_frames", decoders)
    frames = list(read_any("some.mp4", order.split()))
    assert "".join(frame.decoder[0] for frame in frames) == sources
    assert [frame.index for frame in frames] == list(range(5))
    assert " ".join(decoders.calls) == calls


@pytest.mark.parametrize(
    ("order", "pyav", "decord", "calls", "reason"),
    [
        ("pyav decord", (0, VideoError("damaged at frame 0")), (5, None), "pyav", "damaged at frame 0"),
        ("pyav decord", (3, VideoError("damaged at frame 3")), (5, None), "pyav", "damaged at frame 3"),
        ("pyav decord", (0, UNSUPPORTED), (0, VideoError("no decoder either")), "pyav decord", "no decoder"),
        ("decord pyav", (3, VideoError("damaged at frame 3")), (1, VideoError("lost")), "decord pyav", "damaged at"),
        ("decord", (0, None), (1, VideoError("lost")), "decord", "lost"),
    ],
)
def test_decord_is_not_used_after_damage_and_the_reason_is_from_pyav(
    monkeypatch: pytest.MonkeyPatch, order: str, pyav: tuple, decord: tuple, calls: str, reason: str
) -> None:
    decoders = FakeDecoders(pyav=pyav, decord=decord)
    monkeypatch.setattr(reading, "read_frames", decoders)
    with pytest.raises(VideoError, match=reason):
        list(read_any("some.mp4", order.split()))
    assert " ".join(decoders.calls) == calls


def test_an_unknown_codec_is_unsupported(tmp_path: Path) -> None:
    path = make_video(tmp_path / "some.mp4", 8)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz1"))
    with pytest.raises(VideoError) as caught:
        list(read_frames(path))
    assert caught.value.unsupported and not caught.value.transient
    with pytest.raises(VideoError, match=str(caught.value)):
        list(read_any(path))


@needs_media
def test_av1_is_read() -> None:
    frames = list(read_any(MEDIA / "av1_video.mkv"))
    assert len(frames) == 125 and frames[-1].seconds == pytest.approx(124 / 25, abs=1e-3)
    with pytest.raises(VideoError, match="decord"):
        next(read_frames(MEDIA / "av1_video.mkv", "decord"))


def read_until_error(path: Path) -> tuple[list[np.ndarray], str | None]:
    """The frames before the error, and its message; None without an error."""
    frames: list[np.ndarray] = []
    try:
        for frame in read_any(path):
            frames.append(frame.rgb())
    except VideoError as error:
        assert not error.transient
        return frames, str(error)
    return frames, None


@pytest.mark.parametrize("damage", [cut_short, overwrite, overwrite_repeatedly])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_damaged_file_gives_intact_frames_and_an_error(
    tmp_path: Path, suffix: str, damage: Callable[[Path], None]
) -> None:
    path = make_video(tmp_path / "damaged.mp4", 200)
    if suffix == ".mkv":
        path = copy_stream(path, path.with_suffix(suffix), lambda stream: None)
    original, no_error = read_until_error(path)
    assert len(original) == 200 and no_error is None
    damage(path)
    frames, reason = read_until_error(path)
    assert reason is not None and any(clause in reason for clause in ("ends early", "damaged at", "broken after"))
    assert 50 < len(frames) < 150
    np.testing.assert_array_equal(frames, original[: len(frames)])


@pytest.mark.slow
@needs_media
def test_flipped_bits_never_give_a_wrong_frame_of_a_real_file(tmp_path: Path) -> None:
    """decord, and PyAV if its flags are ignored, return up to 94 frames of garbage for one bit."""
    original, no_error = read_until_error(MEDIA / "bigbuckbunny.mp4")
    assert no_error is None
    original = [frame[::8, ::8] for frame in original]
    generator = np.random.default_rng(0)
    errors = 0
    for _ in range(6):
        frames, error = read_until_error(flip_bit(MEDIA / "bigbuckbunny.mp4", tmp_path / "flipped.mp4", generator))
        assert all((a[::8, ::8] == b).all() for a, b in zip(frames, original, strict=False))
        assert error is not None or len(frames) == len(original)
        errors += error is not None
    assert errors >= 3


def test_most_flipped_bits_are_detected(tmp_path: Path) -> None:
    """Not all can be: some leave a valid stream with another picture, which no decoder can detect."""
    path = make_video(tmp_path / "original.mp4", 60, width=160, height=96)
    original, _ = read_until_error(path)
    generator = np.random.default_rng(3)
    detected = 0
    for _ in range(40):  # of 200, 143 are
        frames, error = read_until_error(flip_bit(path, tmp_path / "flipped.mp4", generator))
        detected += error is not None
        assert error is not None or len(frames) == len(original)
    assert detected > 20


@needs_media
def test_a_file_with_broken_packets_is_an_error() -> None:
    frames, error = read_until_error(MEDIA / "corrupted.mp4")
    assert error == "broken after 28 frames: Invalid data found when processing input" and len(frames) == 12
