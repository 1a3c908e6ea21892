"""The files that an edit writes: none of them is a file that it reads, and none is replaced without overwrite=true."""

import os
import tempfile
from pathlib import Path

from gen1_train.editing.config import EditConfig
from gen1_train.editing.masks import BY_DEPTH
from gen1_train.editing.variants import Variant
from gen1_train.errors import UserError
from gen1_train.system.files import check_new

INPUTS = ("input", "image", "mask", "prompts")  # settings that name files which an edit reads


def output_paths(config: EditConfig, edits: list[Variant]) -> list[Path]:
    """Returns the file of each edit; with prompts=, they are numbered."""
    output = Path(str(config.output))
    if config.prompts is None:
        return [output]
    return [output.with_stem(f"{output.stem}-{number}") for number in range(1, len(edits) + 1)]


def refuse_existing(config: EditConfig, outputs: list[Path]) -> None:
    """Raises UserError for an output that is an input or another output, and for one that exists already.

    Links and relative paths are followed; overwrite=true allows the second alone.
    """
    written = [("output", path) for path in outputs]
    if config.structure_output is not None:
        written.append(("structure_output", Path(config.structure_output)))
    read = [(name, Path(value)) for name in INPUTS if (value := getattr(config, name)) and value not in BY_DEPTH]
    read += [("images", Path(path)) for path, _ in config.examples] if config.images else []
    for number, (setting, path) in enumerate(written):
        for other, file in (*read, *written[:number]):
            if is_same_file(path, file):
                raise UserError(f"{setting}={path} is the same file as {other}={file}: give another name")
        check_new(setting, path, config.overwrite)


def is_same_file(path: Path, other: Path) -> bool:
    """Whether two paths lead to one file, which may not exist yet."""
    try:
        return os.path.samefile(path, other)
    except OSError:
        return path.resolve() == other.resolve()


def check_folder(folder: Path) -> None:
    """Creates the folder of an output and checks that it is writable. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror or error}") from error
