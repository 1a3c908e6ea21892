"""Display matrices: all eight orientations, and those that muxers write by mistake."""

from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest
from av.filter import Graph

from gen1_train.video.decoding.frames import pyav_frames
from gen1_train.video.decoding.orientation import Orientation
from gen1_train.video.decoding.probe import read_header
from tests.video.files import FAULTS, make_video

ORIENTATIONS = [Orientation(*flags) for flags in product((False, True), repeat=3)]
# ffmpeg's filters for each matrix (fftools, configure_input_video_filter), by transposed, flipped_x, flipped_y
FILTERS = {
    (False, False, False): "null",
    (False, True, False): "hflip",
    (False, False, True): "vflip",
    (False, True, True): "hflip,vflip",
    (True, False, False): "transpose=cclock_flip",
    (True, True, False): "transpose=clock",
    (True, False, True): "transpose=cclock",
    (True, True, True): "transpose=clock_flip",
}


def matrix(orientation: Orientation) -> list[int]:
    """The 16.16 values of a display matrix that asks for this orientation."""
    x, y = (-1 if flipped else 1 for flipped in (orientation.flipped_x, orientation.flipped_y))
    a, b, c, d = (0, y, x, 0) if orientation.transposed else (x, 0, 0, y)
    return [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]


def filtered(picture: av.VideoFrame, filters: str) -> np.ndarray:
    graph = Graph()
    source = graph.add_buffer(width=picture.width, height=picture.height, format=picture.format, time_base="1/25")
    nodes = [graph.add(*part.partition("=")[::2]) for part in filters.split(",")]
    graph.link_nodes(source, *nodes, graph.add("buffersink"))
    graph.configure()
    graph.vpush(picture)
    graph.vpush(None)
    return graph.vpull().to_ndarray(format="rgb24")


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pictures_are_turned_as_ffmpeg_turns_them(tmp_path: Path, orientation: Orientation) -> None:
    plain = make_video(tmp_path / "plain.mp4", 2, pixel_format="yuv444p")
    turned = tmp_path / "turned.mp4"
    content = plain.read_bytes()
    unit = np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    header = content.index(b"tkhd")
    place = content.index(unit, header)
    turned.write_bytes(content[:place] + np.array(matrix(orientation), ">i4").tobytes() + content[place + len(unit) :])
    with av.open(str(plain)) as container:
        picture = next(container.decode(video=0))
    flags = (orientation.transposed, orientation.flipped_x, orientation.flipped_y)
    expected = filtered(picture.reformat(format="rgb24"), FILTERS[flags])
    frame = next(iter(pyav_frames(turned)))
    assert (frame.rgb() == expected).all()
    info = read_header(turned)
    assert (info.height, info.width) == expected.shape[:2]
    upright = frame.picture.to_ndarray(format="rgb24")
    mirrored = upright[:, ::-1] if info.mirrored else upright
    assert (np.rot90(mirrored, info.rotation // 90) == expected).all()


@pytest.mark.parametrize("name", ["m_zero", "m_id"])
def test_a_matrix_of_zeros_stands_for_none(name: str) -> None:
    first = next(iter(pyav_frames(FAULTS / f"{name}.mp4")))
    assert (first.rgb() == first.picture.to_ndarray(format="rgb24")).all()
    assert read_header(FAULTS / f"{name}.mp4").rotation == 0


def test_the_front_camera_of_a_phone_is_mirrored() -> None:
    plain = next(iter(pyav_frames(FAULTS / "m_id.mp4"))).rgb()
    flipped = next(iter(pyav_frames(FAULTS / "m_hflip.mp4"))).rgb()
    assert plain.shape == flipped.shape and (flipped == plain[:, ::-1]).mean() > 0.99
