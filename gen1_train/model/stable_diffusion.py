"""Stage 1: reads the UNet of Stable Diffusion in every published format, without ever executing a pickle."""

import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gen1_train.errors import UserError
from gen1_train.model.compvis import ASSUMED, config_from_weights, diffusers_names
from gen1_train.model.diffusers_layout import (
    CLASS,
    CONFIG_FILE,
    WEIGHTS_FILE,
    config_from_diffusers,
    weights_from_diffusers,
)
from gen1_train.model.pretrained import Origin, dtype_name, listed, load_weights
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig

# The files that a folder is searched for, in this order: full precision first, and for each precision the index of
# shards first, as in diffusers. The fourth name is that of older diffusers versions.
CANDIDATES = (
    f"{WEIGHTS_FILE}.index.json",
    WEIGHTS_FILE,
    f"{WEIGHTS_FILE}.index.fp16.json",
    f"{WEIGHTS_FILE}.fp16.index.json",
    "diffusion_pytorch_model.fp16.safetensors",
)
CHECKPOINTS = (".ckpt", ".pt", ".pth")  # written by torch.save; read if they hold only tensors
UNET_PREFIX = "model.diffusion_model."  # of the UNet's names in a complete CompVis checkpoint
FORMATS = "a folder in diffusers' layout that holds unet/config.json, a .safetensors file or a .ckpt"


class Inert:
    """A placeholder, without any behavior, for the objects next to the tensors in Stable Diffusion 1.x checkpoints."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# torch.load maps these names to the placeholder, so that the files can be read without executing what they name.
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
    """The image UNet of a Stable Diffusion model, and the sources of its weights."""

    config: UNetConfig  # without temporal layers
    weights: dict[str, Tensor]  # float32, with our names
    origins: dict[str, Origin]  # the source of each weight
    unused: dict[str, int]  # number of other tensors in the file, by the first part of the name
    assumed: tuple[str, ...]  # config fields that the file does not specify: by Stable Diffusion's convention


def prediction_of(path: str | Path) -> str | None:
    """Returns what Stable Diffusion's UNet predicts (diffusion.prediction.FORMS), by the scheduler in its folder.

    `path` as in `read_stable_diffusion`; None where there is no scheduler, or one that cannot be read.
    """
    names = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
    for folder in (Path(path), Path(path).parent):
        with suppress(OSError, UserError):
            found = _read_object(folder / "scheduler" / "scheduler_config.json").get("prediction_type", "epsilon")
            return names.get(found) if isinstance(found, str) else None
    return None


@dataclass(frozen=True)
class Tensors:
    """The tensors read from one or more files, with diffusers' names."""

    weights: dict[str, Tensor]
    origins: dict[str, Origin]
    unused: Counter[str]


def read_stable_diffusion(path: str | Path) -> StableDiffusion:
    """Reads the UNet of Stable Diffusion 1.x or 2.x; other tensors in the same file are not read.

    `path` is a folder in diffusers' layout (`unet/` or the folder above it), sharded or not, in half precision if there
    is no other. Or it is a .safetensors or .ckpt file: a complete checkpoint with CompVis' names, or a bare UNet with
    CompVis' or diffusers' names. A file with CompVis' names, or without diffusers' config.json next to it, does not
    specify heads and groups, so Stable Diffusion's are assumed (`assumed`). Raises UserError; of a pickle, only tensors
    are loaded, and a file that needs more than them is refused.
    """
    path = Path(path)
    if path.is_dir():
        folder = path / "unet" if (path / "unet").is_dir() else path
        config = _read_config(folder, path)
        return _assembled(_read_folder(folder), config, path)
    if not path.exists():
        raise UserError(f"no Stable Diffusion UNet at {path}: no such file or folder; give {FORMATS}")
    if path.suffix == ".bin":
        raise _pickle(path)
    if path.suffix not in (".safetensors", *CHECKPOINTS):
        raise UserError(f"{path} has an unsupported format: give {FORMATS}")
    tensors = _read_file(path, lambda names: _unet_names(names, path))
    has_diffusers_names = all(name == origin.name for name, origin in tensors.origins.items())
    return _assembled(tensors, _config_of_file(path) if has_diffusers_names else None, path)


def unet_from_stable_diffusion(path: str | Path) -> SpatioTemporalUNet:
    """Builds an inflated UNet that equals Stable Diffusion's frame by frame; `path` as in `read_stable_diffusion`.

    Raises UserError if the weights are not exactly those of such a UNet.
    """
    pretrained = read_stable_diffusion(path)
    unet = SpatioTemporalUNet(replace(pretrained.config, temporal=True))
    load_weights(unet, pretrained.weights, str(path))
    return unet


def _assembled(tensors: Tensors, config: UNetConfig | None, path: Path) -> StableDiffusion:
    weights = weights_from_diffusers(tensors.weights)
    origins = dict(zip(weights, tensors.origins.values(), strict=True))
    return StableDiffusion(
        config=config or config_from_weights(weights, path),
        weights=weights,
        origins=origins,
        unused=dict(tensors.unused),
        assumed=() if config else ASSUMED,
    )


def _config_of_file(path: Path) -> UNetConfig | None:
    """Reads diffusers' config from the folder of a file; None if there is none, or it is another network's."""
    if not path.with_name(CONFIG_FILE).is_file():
        return None
    content = _read_object(path.with_name(CONFIG_FILE))
    return config_from_diffusers(content, path.parent) if content.get("_class_name") == CLASS else None


