"""Videos with audio for tests: a white frame and a click of 1 kHz at the same times."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.resampler import AudioResampler

from gen1_train.video.encode import REPRODUCIBLE

EVENTS = (0.8, 1.32)  # seconds
CLICK = 0.01  # seconds


def make_video_with_audio(
    path: Path,
    codec: str = "aac",
    rate: int = 48_000,
    layout: str = "stereo",
    seconds: float = 2.2,
    audio_start: float = 0,
    video_codec: str = "libx264",
    video_start: int = 0,
) -> Path:
    """Writes a video of 64x48 with 25 frames per second and the EVENTS at their times.

    The audio begins at `audio_start` seconds, and the video at frame `video_start`.
    """
    with av.open(str(path), "w") as container:
        options = {"x264-params": REPRODUCIBLE} if video_codec == "libx264" else {}
        video = container.add_stream(video_codec, rate=25, options=options)
        video.width = 64
        video.height = 48
        video.pix_fmt = "yuv420p"
        audio = container.add_stream(codec, rate=rate, layout=layout)
        for number in range(video_start, int(seconds * 25)):
            white = any(abs(number / 25 - event) < 0.02 for event in EVENTS)
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 255 * white, np.uint8), format="rgb24")
            frame.pts = number
            frame.time_base = Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        samples = np.zeros((audio.codec_context.channels, int(seconds * rate)), np.float32)
        wave = 0.9 * np.sin(np.arange(int(CLICK * rate)) * 2 * np.pi * 1000 / rate)
        for event in EVENTS:
            samples[:, int(event * rate) : int(event * rate) + len(wave)] = wave
        context = audio.codec_context
        cut = AudioResampler(context.format.name, layout, rate, context.frame_size or 1024)
        audio_frame = av.AudioFrame.from_ndarray(samples[:, int(audio_start * rate) :], format="fltp", layout=layout)
        audio_frame.sample_rate = rate
        audio_frame.pts = int(audio_start * rate)
        audio_frame.time_base = Fraction(1, rate)
        for part in [*cut.resample(audio_frame), *cut.resample(None)]:
            container.mux(audio.encode(part))
        container.mux(audio.encode(None))
    return path


def flash_times(path: Path) -> list[float]:
    """The times of the white frames, in seconds."""
    with av.open(str(path)) as container:
        frames = [(frame.time, frame.to_ndarray(format="gray").mean()) for frame in container.decode(video=0)]
    return [float(seconds) for seconds, gray in frames if gray > 128]


def click_times(path: Path) -> list[float]:
    """The start times of the clicks, in seconds."""
    clicks: list[float] = []
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        rate = stream.codec_context.sample_rate
        mono = AudioResampler("fltp", "mono", rate)
        for frame in container.decode(stream):
            for part in mono.resample(frame):
                for sample in np.nonzero(np.abs(part.to_ndarray()[0]) > 0.25)[0]:
                    seconds = part.time + sample / rate
                    if not clicks or seconds > clicks[-1] + 0.1:
                        clicks.append(float(seconds))
    return clicks


def codec_of(path: Path) -> str | None:
    """ffmpeg's name of the audio's codec; None if there is no audio."""
    with av.open(str(path)) as container:
        audio = container.streams.audio
        return audio[0].codec_context.codec.canonical_name if audio else None
