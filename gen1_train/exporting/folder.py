"""The folder of an export: a checkpoint in two forms, both checked against the trained model.

OUTPUT/unet/   the spatial layers, as diffusers' UNet2DConditionModel: each frame alone, mu_pi in the paper's Eq. 8
OUTPUT/gen1/   the whole model, as a checkpoint of ours without trainer state, and its UNetConfig as config.json; its
               prior in OUTPUT/gen1/prior, see gen1_train.exporting.prior
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen1_train import keyed
from gen1_train.diffusion.recommended import read_recommended
from gen1_train.diffusion.schedule import NoiseConfig
from gen1_train.errors import UserError
from gen1_train.model.diffusers_layout import CONFIG_FILE, WEIGHTS_FILE, config_to_diffusers, weights_to_diffusers
from gen1_train.model.pretrained import is_temporal, listed
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.checkpoints.checkpoint import RECOMMENDED, UNET, Checkpoint, find_checkpoint, read_checkpoint
from gen1_train.training.checkpoints.writing import write, write_weights
from gen1_train.training.stages import StageConfig, load_recorded, read_recorded

SPATIAL = "unet"
WHOLE = "gen1"
TOLERANCE = 1e-5  # relative to the largest value: two implementations differ by float32 rounding; ours

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # latents (b, n, c, h, w), timesteps (b,), content (b, k, d)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """An opened checkpoint with its model."""

    checkpoint: Checkpoint
    stage: StageConfig
    noise: NoiseConfig
    unet: SpatioTemporalUNet
    weights: str  # the checkpoint's file that the model was read from

    def summary(self) -> str:
        millions = [0.0, 0.0]
        for name, parameter in self.unet.named_parameters():
            millions[is_temporal(name)] += parameter.numel() / 1e6
        info = self.checkpoint.info
        weights = f"{millions[0]:.1f} M spatial weights, {millions[1]:.1f} M temporal"
        return f"{self.checkpoint.path} is of stage {info.stage}, step {info.step}, {self.weights}: {weights}"


@dataclass(frozen=True)
class Difference:
    """The largest difference between two predictions."""

    absolute: float = 0.0
    relative: float = 0.0  # to the largest value of the prediction

    def __str__(self) -> str:
        return f"largest difference {self.absolute:.1e}, {self.relative:.1e} of the largest value"


def read_source(path: Path, which: str = "ema") -> Source:
    """Opens a checkpoint, or the newest of a run, and builds its model. `which` weights: see Checkpoint.weights_file.

    Raises UserError when the weights do not fit the config.
    """
    checkpoint = find_checkpoint(path, which)
    recorded = read_recorded(checkpoint)
    file = checkpoint.weights_file(which)
    return Source(checkpoint, recorded.stage, recorded.noise, load_recorded(checkpoint, recorded.unet, which), file)


def write_checked(source: Source, folder: Path) -> tuple[Difference, Difference]:
    """Writes both forms, reads them back and compares. Raises UserError when either differs from the model.

    At any time there is at most one model in memory besides the source.
    """
    write_spatial(source.unet, folder / SPATIAL)
    write_whole(source, folder / WHOLE)
    spatial = check_spatial(source, folder / SPATIAL)
    logger.info(f"{SPATIAL}/ in diffusers {version('diffusers')}, compared with the model frame by frame: {spatial}")
    whole = check_whole(source, folder / WHOLE)
    logger.info(f"{WHOLE}/ compared with the model: {whole}")
    return spatial, whole


def write_spatial(unet: SpatioTemporalUNet, folder: Path) -> None:
    """Writes the spatial layers for `UNet2DConditionModel.from_pretrained(folder)`."""
    folder.mkdir()
    spatial = {k: v for k, v in unet.state_dict().items() if not is_temporal(k)}
    write_weights(weights_to_diffusers(spatial), folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config_to_diffusers(unet.config), indent=2) + "\n")


def write_whole(source: Source, folder: Path) -> None:
    """Writes the checkpoint without trainer state, with the UNet's config and the recommended settings, if any."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    temporary.mkdir()
    (temporary / CONFIG_FILE).write_text(json.dumps(asdict(source.unet.config), indent=2) + "\n")
    info = replace(source.checkpoint.info, counters={}, lora={})
    write(temporary, {UNET: source.unet.state_dict()}, source.checkpoint.shared_config(), info)
    if (recommended := source.checkpoint.recommended) is not None:
        read_recommended(recommended)
        shutil.copyfile(recommended, temporary / RECOMMENDED)  # after the others: it is not hashed
    os.replace(temporary, folder)


