"""What lies in a source folder, without opening any of it."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from gen1_train.errors import UserError

VIDEO_SUFFIXES = {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
CAPTION_SUFFIX = ".txt"


@dataclass(frozen=True)
class SourceFile:
    path: str  # relative to the source folder, with slashes
    kind: str  # "video" or "image", by the suffix
    bytes: int
    caption: str | None  # text of the file of the same name with the suffix .txt


@dataclass(frozen=True)
class Failure:
    """A file of which something was lost, and why."""

    file: str  # relative to the source folder
    reason: str
    transient: bool = False  # another try may succeed: the file itself is not at fault
    clips: int = 0  # samples that were made of it all the same


@dataclass
class Scan:
    files: list[SourceFile] = field(default_factory=list)  # sorted by path
    ignored: dict[str, int] = field(default_factory=dict)  # suffix -> number of files that are no media
    failures: list[Failure] = field(default_factory=list)


def scan(source: Path, output: Path) -> Scan:
    """Walks the source: links are followed, hidden files and the output folder are left out.

    Raises UserError when there is no such folder or no media file in it.
    """
    if not source.is_dir():
        raise UserError(f"source={source} is not a folder: give one that holds videos or images")
    result, media, captions = Scan(), [], set()
    ignored: Counter[str] = Counter()
    for path in _walk(source, output, result.failures):
        suffix = path.suffix.lower()
        if suffix in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
            media.append(path)
        elif suffix == CAPTION_SUFFIX:
            captions.add(path)
        else:
            ignored[suffix or "no suffix"] += 1
    for path in media:
        if path.is_file():
            caption = _caption(path.with_suffix(CAPTION_SUFFIX), source, captions, result.failures)
            kind = "video" if path.suffix.lower() in VIDEO_SUFFIXES else "image"
            result.files.append(SourceFile(_relative(path, source), kind, path.stat().st_size, caption))
        else:
            result.failures.append(Failure(_relative(path, source), "a link to nothing, or no regular file"))
    ignored[CAPTION_SUFFIX] += len(captions - {path.with_suffix(CAPTION_SUFFIX) for path in media})
    result.ignored = {suffix: count for suffix, count in sorted(ignored.items()) if count}
    if not result.files:
        raise UserError(
            f"source={source} holds no video and no image (suffixes: {' '.join(sorted(VIDEO_SUFFIXES))} "
            f"{' '.join(sorted(IMAGE_SUFFIXES))})"
        )
    return result


def _walk(source: Path, output: Path, failures: list[Failure]) -> list[Path]:
    """All files that are not hidden, sorted by path; each folder once, however links lead to it."""
    found: list[Path] = []
    seen = {output.resolve()}

    def report(error: OSError) -> None:
        folder = Path(error.filename or source)
        failures.append(Failure(_relative(folder, source), f"the folder cannot be read: {error.strerror}", True))

    for folder, names, files in os.walk(source, followlinks=True, onerror=report):
        resolved = Path(folder).resolve()
        if resolved in seen:
            names.clear()  # the output, or a link that leads back
            continue
        seen.add(resolved)
        names[:] = sorted(name for name in names if not name.startswith("."))
        found += [Path(folder, name) for name in files if not name.startswith(".")]
    return sorted(found, key=lambda path: _relative(path, source))


def _caption(path: Path, source: Path, captions: set[Path], failures: list[Failure]) -> str | None:
    """The caption in a sidecar file, its white space made single; None without one."""
    if path not in captions:
        return None
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split()) or None
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error.strerror)
        failures.append(Failure(_relative(path, source), f"the caption cannot be read: {reason}"))
        return None


def _relative(path: Path, source: Path) -> str:
    return path.relative_to(source).as_posix()
