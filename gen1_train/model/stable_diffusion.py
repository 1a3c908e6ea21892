"""Stage 1: reads the UNet of Stable Diffusion."""

import json
from pathlib import Path

from torch import Tensor

from gen1_train.errors import UserError
from gen1_train.model.diffusers_layout import config_from_diffusers
from gen1_train.model.pretrained import load_safetensors
from gen1_train.model.unet import UNetConfig

WEIGHTS = "diffusion_pytorch_model.safetensors"


def read_stable_diffusion(path: str | Path) -> tuple[UNetConfig, dict[str, Tensor]]:
    """Reads the UNet of a Stable Diffusion folder in diffusers' layout (the folder that holds `unet/`, or `unet/`).

    Returns the config of the image UNet, without temporal layers, and its weights in float32. Raises UserError.
    """
    folder = Path(path)
    folder = folder / "unet" if (folder / "unet").is_dir() else folder
    try:
        content = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise UserError(
            f"no Stable Diffusion UNet at {path}: give a folder in diffusers' layout that holds unet/config.json"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'} cannot be read ({error}); fetch the folder again") from error
    if not isinstance(content, dict):
        raise UserError(f"{folder / 'config.json'} is not the config of a network; fetch the folder again")
    weights = load_safetensors(folder / WEIGHTS)
    return config_from_diffusers(content, folder), {k: v.float() for k, v in weights.items()}
