"""Published networks as plain data: a checked config and one file of weights, and nothing else of their folder.

The libraries that build the networks (open_clip, transformers, diffusers) read more from a folder than we need: other
tokenizers, adapters, classes in Python. So they never see it. They see a temporary folder with the config that we
wrote, in which every key is on a list, and with a link to the weights.

A network that only a file names, such as a checkpoint, is never fetched from a hub. It is taken from this machine.
"""

import json
import math
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gen1_train.system.packages import SCHEME, locate
from gen1_train.system.records import read_json

HUB = "hf-hub:"  # open_clip's prefix of a hub id
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
WORD = re.compile(r"[\w.+-]{0,64}", re.ASCII)  # a text in a config: a name of something, never a path, URL or regex
MAX_BYTES = 1 << 20  # of a config
COPIES = 6  # of the weights that a library may make while it builds a network, in float32 from 16 bits; ours
SPARE_BYTES = 1 << 26  # for small networks; ours
SPARE_OPERATIONS = 20_000  # on tensors, for small networks; ours
BYTES_PER_OPERATION = 1000  # of the weights, for large ones; ours
CODE = ("auto_map", "custom_pipelines", "quantization_config", "trust_remote_code")  # keys that can lead to code


@dataclass(frozen=True)
class Source:
    """The files of a network."""

    config: Path
    weights: Path


def find_source(path: str, config: str, weights: Sequence[str], recorded: bool) -> Source:
    """Finds the config and the weights of a network: in a folder, in an installed package, or on the hub.

    `path` may have open_clip's prefixes. `weights`: names of the file, the preferred first; in a folder also globs.
    `recorded`: a file names the path, so that packages go before the working directory, and nothing is fetched. Raises
    ValueError, OSError.
    """
    folder = Path(locate(path, recorded).removeprefix(SCHEME))
    if not path.startswith(HUB) and folder.is_dir():
        found = [file for name in weights for file in sorted(folder.glob(name)) if file.is_file()]
        if not (folder / config).is_file() or not found:
            raise ValueError(f"{folder} has no {config if found else ' or '.join(weights)}")
        return Source(folder / config, found[0])
    repository = path.removeprefix(HUB)
    if path.startswith(SCHEME) or not HUB_ID.fullmatch(repository):
        raise ValueError("there is no such folder")
    files = [name for name in weights if "*" not in name]
    return Source(hub_file(repository, [config], recorded), hub_file(repository, files, recorded))


def hub_file(repository: str, names: Sequence[str], recorded: bool) -> Path:
    """Returns the first of the files that a repository of the hub has; if `recorded`, that the cache has.

    Raises ValueError, OSError.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if recorded:  # hf_hub_download would ask the network even with local_files_only
        found = (try_to_load_from_cache(repository, name) for name in names)
        if path := next((path for path in found if isinstance(path, str)), None):
            return Path(path)
        raise ValueError(
            f"only a file names it, so it is not downloaded: fetch it first with `hf download {repository}`"
        )
    for name in names:
        try:
            return Path(hf_hub_download(repository, name))
        except LocalEntryNotFoundError:  # there is no connection
            raise
        except EntryNotFoundError:
            pass
    raise ValueError(f"{repository} has no {' or '.join(names)}")


def read_config(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises ValueError, OSError."""
    try:
        config = read_json(path, MAX_BYTES)
    except ValueError as error:
        raise ValueError(f"its {path.name} is not JSON of up to {MAX_BYTES >> 20} MiB") from error
    if not isinstance(config, dict):
        raise ValueError(f"its {path.name} is not a JSON object")
    return config


def only(section: Any, allowed: Iterable[str], name: str) -> dict[str, Any]:
    """Returns a section of a config if all of its keys are allowed. Raises ValueError."""
    if not isinstance(section, dict):
        raise ValueError(f"its {name} is not a JSON object")
    if unknown := sorted(section.keys() - set(allowed)):
        raise ValueError(f"{unknown[0]!r} in its {name} is not a setting that we allow")
    return section


def selected(section: Mapping[str, Any], allowed: Iterable[str]) -> dict[str, Any]:
    """Returns the allowed keys of a section whose format has many others. Raises ValueError for one that names code."""
    for key in CODE:
        if section.get(key) is not None:
            raise ValueError(f"its config has {key!r}, and only plain weights are loaded")
    return {key: plain(section[key], key) for key in allowed if key in section}


def plain(value: Any, key: str) -> Any:
    """Returns a number, word, null, or a list or object of these. Raises ValueError for anything else."""
    if isinstance(value, dict):
        return {plain(name, key): plain(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [plain(each, key) for each in value]
    if isinstance(value, str) and not WORD.fullmatch(value):
        raise ValueError(f"its config has {key}={value[:40]!r}, which is not a word")
    return value


class Bounded(TorchDispatchMode):
    """A context in which tensors do not take much more memory than a file of weights has bytes.

    The numbers in a config could ask for terabytes, or for a million layers. Raises ValueError in their stead. Tensors
    that other threads make are not counted; those are read from the file.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.bytes = COPIES * size + SPARE_BYTES
        self.operations = size // BYTES_PER_OPERATION + SPARE_OPERATIONS

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        sizes = first.shape if isinstance(first, Tensor) and "_like" in func.__name__ else first
        is_meta = torch.device(kwargs.get("device") or "cpu").type == "meta"
        if isinstance(sizes, (list, tuple)) and not is_meta and all(isinstance(each, int) for each in sizes):
            self._check(math.prod(sizes), 1)  # before they are filled
        result = func(*args, **kwargs)
        if any(each.alias_info is not None for each in func._schema.returns):  # in place, or a view
            self._count(0)
        else:
            made = [each for each in tree_leaves(result) if isinstance(each, Tensor) and each.device.type != "meta"]
            self._count(sum(each.nbytes for each in made))
        return result

    def _count(self, size: int) -> None:
        self._check(size, 1)
        self.bytes -= size
        self.operations -= 1

    def _check(self, size: int, operations: int) -> None:
        if size > self.bytes or operations > self.operations:
            raise ValueError("its config describes a network that is much larger than its weights")


@contextmanager
def plain_folder(source: Source, config: Mapping[str, Any], weights: str = "") -> Iterator[str]:
    """A folder for a library to read, which holds this config and the weights, under the name `weights`.

    In the context, the library cannot build a network that is out of proportion to the weights, see `Bounded`.
    """
    with tempfile.TemporaryDirectory(prefix="gen1-network-") as folder, Bounded(source.weights.stat().st_size):
        (Path(folder) / source.config.name).write_text(json.dumps(config))
        (Path(folder) / (weights or source.weights.name)).symlink_to(source.weights.resolve())
        yield folder
