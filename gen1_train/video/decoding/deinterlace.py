"""Deinterlaces pictures, since a model would learn the combs of interlaced footage."""

from collections import deque
from collections.abc import Iterable, Iterator

import av
from av.filter import Graph

Timed = tuple[av.VideoFrame, float]  # a picture and its seconds


def deinterlaced(pictures: Iterable[Timed]) -> Iterator[tuple[av.VideoFrame, float, bool]]:
    """Yields all pictures with their seconds, and whether they were interlaced.

    ffmpeg's bwdif makes one picture of two fields, from the first picture on that the decoder marks as interlaced; it
    leaves later ones that are not marked as they are. It needs the next picture, so it returns each one later.
    """
    graph: Graph | None = None
    waiting: deque[tuple[float, bool]] = deque()
    for picture, seconds in pictures:
        if graph is None and picture.interlaced_frame:
            graph = _graph(picture)
        if graph is None:
            yield picture, seconds, False
            continue
        waiting.append((seconds, picture.interlaced_frame))
        graph.vpush(picture)
        for filtered in _pulled(graph):
            yield filtered, *waiting.popleft()
    if graph is not None:
        graph.vpush(None)
        for filtered in _pulled(graph):
            yield filtered, *waiting.popleft()


def _graph(picture: av.VideoFrame) -> Graph:
    graph = Graph()
    graph.threads = 1  # our own processes use the cores
    source = graph.add_buffer(
        width=picture.width, height=picture.height, format=picture.format, time_base=picture.time_base
    )
    graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
    graph.configure()
    return graph


def _pulled(graph: Graph) -> Iterator[av.VideoFrame]:
    while True:
        try:
            yield graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return