def _read_config(folder: Path, path: Path) -> UNetConfig:
    """Reads the config from a diffusers folder; `path` is the one from the user."""
    try:
        return config_from_diffusers(_read_object(folder / CONFIG_FILE), folder)
    except FileNotFoundError:
        files = sorted(file.name for file in path.iterdir() if file.suffix in (".safetensors", *CHECKPOINTS))
        remedy = f"give one of its files ({listed(files)})" if files else f"give {FORMATS}"
        raise UserError(f"no Stable Diffusion UNet at {path}: it has no {CONFIG_FILE}; {remedy}") from None


def _read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises UserError if it is damaged, FileNotFoundError if it does not exist."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:  # the last of lists in lists in lists
        raise UserError(f"{path} cannot be read ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a file of diffusers; fetch it again")
    return content


def _read_folder(folder: Path) -> Tensors:
    """Reads the weights from a diffusers folder."""
    path = next((folder / name for name in CANDIDATES if (folder / name).is_file()), None)
    if path is None:
        raise _no_weights(folder)
    if path.suffix != ".json":
        return _read_file(path, _keep_names)
    tensors = Tensors({}, {}, Counter())
    for shard, names in _shards(path).items():
        part = _read_file(shard, _exactly(names, shard, path))
        tensors.weights.update(part.weights)
        tensors.origins.update(part.origins)
    return tensors


def _no_weights(folder: Path) -> UserError:
    pickles = sorted(folder.glob("diffusion_pytorch_model*.bin"))
    if pickles:
        return _pickle(pickles[0])
    others = listed(sorted(file.name for file in folder.glob("*.safetensors")))
    remedy = f"give one of its files instead ({others})" if others else "fetch it again, with the .safetensors"
    return UserError(f"no weights at {folder / WEIGHTS_FILE}, in full or half precision; {remedy}")


def _pickle(path: Path) -> UserError:
    return UserError(f"{path} is a pickle, which is not read: convert it to .safetensors, or fetch that format")


def _shards(index: Path) -> dict[Path, set[str]]:
    """Reads an index: the path of each shard, and the names of its tensors."""
    content = _read_object(index).get("weight_map")
    content = content if isinstance(content, dict) else {}
    files = list(content.values())
    if not files or not all(isinstance(file, str) and Path(file).name == file for file in files):
        raise UserError(f"{index} is not an index of shards (it has no weight_map of file names); fetch it again")
    shards = {index.parent / file: {name for name in content if content[name] == file} for file in sorted(set(files))}
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise UserError(f"{index} lists shards that are missing: {listed(missing)}; fetch them too")
    return shards


def _exactly(names: set[str], shard: Path, index: Path) -> Callable[[list[str]], dict[str, str]]:
    """Returns a function that chooses all tensors of a shard, and raises UserError unless they match the index."""

    def choose(shard_names: list[str]) -> dict[str, str]:
        missing, unlisted = sorted(names - set(shard_names)), sorted(set(shard_names) - names)
        problems = [f"missing: {listed(missing)}"] if missing else []
        problems += [f"not in the index: {listed(unlisted)}"] if unlisted else []
        if problems:
            raise UserError(f"{shard} does not match {index.name} ({'; '.join(problems)}); fetch both again")
        return _keep_names(shard_names)

    return choose


def _keep_names(names: Iterable[str]) -> dict[str, str]:
    return {name: name for name in names}


def _unet_names(names: list[str], path: Path) -> dict[str, str]:
    """Maps the names of the UNet's tensors in a file to diffusers' names."""
    unet = [name.removeprefix(UNET_PREFIX) for name in names if name.startswith(UNET_PREFIX)]
    if unet:
        return {UNET_PREFIX + old: new for old, new in diffusers_names(unet, path).items()}
    if "input_blocks.0.0.weight" in names:
        return diffusers_names(names, path)
    if "conv_in.weight" in names:
        return _keep_names(names)
    example = f"its first tensor is {names[0]}" if names else "it has no tensors"
    raise UserError(f"{path} holds no Stable Diffusion UNet ({example}); give a complete checkpoint or the UNet's file")


def _read_file(path: Path, choose: Callable[[list[str]], dict[str, str]]) -> Tensors:
    """Reads only those tensors of a file that `choose` selects from all names: name in the file -> diffusers' name."""
    with _opened(path) as (names, read):
        chosen = choose(names)
        unused = Counter(name.partition(".")[0] for name in names if name not in chosen)
        tensors = Tensors({}, {}, unused)
        for file_name, name in chosen.items():
            tensor = read(file_name)
            if not tensor.is_floating_point():
                raise UserError(f"{file_name} in {path} is {dtype_name(tensor)}: give weights that are not quantized")
            tensors.origins[name] = Origin(name=file_name, file=path.name, dtype=dtype_name(tensor))
            tensors.weights[name] = tensor.float()  # a float32 tensor is not copied and stays mapped to the file
    return tensors


@contextmanager
def _opened(path: Path) -> Iterator[tuple[list[str], Callable[[str], Tensor]]]:
    """Opens a file and yields the names of its tensors and a function that reads one of them."""
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
    """Loads the tensors of a torch.save file, memory-mapped if its format allows it."""
    try:
        with torch.serialization.safe_globals([*INERT]):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except MemoryError:
        raise
    except Exception as error:  # the unpickler raises all kinds of errors on damaged files
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        problem = f"holds more than tensors ({refused[1]})" if refused else "is damaged or holds more than tensors"
        raise UserError(
            f"{path} {problem}: it is not executed; convert it to .safetensors, or fetch that format"
        ) from error
    content = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    items = content.items() if isinstance(content, dict) else ()
    return {name: value for name, value in items if isinstance(name, str) and isinstance(value, Tensor)}
