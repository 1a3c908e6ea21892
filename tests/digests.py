"""What a folder holds, in a form whose differences a failed test can print."""

import hashlib
from collections.abc import Iterable
from pathlib import Path


def digests(folder: Path, names: Iterable[Path] | None = None) -> dict[str, str]:
    """Returns path -> text of the JSON and Markdown files of a folder, and path -> SHA-256 of all others.

    `names`: the files to look at instead of all.
    """
    files = (path for path in folder.rglob("*") if path.is_file()) if names is None else names
    return {str(path.relative_to(folder)): digest(path) for path in sorted(files)}


def digest(path: Path) -> str:
    if path.suffix in (".json", ".jsonl", ".md"):
        return path.read_text()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def set_digests(output: Path) -> dict[str, str]:
    """Returns the digests of a shard set except for its page, which contains the date."""
    return digests(output, (path for path in output.rglob("*") if path.is_file() and path.name != "report.html"))
