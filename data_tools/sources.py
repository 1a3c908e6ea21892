"""`source=`: a folder, a list file, or a URL of either, without opening any video or image."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.failures import Failure
from data_tools.lists import ListFile, folder_of
from data_tools.places import (
    VIDEO_SUFFIXES,
    Scan,
    Source,
    SourceFile,
    in_threads,
    kind_of,
    measure,
    suffix_of,
)
from data_tools.rows import LIST_SUFFIXES
from gen1_train.errors import UserError
from gen1_train.remote import (
    HTTP,
    file_system,
    is_url,
    local_path,
    reason_of,
    refusal,
    require_protocol,
    without_secrets,
)
from gen1_train.video.image import IMAGE_SUFFIXES
from gen1_train.video.probe import VideoError
from gen1_train.video.remote import open_remote

CAPTION_SUFFIX = ".txt"
CAPTION_BYTES = 64 << 10  # a longer text is no caption; ours
MAX_DEPTH = 32  # of remote folders: links of a server may lead in circles, of which Linux follows 40; ours


def open_source(source: str) -> Source:
    """The folder or list that `source` names. It reads no more than whether that is there.

    Raises UserError: for nothing there, for a URL with a secret in it, for a protocol whose package is missing.
    """
    if is_url(source) and (reason := refusal(source)):
        raise UserError(f"source={without_secrets(source)}: {reason}")
    place = local_path(source)
    if is_url(place):
        require_protocol(place)
        return _list_file(source, place) if suffix_of(place) in LIST_SUFFIXES else Folder(source, place)
    if os.path.isdir(place):
        return Folder(source, place)
    if not os.path.exists(place):
        raise UserError(f"source={source} is not there: name a folder, a list file ({_suffixes()}) or a URL of one")
    if suffix_of(place) not in LIST_SUFFIXES:
        raise UserError(f"source={source} is neither a folder nor a list file ({_suffixes()})")
    return _list_file(source, place)


def _list_file(source: str, place: str) -> Source:
    return ListFile(source, folder_of(place), place)


def _suffixes() -> str:
    return " ".join(LIST_SUFFIXES)


@dataclass(frozen=True)
class Folder(Source):
    """All files below a folder, on this machine or where fsspec can list; a caption stands in NAME.txt."""

    def scan(self, output: Path) -> Scan:
        """Links are followed, each folder is read once, hidden files and the output folder are left out."""
        result = Scan()
        if is_url(self.root):
            found = _walk_remote(self.root, self.name, result.failures)
        else:
            found = dict.fromkeys(_walk_local(self.root, self.name, output, result.failures))
        media = sorted(path for path in found if kind_of(path))
        texts = {path for path in found if suffix_of(path) == CAPTION_SUFFIX}
        sidecars = [_sidecar(path) for path in media]
        captions = self._captions(sorted(texts.intersection(sidecars)), result.failures)
        for path, sidecar, size in zip(media, sidecars, self._sizes(media, found), strict=True):
            if isinstance(size, VideoError) and not size.transient:
                result.failures.append(Failure(path, "unreadable", str(size)))
                continue
            # what cannot be reached now keeps its place: a task will say so, and can be repeated
            bytes = 0 if isinstance(size, VideoError) else size
            result.files.append(SourceFile(path, kind_of(path) or "", bytes, captions.get(sidecar)))
        others = Counter(suffix_of(path) or "no suffix" for path in found if not kind_of(path) and path not in texts)
        others[CAPTION_SUFFIX] = len(texts.difference(sidecars))
        result.ignored = {suffix: count for suffix, count in sorted(others.items()) if count}
        if not result.files:
            first = "".join(f"; {entry.file}: {entry.reason}" for entry in result.failures[:1])
            known = " ".join([*sorted(VIDEO_SUFFIXES), *sorted(IMAGE_SUFFIXES)])
            raise UserError(f"source={self.name} holds no video and no image (suffixes: {known}){first}")
        return result

    def _sizes(self, media: list[str], found: dict[str, int | None]) -> list[int | VideoError]:
        """Sizes as the listing gave them, and otherwise asked for."""
        unknown = [path for path in media if found[path] is None]
        asked = dict(zip(unknown, measure([self.locate(path) for path in unknown]), strict=True))
        return [asked[path] if path in asked else found[path] or 0 for path in media]

    def _captions(self, texts: list[str], failures: list[Failure]) -> dict[str, str | None]:
        """Text file -> its text with single white space, None for a blank one."""
        captions = {}
        for path, caption in zip(texts, in_threads(lambda path: _read_caption(self.locate(path)), texts), strict=True):
            if isinstance(caption, Exception):
                reason = "not UTF-8 text" if isinstance(caption, UnicodeDecodeError) else reason_of(caption)
                transient = getattr(caption, "transient", False) or isinstance(caption, OSError)
                failures.append(Failure(path, "caption", f"the caption cannot be read: {reason}", transient=transient))
            else:
                captions[path] = caption
        return captions


def _sidecar(path: str) -> str:
    return os.path.splitext(path)[0] + CAPTION_SUFFIX


def _read_caption(place: str) -> str | Exception | None:
    try:
        if is_url(place):
            with open_remote(place) as stream:
                data = stream.read(CAPTION_BYTES + 1)
        elif not os.path.isfile(place):  # opening a pipe would wait for ever
            return VideoError("no regular file")
        else:
            with open(place, "rb") as stream:
                data = stream.read(CAPTION_BYTES + 1)
        if len(data) > CAPTION_BYTES:
            return VideoError(f"more than {CAPTION_BYTES} bytes")
        return " ".join(data.decode("utf-8-sig").split()) or None
    except (OSError, UnicodeDecodeError, VideoError) as error:
        return error


def _walk_local(root: str, name: str, output: Path, failures: list[Failure]) -> Iterator[str]:
    """Paths, relative to root, of all files that are not hidden; each folder once, however links lead to it."""
    seen = {os.path.realpath(output)}

    def report(error: OSError) -> None:
        if error.filename == root:
            raise UserError(f"source={name} cannot be read: {error.strerror}") from error
        folder = os.path.relpath(error.filename, root)
        failures.append(Failure(folder, "unreadable", f"the folder cannot be read: {error.strerror}", transient=True))

    for folder, names, files in os.walk(root, followlinks=True, onerror=report):
        resolved = os.path.realpath(folder)
        if resolved in seen:
            names.clear()  # the output, or a link that leads back
            continue
        seen.add(resolved)
        names[:] = sorted(entry for entry in names if not entry.startswith("."))
        prefix = folder[len(root) :].strip("/")
        prefix += "/" if prefix else ""
        yield from (prefix + entry for entry in files if not entry.startswith("."))


def _walk_remote(root: str, name: str, failures: list[Failure]) -> dict[str, int | None]:
    """Relative path -> bytes, None where the listing does not tell, of all files that are not hidden."""
    try:
        system, top = file_system(root)
        if _lists_trees(system):
            entries: Iterable[dict[str, Any]] = system.find(top, detail=True).values()
        else:
            entries = _walk_folders(system, top, failures)
        found = {_below(facts["name"], top): facts.get("size") for facts in entries if facts["type"] != "directory"}
    except UserError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise UserError(f"source={name} cannot be listed: {reason_of(error)}") from error
    pages = root.partition("://")[0].lower() in HTTP
    return {path: size for path, size in found.items() if not _hidden(path) and not (pages and _is_button(path))}


def _lists_trees(system: Any) -> bool:
    """Whether it lists a whole tree in a few calls, as buckets and archives do; fsspec itself goes folder by folder."""
    ours = [kind for kind in type(system).__mro__ if kind.__module__ not in ("fsspec.spec", "fsspec.asyn")]
    return any("find" in vars(kind) or "_find" in vars(kind) for kind in ours)


def _walk_folders(system: Any, top: str, failures: list[Failure]) -> Iterator[dict[str, Any]]:
    """fsspec's facts about all files and folders below `top`. fsspec's own walk says nothing of what it cannot read."""
    todo = [(top, 0)]
    while todo:
        folder, depth = todo.pop()
        try:
            listing = system.ls(folder, detail=True)
        except Exception as error:  # each file system has errors of its own
            if depth == 0:
                raise
            reason = f"the folder cannot be read: {reason_of(error)}"
            failures.append(Failure(_below(folder, top), "unreadable", reason, transient=True))
            continue
        for facts in sorted(listing, key=lambda facts: facts["name"]):
            path = _below(facts["name"], top)
            if path == _below(folder, top) or _hidden(path):
                continue
            if facts["type"] == "directory" and depth < MAX_DEPTH:
                todo.append((facts["name"], depth + 1))
            elif facts["type"] == "directory":
                failures.append(Failure(path, "unreadable", f"deeper than {MAX_DEPTH} folders"))
            yield facts


def _below(name: str, top: str) -> str:
    return name.removeprefix(top.rstrip("/")).strip("/")


def _hidden(path: str) -> bool:
    return any(part.startswith(".") and part != ".." for part in path.split("/"))


def _is_button(path: str) -> bool:
    """Whether it is no file but a link of a web page's listing, such as the one that sorts it."""
    return "?" in path or "#" in path
