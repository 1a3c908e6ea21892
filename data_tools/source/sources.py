"""The setting `source=`: a folder, a list file, or a URL of either. No video or image is opened here."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.failures import Failure
from data_tools.source.lists import ListFile, folder_of
from data_tools.source.locations import (
    Scan,
    Source,
    SourceFile,
    in_threads,
    kind_of,
    measure,
    suffix_of,
)
from data_tools.source.rows import LIST_SUFFIXES
from gen1_train.errors import UserError
from gen1_train.system.names import relative_path
from gen1_train.system.remote import (
    ARCHIVES,
    HTTP,
    file_system,
    is_url,
    join,
    local_path,
    reason_of,
    refusal_reason,
    require_protocol,
    without_secrets,
)
from gen1_train.video.decoding.remote import open_remote
from gen1_train.video.errors import VideoError
from gen1_train.video.formats import SUFFIXES

CAPTION_SUFFIX = ".txt"
CAPTION_BYTES = 64 << 10  # a longer text is not a caption; ours
MAX_DEPTH = 32  # of remote folders: links on a server may be circular, and Linux follows 40 of them; ours


def open_source(source: str) -> Source:
    """Returns the folder or list that `source` names, after checking only that it exists.

    Raises UserError if it does not exist, for a URL with a secret in it, and for a protocol whose package is missing.
    """
    if is_url(source) and (reason := refusal_reason(source)):
        raise UserError(f"source={without_secrets(source)}: {reason}")
    location = local_path(source)
    if is_url(location):
        require_protocol(location)
        return _list_file(source, location) if suffix_of(location) in LIST_SUFFIXES else Folder(source, location)
    if os.path.isdir(location):
        return Folder(source, location)
    if not os.path.exists(location):
        raise UserError(f"source={source} does not exist: name a folder, a list file ({_suffixes()}) or a URL of one")
    if suffix_of(location) not in LIST_SUFFIXES:
        raise UserError(f"source={source} is neither a folder nor a list file ({_suffixes()}): name one of these")
    return _list_file(source, location)


def _list_file(source: str, location: str) -> Source:
    return ListFile(source, folder_of(location), location)


def _suffixes() -> str:
    return " ".join(LIST_SUFFIXES)


@dataclass(frozen=True)
class Folder(Source):
    """All files in a folder and its subfolders, local or where fsspec can list; the caption is in NAME.txt."""

    @property
    def _is_archive(self) -> bool:
        """Whether paths are only names of members, which lead nowhere."""
        return is_url(self.root) and self.root.partition("://")[0].lower() in ARCHIVES

    def locate(self, path: str) -> str:
        """Returns a local path or a URL below the folder. Raises VideoError for a path that leads out of it."""
        try:
            return join(self.root, path if self._is_archive else relative_path(path))
        except ValueError as error:  # of a plan that was made elsewhere
            raise VideoError(str(error)) from error

    def scan(self, output: Path) -> Scan:
        """Finds all files. Follows links, reads each folder once, skips hidden files and the output folder."""
        result = Scan()
        if is_url(self.root):
            paths = _walk_remote(self.root, self.name, result.failures)
        else:
            paths = dict.fromkeys(_walk_local(self.root, self.name, output, result.failures))
        paths = self._within(paths, result.failures)
        media = sorted(path for path in paths if kind_of(path))
        texts = {path for path in paths if suffix_of(path) == CAPTION_SUFFIX}
        sidecars = [_sidecar(path) for path in media]
        captions = self._captions(sorted(texts.intersection(sidecars)), result.failures)
        for path, sidecar, size in zip(media, sidecars, self._sizes(media, paths), strict=True):
            if isinstance(size, VideoError) and not size.transient:
                result.failures.append(Failure(path, "unreadable", str(size)))
                continue
            # a file that cannot be reached now stays in the plan: its task reports the failure, and can be repeated
            bytes = 0 if isinstance(size, VideoError) else size
            result.files.append(SourceFile(path, kind_of(path) or "", bytes, captions.get(sidecar)))
        others = Counter(suffix_of(path) or "no suffix" for path in paths if not kind_of(path) and path not in texts)
        others[CAPTION_SUFFIX] = len(texts.difference(sidecars))
        result.ignored = {suffix: count for suffix, count in sorted(others.items()) if count}
        if not result.files:
            first = "".join(f"; {entry.file}: {entry.reason}" for entry in result.failures[:1])
            raise UserError(f"source={self.name} holds no video and no image (suffixes: {SUFFIXES}){first}")
        return result

    def _within(self, paths: dict[str, int | None], failures: list[Failure]) -> dict[str, int | None]:
        """Returns the paths that stay within the folder; a server may list others, which become failures."""
        usable = {}
        for path, size in paths.items():
            try:
                self.locate(path)
                usable[path] = size
            except VideoError as error:
                failures.append(Failure(path, "unreadable", str(error)))
        return usable

    def _sizes(self, media: list[str], paths: dict[str, int | None]) -> list[int | VideoError]:
        """Returns sizes from the listing, and looks up those that the listing does not give."""
        unknown = [path for path in media if paths[path] is None]
        looked_up = dict(zip(unknown, measure([self.locate(path) for path in unknown]), strict=True))
        return [looked_up[path] if path in looked_up else paths[path] or 0 for path in media]

    def _captions(self, texts: list[str], failures: list[Failure]) -> dict[str, str | None]:
        """Returns text file -> its text with white space collapsed, None for a blank one."""
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


def _read_caption(location: str) -> str | Exception | None:
    try:
        if is_url(location):
            with open_remote(location) as stream:
                data = stream.read(CAPTION_BYTES + 1)
        elif not os.path.isfile(location):  # opening a pipe would block forever
            return VideoError("not a regular file")
        else:
            with open(location, "rb") as stream:
                data = stream.read(CAPTION_BYTES + 1)
        if len(data) > CAPTION_BYTES:
            return VideoError(f"more than {CAPTION_BYTES} bytes")
        return " ".join(data.decode("utf-8-sig").split()) or None
    except (OSError, UnicodeDecodeError, VideoError) as error:
        return error


def _walk_local(root: str, name: str, output: Path, failures: list[Failure]) -> Iterator[str]:
    """Yields the paths, relative to root, of all files that are not hidden. Each folder is read once despite links."""
    seen = {os.path.realpath(output)}

    def report(error: OSError) -> None:
        if error.filename == root:
            raise UserError(f"source={name} cannot be read: {error.strerror}") from error
        folder = os.path.relpath(error.filename, root)
        failures.append(Failure(folder, "unreadable", f"the folder cannot be read: {error.strerror}", transient=True))

    for folder, names, files in os.walk(root, followlinks=True, onerror=report):
        resolved = os.path.realpath(folder)
        if resolved in seen:
            names.clear()  # the output, or a link that leads back to a folder already read
            continue
        seen.add(resolved)
        names[:] = sorted(entry for entry in names if not entry.startswith("."))
        prefix = folder[len(root) :].strip("/")
        prefix += "/" if prefix else ""
        yield from (prefix + entry for entry in files if not entry.startswith("."))


def _walk_remote(root: str, name: str, failures: list[Failure]) -> dict[str, int | None]:
    """Returns relative path -> bytes, None where the listing gives no size, of all files that are not hidden."""
    try:
        system, top = file_system(root)
        if _lists_trees(system):
            entries: Iterable[dict[str, Any]] = system.find(top, detail=True).values()
        else:
            entries = _walk_folders(system, top, failures)
        paths = {_below(facts["name"], top): facts.get("size") for facts in entries if facts["type"] != "directory"}
    except UserError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise UserError(f"source={name} cannot be listed: {reason_of(error)}") from error
    pages = root.partition("://")[0].lower() in HTTP
    return {path: size for path, size in paths.items() if not _hidden(path) and not (pages and _is_page_link(path))}


def _lists_trees(system: Any) -> bool:
    """Whether it lists a whole tree in a few calls, as buckets and archives do; plain fsspec lists folder by folder."""
    ours = [kind for kind in type(system).__mro__ if kind.__module__ not in ("fsspec.spec", "fsspec.asyn")]
    return any("find" in vars(kind) or "_find" in vars(kind) for kind in ours)


def _walk_folders(system: Any, top: str, failures: list[Failure]) -> Iterator[dict[str, Any]]:
    """Yields fsspec's facts about all files and folders in `top`. fsspec's own walk hides what it cannot read."""
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


def _is_page_link(path: str) -> bool:
    """Whether it is a link of a web page's listing, such as one that sorts it, rather than a file."""
    return "?" in path or "#" in path
