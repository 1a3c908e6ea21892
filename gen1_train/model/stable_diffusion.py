"""Stage 1: reads the UNet of Stable Diffusion in every format that it is published in, and never runs a pickle."""

import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gen1_train.errors import UserError
from gen1_train.model.compvis import UNTOLD, config_from_weights, diffusers_names
from gen1_train.model.diffusers_layout import (
    CLASS,
    CONFIG_FILE,
    WEIGHTS_FILE,
    config_from_diffusers,
    weights_from_diffusers,
)
from gen1_train.model.pretrained import Origin, dtype_name, listed
from gen1_train.model.unet import UNetConfig

# What a folder is searched for, in this order: full precision first, and in each the index of shards first, as in
# diffusers. The last but one is the name that older diffusers gave.
CANDIDATES = (
    f"{WEIGHTS_FILE}.index.json",
    WEIGHTS_FILE,
    f"{WEIGHTS_FILE}.index.fp16.json",
    f"{WEIGHTS_FILE}.fp16.index.json",
    "diffusion_pytorch_model.fp16.safetensors",
)
CHECKPOINTS = (".ckpt", ".pt", ".pth")  # torch.save's, read if they hold tensors alone
WHOLE = "model.diffusion_model."  # before the UNet's names in a whole checkpoint of CompVis'
FORMATS = "a folder in diffusers' layout that holds unet/config.json, a .safetensors file or a .ckpt"


class Inert:
    """Stands in for what the checkpoints of Stable Diffusion 1.x hold beside their tensors; does nothing."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# torch.load knows these names as this class, so that the files can be read without running what they name.
INERT: list[tuple[type, str]] = [
    (Inert, name)
    for name in (
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
    )
]


@dataclass(frozen=True)
class StableDiffusion:
    """The image UNet of a Stable Diffusion, and where it was read."""

    config: UNetConfig  # without temporal layers
    weights: dict[str, Tensor]  # float32, by our names
    origins: dict[str, Origin]  # where each of them lay
    left_aside: dict[str, int]  # tensors of the file that are not the UNet's, counted by the first part of their names
    untold: tuple[str, ...]  # fields of the config that the file does not tell: they are Stable Diffusion's convention


@dataclass(frozen=True)
class Tensors:
    """What was read from one file or several, by diffusers' names."""

    weights: dict[str, Tensor]
    origins: dict[str, Origin]
    left_aside: Counter[str]


def read_stable_diffusion(path: str | Path) -> StableDiffusion:
    """Reads the UNet of Stable Diffusion 1.x or 2.x; of a file that holds more than it, its tensors alone.

    `path`: a folder in diffusers' layout (the one that holds `unet/`, or `unet/`), in shards or not, in half precision
    if there is no other. Or a file, .safetensors or .ckpt: a whole checkpoint with CompVis' names, or a bare UNet with
    CompVis' or diffusers' names. A file without diffusers' config.json beside it does not tell heads and groups: they
    are Stable Diffusion's (`untold`). Raises UserError; what would have to be unpickled is refused.
    """
    path = Path(path)
    if path.is_dir():
        folder = path / "unet" if (path / "unet").is_dir() else path
        config = _read_config(folder, path)
        return _assembled(_read_folder(folder), config, path)
    if not path.exists():
        raise UserError(f"no Stable Diffusion UNet at {path}: there is no such file or folder; give {FORMATS}")
    if path.suffix == ".bin":
        raise _pickle(path)
    if path.suffix not in (".safetensors", *CHECKPOINTS):
        raise UserError(f"{path} is not of a format that is read: give {FORMATS}")
    tensors = _read_file(path, lambda names: _unet_names(names, path))
    by_diffusers_names = all(name == origin.name for name, origin in tensors.origins.items())
    return _assembled(tensors, _config_beside(path) if by_diffusers_names else None, path)


def _assembled(tensors: Tensors, config: UNetConfig | None, path: Path) -> StableDiffusion:
    weights = weights_from_diffusers(tensors.weights)
    origins = dict(zip(weights, tensors.origins.values(), strict=True))
    untold = () if config else UNTOLD
    config = config or config_from_weights(weights, path)
    return StableDiffusion(config, weights, origins, dict(tensors.left_aside), untold)


def _config_beside(path: Path) -> UNetConfig | None:
    """diffusers' config of a UNet in the folder of a file; None when there is none, or that of another network."""
    if not path.with_name(CONFIG_FILE).is_file():
        return None
    content = _read_object(path.with_name(CONFIG_FILE))
    return config_from_diffusers(content, path.parent) if content.get("_class_name") == CLASS else None


def _read_config(folder: Path, given: Path) -> UNetConfig:
    """The config in a folder of diffusers'."""
    try:
        return config_from_diffusers(_read_object(folder / CONFIG_FILE), folder)
    except FileNotFoundError:
        files = sorted(file.name for file in given.iterdir() if file.suffix in (".safetensors", *CHECKPOINTS))
        mend = f"give the one of its files that you mean ({listed(files)})" if files else f"give {FORMATS}"
        raise UserError(f"no Stable Diffusion UNet at {given}: it has no {CONFIG_FILE} of one; {mend}") from None


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError when it is damaged, FileNotFoundError when it is not there."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not what diffusers writes under that name; fetch it again")
    return content


