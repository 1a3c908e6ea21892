"""Files inside installed packages, named by paths that are valid on every machine: PACKAGE/FOLDER/FILE.

If the user gives the path, a file at the path itself, relative to the working directory, takes precedence. If a file
records it, such as a checkpoint, it means the package's files, whatever the working directory holds.
"""

from importlib.util import find_spec
from pathlib import Path

SCHEME = "local-dir:"  # open_clip's prefix of a folder; the candidates keep it
RELEASED = "released"  # the folder of a package that holds a checkpoint


def candidates(path: str) -> list[str]:
    """The places to look for a path: the path as given, then inside the installed package that its first part names.

    A name without a slash is never a path into a package. Nothing is imported.
    """
    scheme = SCHEME if path.startswith(SCHEME) else ""
    first, *rest = Path(path.removeprefix(scheme)).parts or ("",)
    folders = package_folders(first) if rest else []
    return list(dict.fromkeys([path, *(f"{scheme}{Path(folder, *rest)}" for folder in folders)]))


def locate(path: str, recorded: bool = False) -> str:
    """The first candidate that exists; the path as given if there is none (it may be a hub id).

    `recorded`: a file names the path, not the user, so that the package's files go first.
    """
    first, *others = candidates(path)
    ordered = [*others, first] if recorded else [first, *others]
    return next((each for each in ordered if Path(each.removeprefix(SCHEME)).exists()), path)


def released_folders(name: str) -> list[Path]:
    """The folders in which the installed package of this name may hold a checkpoint; empty if it is not installed."""
    return [folder / RELEASED for folder in package_folders(name)]


def package_folders(name: str) -> list[Path]:
    """The folders of an installed top-level package; empty if there is none. A folder without code is no package."""
    try:
        spec = find_spec(name) if name.isidentifier() else None
    except (ImportError, ValueError):  # ValueError: the module was made by hand and has no spec
        return []
    return [Path(folder) for folder in spec.submodule_search_locations or ()] if spec and spec.has_location else []