def check_spatial(source: Source, folder: Path) -> Difference:
    """Reads `unet/` back with diffusers. Raises UserError when it differs from the model frame by frame."""
    exported = read_diffusers(folder)

    def folded(latents: Tensor, timesteps: Tensor, content: Tensor) -> Tensor:
        n = latents.shape[1]
        frames = latents.flatten(0, 1)
        prediction = exported(frames, timesteps.repeat_interleave(n), content.repeat_interleave(n, dim=0)).sample
        return prediction.unflatten(0, (-1, n))

    def frame_by_frame(latents: Tensor, timesteps: Tensor, content: Tensor) -> Tensor:
        return source.unet(latents, timesteps, content, temporal=False)

    difference = largest_difference(folded, frame_by_frame, source.unet.config)
    return _check_difference(difference, TOLERANCE, SPATIAL, source)


def check_whole(source: Source, folder: Path) -> Difference:
    """Reads `gen1/` back. Raises UserError when it differs from the model in any bit."""
    config = UNetConfig(**json.loads((folder / CONFIG_FILE).read_text()))
    exported = load_recorded(read_checkpoint(folder), config)
    difference = largest_difference(exported, source.unet, source.unet.config)
    return _check_difference(difference, 0.0, WHOLE, source)


def _check_difference(difference: Difference, tolerance: float, name: str, source: Source) -> Difference:
    if not difference.relative <= tolerance:  # also when it is NaN
        path = source.checkpoint.path
        raise UserError(
            f"{name}/ is not the model in {path}: {difference}; nothing was exported: this is a bug, please report it"
        )
    return difference


def read_diffusers(folder: Path) -> Any:
    """Loads the UNet of a folder with diffusers. Raises UserError if its weights are not exactly those it needs."""
    from diffusers import UNet2DConditionModel

    try:
        unet, info = UNet2DConditionModel.from_pretrained(
            folder, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
        wrong = [str(name) for kind in ("missing", "unexpected", "mismatched") for name in info[f"{kind}_keys"]]
        if wrong:
            raise ValueError(f"missing, left over or of another shape: {listed(wrong)}")
    except Exception as error:  # of many types
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{SPATIAL}/ cannot be read by diffusers ({reason}); nothing was exported: this is a bug, please report it"
        ) from error
    return unet.eval().requires_grad_(False)


@torch.no_grad()
def largest_difference(exported: Predict, expected: Predict, config: UNetConfig) -> Difference:
    """Compares two models on two random clips, with one content token and with several.

    With a single token, attention does not depend on queries and keys.
    """
    frames = min(3, config.max_frames)
    side = 2 ** len(config.channels)  # the coarsest map is 2x2
    latents = keyed.normal((2, frames, config.in_channels, side, side), "export", "latents")
    timesteps = torch.tensor([keyed.integer(1000, "export", "timestep", clip) for clip in range(2)])
    absolute = []
    relative = []
    for tokens in (1, 5):
        content = keyed.normal((2, tokens, config.content_dim), "export", "content", tokens)
        reference = expected(latents, timesteps, content)
        absolute.append((exported(latents, timesteps, content) - reference).abs().max())
        relative.append(absolute[-1] / reference.abs().max().clamp_min(torch.finfo(reference.dtype).tiny))
    # the maximum of a tensor is NaN if any of its values is
    return Difference(float(torch.stack(absolute).max()), float(torch.stack(relative).max()))
