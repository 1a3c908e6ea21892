"""Files that an installed package carries, by paths that hold on every machine: PACKAGE/FOLDER/FILE.

Whatever lies where a path says, from the working directory, is taken first.
"""

from importlib.util import find_spec
from pathlib import Path

SCHEME = "local-dir:"  # open_clip's word before a folder; it stays before what is found
RELEASED = "released"  # the folder in which a package carries a checkpoint


def places(path: str) -> list[str]:
    """Where a path may lie: as it is given, and in the installed top-level package that its first part names.

    A single name is no path into a package. Nothing is imported.
    """
    scheme = SCHEME if path.startswith(SCHEME) else ""
    first, *rest = Path(path.removeprefix(scheme)).parts or ("",)
    folders = package_folders(first) if rest else []
    return list(dict.fromkeys([path, *(f"{scheme}{Path(folder, *rest)}" for folder in folders)]))


def locate(path: str) -> str:
    """The first of the places at which something lies; the path as it is given where none does (a hub id, say)."""
    return next((place for place in places(path) if Path(place.removeprefix(SCHEME)).exists()), path)


def releases(name: str) -> list[Path]:
    """Where the installed package of this name may carry a checkpoint; none where there is no such package."""
    return [folder / RELEASED for folder in package_folders(name)]


def package_folders(name: str) -> list[Path]:
    """The folders of an installed top-level package; none where there is none: a mere folder is no package."""
    try:
        spec = find_spec(name) if name.isidentifier() else None
    except (ImportError, ValueError):  # ValueError: of modules that were made by hand
        return []
    return [Path(folder) for folder in spec.submodule_search_locations or ()] if spec and spec.has_location else []
