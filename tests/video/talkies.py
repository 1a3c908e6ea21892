"""Videos with audio that tests make for themselves: a white frame and a click of 1 kHz at the same moments."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.resampler import AudioResampler

EVENTS = (0.8, 1.32)  # seconds
CLICK = 0.01  # seconds


def make_talkie(
    path: Path,
    codec: str = "aac",
    rate: int = 48_000,
    layout: str = "stereo",
    seconds: float = 2.2,
    late: float = 0,
    video_codec: str = "libx264",
    video_late: int = 0,
) -> Path:
    """A video of 25 frames a second of 64x48. `late`: seconds at which the audio begins; `video_late`: frames at which
    the video does. All events stay at their times."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(video_codec, rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream(codec, rate=rate, layout=layout)
        for number in range(video_late, int(seconds * 25)):
            white = any(abs(number / 25 - event) < 0.02 for event in EVENTS)
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 255 * white, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        samples = np.zeros((audio.codec_context.channels, int(seconds * rate)), np.float32)
        wave = 0.9 * np.sin(np.arange(int(CLICK * rate)) * 2 * np.pi * 1000 / rate)
        for event in EVENTS:
            samples[:, int(event * rate) : int(event * rate) + len(wave)] = wave
        context = audio.codec_context
        cut = AudioResampler(context.format.name, layout, rate, context.frame_size or 1024)
        whole = av.AudioFrame.from_ndarray(samples[:, int(late * rate) :], format="fltp", layout=layout)
        whole.sample_rate, whole.pts, whole.time_base = rate, int(late * rate), Fraction(1, rate)
        for part in [*cut.resample(whole), *cut.resample(None)]:
            container.mux(audio.encode(part))
        container.mux(audio.encode(None))
    return path


def seen(path: Path) -> list[float]:
    """When white frames are shown, in seconds."""
    with av.open(str(path)) as container:
        frames = [(frame.time, frame.to_ndarray(format="gray").mean()) for frame in container.decode(video=0)]
    return [float(seconds) for seconds, grey in frames if grey > 128]


def heard(path: Path) -> list[float]:
    """When clicks start, in seconds."""
    clicks: list[float] = []
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        rate = stream.codec_context.sample_rate
        mono = AudioResampler("fltp", "mono", rate)
        for frame in container.decode(stream):
            for part in mono.resample(frame):
                for place in np.nonzero(np.abs(part.to_ndarray()[0]) > 0.25)[0]:
                    seconds = part.time + place / rate
                    if not clicks or seconds > clicks[-1] + 0.1:
                        clicks.append(float(seconds))
    return clicks


def codec_of(path: Path) -> str | None:
    """ffmpeg's name of the audio's codec; None if there is no audio."""
    with av.open(str(path)) as container:
        audio = container.streams.audio
        return audio[0].codec_context.codec.canonical_name if audio else None
