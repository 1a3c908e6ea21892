"""How long a video is, in frames and in seconds, according to the header and the index of its file."""

import itertools
import re

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from gen1_train.video.errors import VideoError

INDEXED = {"mov,mp4,m4a,3gp,3g2,mj2", "avi"}  # ffmpeg's names of formats whose index lists every frame
INDEX_COMPLETE = 0.9  # the share of the frames in the header from which an index is taken as complete; ours
END_TOLERANCE = 1.0  # seconds by which a video may end before the duration in its header; ours
PLAUSIBLE_RATE = 120.0  # frames per second up to which a header is believed; ours
MEASURED = 60  # packets by whose times a rate is measured; ours
REORDERED = 4  # packets among them that may be shown before earlier ones
STANDARD_RATES = [base / divisor for base in (24, 25, 30, 48, 50, 60, 120, 240) for divisor in (1, 1.001)]


def frame_count(stream: VideoStream) -> int | None:
    """The number of frames according to the header; None if it does not tell.

    The count in the header includes frames that an edit list hides, leaves out those of later fragments, and is often
    wrong by one. The index of MP4 and AVI files is exact: it lists every frame, in decoding order. While only the first
    fragments of a file have been read, their number is unknown.
    """
    entries = list(stream.index_entries) if stream.container.format.name in INDEXED else []
    is_partial = stream.container.format.name == "avi" and len(entries) < INDEX_COMPLETE * stream.frames - 2
    if not entries or is_partial:  # an AVI file that was cut off has lost its index
        return stream.frames or None
    hidden = any(entry.is_discard for entry in entries)
    seconds = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    if not hidden and len(entries) / (stream.average_rate or 1) < INDEX_COMPLETE * seconds - END_TOLERANCE:
        return None
    return sum(not entry.is_discard and entry.size > 0 for entry in entries) or None


def frame_rate(container: InputContainer, stream: VideoStream) -> float:
    """The mean frames per second. Raises VideoError if there is no way to tell.

    Some files only have the ticks per second in the header, 1000 in Matroska and FLV. A rate above PLAUSIBLE_RATE, or
    one that ffmpeg's other guess contradicts, is therefore compared with the times of the next packets. The index of
    MP4 and AVI files gives the true mean, and so do the durations of all pictures of a GIF, which may be uneven.
    """
    if container.format.name == "gif" and stream.frames and (seconds := stream_seconds(container, stream)):
        return stream.frames / seconds
    rates = [float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
    is_mean = container.format.name in INDEXED or (len(rates) == 2 and max(rates) < 1.05 * min(rates))
    if rates and is_mean and rates[0] <= PLAUSIBLE_RATE:
        return rates[0]
    measured = _measured_rate(container, stream)
    if measured is None:
        if not rates:
            raise VideoError("the header has no frame rate")
        return rates[0]
    return next((rate for rate in rates if abs(rate - measured) < 0.05 * measured), measured)


def _measured_rate(container: InputContainer, stream: VideoStream) -> float | None:
    """The frames per second of the next MEASURED packets; None if they have no times."""
    packets = itertools.islice((packet for packet in container.demux(stream) if packet.size), MEASURED)
    times = sorted({packet.pts for packet in packets if packet.pts is not None})
    # the last ones may lack neighbors that come later in the file, but are shown earlier
    times = times[: max(2, len(times) - REORDERED)]
    if len(times) < 2 or not stream.time_base:
        return None
    rate = (len(times) - 1) / float((times[-1] - times[0]) * stream.time_base)
    return next((standard for standard in STANDARD_RATES if abs(standard - rate) < 6e-4 * rate), rate)


def stream_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """The duration of the video stream in the header; None if the header has only that of all streams together."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if match := re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", "")):  # Matroska
        return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
    return container_seconds(container) if len(container.streams) == 1 else None


def stream_end(container: InputContainer, stream: VideoStream) -> float | None:
    """The time in seconds, as a timestamp, at which the video stream ends according to the header; None if unknown."""
    seconds = stream_seconds(container, stream)
    if seconds is None or not stream.duration:
        return seconds  # Matroska counts from 0
    return seconds + float((stream.start_time or 0) * (stream.time_base or 0))


def container_seconds(container: InputContainer) -> float | None:
    return container.duration / av.time_base if container.duration else None
