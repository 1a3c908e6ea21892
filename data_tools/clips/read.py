"""Reads the files of a task as clips, in order: reader threads, each with a child process that decodes."""

import hashlib
import queue
import re
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.failures import Failure
from data_tools.pipeline import Clip
from data_tools.recipe import RecipeConfig, choose_bucket
from data_tools.source.examine import MediaFile, describe
from data_tools.source.locations import Source
from gen1_train.batch import Pool
from gen1_train.video.decoding.sandbox import Sandbox
from gen1_train.video.errors import VideoError
from gen1_train.video.geometry import parse_bucket

AHEAD = 4  # clips that each reader may hold ready


@dataclass(frozen=True)
class Progress:
    """Reports that the file was read up to this time."""

    seconds: float


@dataclass(frozen=True)
class FileEnd:
    """Marks the end of a file: no more items follow from it."""

    file: MediaFile
    failure: Failure | None = None  # of the whole file


Item = Clip | Failure | Progress | FileEnd


class FileReader:
    """Reads one file after another. Each thread needs its own reader."""

    def __init__(self, source: Source, recipe: RecipeConfig, stills: bool) -> None:
        self.source = source
        self.recipe = recipe
        self.stills = stills
        self.sandbox = Sandbox("data_tools.clips.clip_worker")

    def close(self) -> None:
        self.sandbox.close()

    def read(self, file: MediaFile) -> Generator[Item]:
        """Yields every clip of a file and every drop, and then a FileEnd. Never raises for a bad file."""
        failure = None
        try:
            if not file.bucket:  # the header could not be read when the file was planned
                described = describe(self.source, self.recipe, file)
                if isinstance(described, Failure):
                    yield FileEnd(file, described)
                    return
                file = described
            with self.source.local(file.path, file.bytes) as path:
                if file.kind == "image":
                    yield self.image(file, path)
                else:
                    for header, frames in self.sandbox.stream(self.request(file, path)):
                        yield from self.items(file, header, frames)
        except VideoError as error:
            failure = Failure(file.path, failure_category(error), str(error), transient=error.transient)
        except OSError as error:
            failure = Failure(file.path, "not there", str(error.strerror or error), transient=True)
        yield FileEnd(file, failure)

    def image(self, file: MediaFile, path: Path) -> Clip:
        """Returns an image file as a clip of one frame. Raises VideoError."""
        width, height = size = parse_bucket(file.bucket)
        ((_, frames),) = self.sandbox.stream({"do": "image", "path": str(path), "size": size})
        assert frames is not None
        return Clip(file_key(file), Pool("image", width, height, 1), frames, file.caption, self.facts(file))

    def request(self, file: MediaFile, path: Path) -> dict[str, Any]:
        still = self.still_bucket(file)
        return {
            "do": "clips",
            "path": str(path),
            "decoders": self.recipe.decoders,
            "cut": asdict(self.recipe.cut.of_video(file.fps)),
            "frames": file.frames,
            "size": parse_bucket(file.bucket),
            "still_size": parse_bucket(still) if still else None,
            "pixel_aspect": file.pixel_aspect,
        }

    def still_bucket(self, file: MediaFile) -> str | None:
        """Returns the image bucket for a video's stills; None without stills, or if they would be enlarged too much."""
        bucket, factor = choose_bucket(self.recipe, "image", file.width, file.height)
        return bucket if self.stills and factor <= self.recipe.max_enlargement else None

    def items(self, file: MediaFile, header: dict[str, Any], frames: np.ndarray | None) -> Iterator[Item]:
        """Yields the items that one answer of the child process stands for."""
        seconds: Any = header.get("seconds")
        match header["is"]:
            case "clip":
                stride = self.recipe.cut.of_video(file.fps).stride
                facts = {"stride": stride, "seconds": seconds, "motion": header["motion"]}
                yield self.make_clip(file, "video", header, frames, facts)
                yield Progress(seconds[1])
            case "still":
                yield self.make_clip(file, "image", header, frames, {})
            case "drop":
                reason, category = header["reason"], header["category"]
                yield Failure(file.path, category, reason, failed=False, start=seconds[0], end=seconds[1])
            case "progress":
                yield Progress(seconds)

    def make_clip(
        self, file: MediaFile, kind: str, header: dict[str, Any], frames: np.ndarray | None, facts: dict[str, Any]
    ) -> Clip:
        """Returns a clip of a video, or its still, with the content of its meta.json."""
        assert frames is not None
        first = header["first"]
        first_shown = first
        longer = kind == "video" and len(frames) > self.recipe.cut.frames
        key = f"{file_key(file)}-{first:06d}" + (f"-{len(frames)}f" if longer else "")
        if kind == "image":
            key = f"{key}-still"
            first_shown += self.recipe.cut.frames // 2 * self.recipe.cut.of_video(file.fps).stride
        pool = Pool(kind, frames.shape[2], frames.shape[1], len(frames), longer)
        common = {"kind": kind, "fps": file.fps, "first_frame": first_shown, "decoder": header["decoder"]}
        if header["interlaced"]:
            common["deinterlaced"] = True
        return Clip(key, pool, frames, file.caption, {**self.facts(file), **facts, **common})

    def facts(self, file: MediaFile) -> dict[str, Any]:
        return {"kind": file.kind, "source": file.path, "source_size": [file.width, file.height]}