def _read_folder(folder: Path) -> Tensors:
    """The weights in a folder of diffusers'."""
    found = next((folder / name for name in CANDIDATES if (folder / name).is_file()), None)
    if found is None:
        raise _no_weights(folder)
    if found.suffix != ".json":
        return _read_file(found, _all_of_them)
    whole = Tensors({}, {}, Counter())
    for shard, names in _shards(found).items():
        part = _read_file(shard, _exactly(names, shard, found))
        whole.weights.update(part.weights)
        whole.origins.update(part.origins)
    return whole


def _no_weights(folder: Path) -> UserError:
    pickles = sorted(folder.glob("diffusion_pytorch_model*.bin"))
    if pickles:
        return _pickle(pickles[0])
    others = listed(sorted(file.name for file in folder.glob("*.safetensors")))
    mend = f"give one of its files instead ({others})" if others else "fetch it again, with the .safetensors"
    return UserError(f"no weights at {folder / WEIGHTS_FILE}: the file is missing, in full and half precision; {mend}")


def _pickle(path: Path) -> UserError:
    return UserError(f"{path} is a pickle, which is not read: convert it to .safetensors, or fetch the model as that")


def _shards(index: Path) -> dict[Path, set[str]]:
    """The shards that an index lists, and the names in each."""
    content = _read_object(index).get("weight_map")
    content = content if isinstance(content, dict) else {}
    files = list(content.values())
    if not files or not all(isinstance(file, str) and Path(file).name == file for file in files):
        raise UserError(f"{index} is not the index of shards (it has no weight_map of file names); fetch it again")
    shards = {index.parent / file: {name for name in content if content[name] == file} for file in sorted(set(files))}
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise UserError(f"{index} lists shards that are missing there: {listed(missing)}; fetch them too")
    return shards


def _exactly(names: set[str], shard: Path, index: Path) -> Callable[[list[str]], dict[str, str]]:
    """All tensors of a shard, if they are those that the index says are there."""

    def choose(there: list[str]) -> dict[str, str]:
        lacking, unlisted = sorted(names - set(there)), sorted(set(there) - names)
        problems = [f"{listed(lacking)} not in it"] if lacking else []
        problems += [f"{listed(unlisted)} in it, but not by the index"] if unlisted else []
        if problems:
            raise UserError(f"{shard} is not the shard of {index.name} ({'; '.join(problems)}); fetch both again")
        return _all_of_them(there)

    return choose


def _all_of_them(names: Iterable[str]) -> dict[str, str]:
    return {name: name for name in names}


def _unet_names(names: list[str], path: Path) -> dict[str, str]:
    """The names of the UNet's tensors in a file -> diffusers' names."""
    whole = [name.removeprefix(WHOLE) for name in names if name.startswith(WHOLE)]
    if whole:
        return {WHOLE + old: new for old, new in diffusers_names(whole, path).items()}
    if "input_blocks.0.0.weight" in names:
        return diffusers_names(names, path)
    if "conv_in.weight" in names:
        return _all_of_them(names)
    example = f"its first tensor is {names[0]}" if names else "there is no tensor in it"
    raise UserError(f"{path} holds no UNet of Stable Diffusion ({example}); give a whole checkpoint or the UNet's file")


def _read_file(path: Path, choose: Callable[[list[str]], dict[str, str]]) -> Tensors:
    """Of a file the tensors that `choose` picks out of all names: their names there -> diffusers'. No other is read."""
    with _opened(path) as (names, read):
        chosen = choose(names)
        aside = Counter(name.partition(".")[0] for name in names if name not in chosen)
        found = Tensors({}, {}, aside)
        for there, name in chosen.items():
            tensor = read(there)
            if not tensor.is_floating_point():
                raise UserError(f"{there} in {path} is {dtype_name(tensor)}: give weights that are not quantised")
            found.origins[name] = Origin(there, path.name, dtype_name(tensor))
            found.weights[name] = tensor.float()  # float32 already: not copied, still lies in the file
    return found


@contextmanager
def _opened(path: Path) -> Iterator[tuple[list[str], Callable[[str], Tensor]]]:
    """The names of a file's tensors, and what reads one of them."""
    if path.suffix in CHECKPOINTS:
        tensors = _load_checkpoint(path)
        yield list(tensors), tensors.__getitem__
        return
    try:
        with safe_open(path, framework="pt") as file:
            yield list(file.keys()), file.get_tensor
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}); fetch it again") from error


def _load_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that torch.save wrote, mapped from it where its format allows that."""
    try:
        with torch.serialization.safe_globals([*INERT]):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except MemoryError:
        raise
    except Exception as error:  # on bytes that are no checkpoint the unpickler raises whatever it trips over
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"holds more than tensors ({refused[1]})" if refused else "is damaged or holds more than tensors"
        raise UserError(
            f"{path} {what}: it is not executed; convert it to .safetensors, or fetch the model as that"
        ) from error
    content = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    items = content.items() if isinstance(content, dict) else ()
    return {name: value for name, value in items if isinstance(name, str) and isinstance(value, Tensor)}
