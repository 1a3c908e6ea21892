"""What the page shows of an upload: the video as the browser plays it, or its first frame where it cannot."""

import base64
import html
import io
from urllib.parse import quote

from PIL import Image

from gen1_train.errors import UserError
from gen1_train.video.decoding.probe import VideoInfo
from gen1_train.video.errors import VideoError
from gen1_train.video.stream import Selection, is_image, read_selected

LARGEST_SIDE = 480  # of the first frame, in pixels; ours


def upload_html(path: str, name: str, info: VideoInfo) -> str:
    """Returns the elements that show an upload, with its name and properties. Raises UserError.

    The first frame is decoded here, in the child process, because browsers cannot show every format: it is the poster
    of the video, which stays where the browser cannot play it.
    """
    poster = f"data:image/jpeg;base64,{first_frame(path, name, info)}"
    facts = [f"{info.width}x{info.height}"]
    if is_image(path):
        shown = f'<img src="{poster}" alt="the first frame">'
    else:
        source = f"gradio_api/file={quote(path)}"  # relative: the page may be behind a proxy
        shown = f'<video src="{source}" poster="{poster}" controls muted loop playsinline preload="metadata"></video>'
        seconds = info.seconds if info.seconds is not None else info.expected_frames / info.fps
        facts += [f"{seconds:.1f} s"] * (seconds > 0) + [f"{info.fps:.4g} frames a second"]
    return f'<figure class="upload">{shown}<figcaption>{html.escape(name)}: {", ".join(facts)}</figcaption></figure>'


def first_frame(path: str, name: str, info: VideoInfo) -> str:
    """Returns the first frame as JPEG in base 64, in the aspect ratio of the video. Raises UserError."""
    scale = min(1.0, LARGEST_SIDE / max(info.width, info.height))
    size = max(1, round(info.width * scale)), max(1, round(info.height * scale))
    try:
        (frame,) = read_selected(path, Selection(frames=1), *size)
    except VideoError as error:
        raise UserError(f"{name} cannot be decoded: {error}") from error
    stream = io.BytesIO()
    Image.fromarray(frame.pixels).save(stream, "JPEG", quality=85)
    return base64.b64encode(stream.getvalue()).decode()