def failure_category(error: VideoError) -> str:
    """Returns the category under which a reader's error is counted."""
    return "not read this time" if error.transient else "unreadable"


def file_key(file: MediaFile) -> str:
    """Returns a key that is readable, unique for each file, stable, and free of dots, which would split it in a tar."""
    if file.id is not None:  # the id has all of these properties
        return file.id
    readable = re.sub(r"[^A-Za-z0-9]+", "-", file.path.rpartition(".")[0]).strip("-")[-60:] or "file"
    digest = hashlib.blake2b(file.path.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return f"{readable}-{digest}"


class ReaderPool:
    """Several FileReaders working on the files of a task; their items come in the order of the files."""

    def __init__(self, readers: list[FileReader]) -> None:
        self.readers = readers
        self._stop = threading.Event()

    def close(self) -> None:
        for reader in self.readers:
            reader.close()

    def read(self, files: list[MediaFile]) -> Generator[Item]:
        """Yields all items of all files. Raises UserError if the whole source is gone."""
        count = len(self.readers)
        queues: list[queue.Queue[Item | BaseException]] = [queue.Queue(AHEAD) for _ in self.readers]
        self._stop.clear()
        threads = [
            threading.Thread(target=self._work, args=(reader, files[row::count], queues[row]), daemon=True)
            for row, reader in enumerate(self.readers)
        ]
        for thread in threads:
            thread.start()
        try:
            for row in range(len(files)):
                yield from self._items_of_file(queues[row % count])
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _items_of_file(self, ready: "queue.Queue[Item | BaseException]") -> Iterator[Item]:
        """Yields all items that one reader gives for one file."""
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, FileEnd):
                if item.failure is not None and item.failure.transient:
                    self.readers[0].source.check_present()
                yield item
                return
            yield item

    def _work(self, reader: FileReader, files: list[MediaFile], ready: "queue.Queue[Item | BaseException]") -> None:
        """Runs in a reader's thread: puts the items into its queue. A bug ends the task, not just the thread."""
        try:
            for file in files:
                with closing(reader.read(file)) as items:
                    for item in items:
                        if not self._put(ready, item):
                            return
        except BaseException as error:
            self._put(ready, error)

    def _put(self, ready: "queue.Queue[Item | BaseException]", item: Item | BaseException) -> bool:
        """Puts an item into the queue; returns False once the pool has stopped and no one takes it any more."""
        while not self._stop.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=0.2)
                return True
        return False
