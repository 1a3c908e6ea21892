"""Names that come from others, in manifests, indices, tars, lists and listings of servers: the one place that checks
them before they become a part of a path.

Each function returns the name that it was given if that has the expected form. Otherwise it raises ValueError with one
line that shows the name, escaped and shortened; the caller adds the file that holds the name, and the remedy.
"""

import re
from typing import Any

PLAIN = re.compile(r"[A-Za-z0-9_-]{1,200}")  # as batch.KEY
MEMBER = re.compile(r"[A-Za-z0-9_-]{1,100}(\.[A-Za-z0-9_-]{1,20})?")
SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,16}")
MAX_PATH = 4096  # bytes, as in Linux
SHOWN = 60  # characters of a refused name in a message


def plain_name(name: Any, suffix: str = "") -> str:
    """Checks a name of 1 to 200 characters out of A-Z a-z 0-9 _ -, followed by `suffix`: a sample's key, a tar.

    Raises ValueError.
    """
    if not isinstance(name, str) or not name.endswith(suffix) or not PLAIN.fullmatch(name.removesuffix(suffix)):
        ending = f" and then {suffix}" if suffix else ""
        raise ValueError(f"{shown(name)} is not a plain name: 1 to 200 characters out of A-Z a-z 0-9 _ -{ending}")
    return name


def member_name(name: Any) -> str:
    """Checks the name of a sample's member, such as frame00.jpg, without the key before it. Raises ValueError."""
    if not isinstance(name, str) or not MEMBER.fullmatch(name):
        raise ValueError(f"{shown(name)} is not the name of a member, such as frame00.jpg")
    return name


def relative_path(path: Any) -> str:
    """Checks a path that must stay within its folder: relative, no part `..`, no NUL, at most 4096 bytes.

    All other characters are allowed, as they are in the names of a user's own files. Raises ValueError.
    """
    plain = isinstance(path, str) and path and "\0" not in path and not path.startswith("/")
    if not plain or ".." in path.split("/") or len(path.encode("utf-8", "surrogatepass")) > MAX_PATH:
        raise ValueError(f"{shown(path)} is not a path within a folder (relative, without ..)")
    return path


def file_suffix(suffix: str) -> str:
    """Returns a suffix such as .mp4 if a file's name may end with it, otherwise "". Raises nothing."""
    return suffix if SUFFIX.fullmatch(suffix) else ""


def shown(name: Any) -> str:
    """Returns a name of a stranger as it may be printed: one short line of ASCII."""
    text = ascii(name)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
