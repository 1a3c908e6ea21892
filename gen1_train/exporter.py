"""Exporting: a checkpoint as a folder for others, in two halves, both checked against the model that was trained.

OUTPUT/unet/   the spatial layers, as diffusers' UNet2DConditionModel: each frame alone, mu_pi in the paper's Eq. 8
OUTPUT/gen1/   the whole, as a checkpoint of ours without trainer state, and its UNetConfig as config.json
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen1_train import keyed
from gen1_train.diffusion.schedule import NoiseConfig
from gen1_train.errors import UserError
from gen1_train.model.diffusers_layout import CONFIG_FILE, WEIGHTS_FILE, config_to_diffusers, weights_to_diffusers
from gen1_train.model.pretrained import is_temporal, listed, load_weights
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.checkpoint import UNET, Checkpoint, find_checkpoint, read_checkpoint, write, write_weights
from gen1_train.training.stages import StageConfig, read_recorded

SPATIAL, WHOLE = "unet", "gen1"
ALLOWED = 1e-5  # of the largest value: float32 rounding between two ways to compute the same; ours

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # latents (b, n, c, h, w), timesteps (b,), content (b, k, d)


@dataclass(frozen=True)
class Source:
    """A checkpoint, opened, with the model that it holds."""

    checkpoint: Checkpoint
    stage: StageConfig
    noise: NoiseConfig
    unet: SpatioTemporalUNet
    weights: str  # name of the checkpoint's file that they were read from

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
    """Opens a checkpoint or a run's newest and builds its model; `which` weights is Checkpoint.weights_file's.

    Raises UserError when they do not fit together.
    """
    checkpoint = find_checkpoint(path)
    recorded = read_recorded(checkpoint)
    file = checkpoint.weights_file(which)
    return Source(checkpoint, recorded.stage, recorded.noise, load_whole(checkpoint, recorded.unet, which), file)


def load_whole(checkpoint: Checkpoint, config: UNetConfig, which: str = "ema") -> SpatioTemporalUNet:
    unet = SpatioTemporalUNet(config)
    load_weights(unet, checkpoint.weights(which), str(checkpoint.path), may_be_new=())
    return unet.eval().requires_grad_(False)


def write_checked(source: Source, folder: Path, say: Callable[[str], None]) -> tuple[Difference, Difference]:
    """Writes both halves, reads them back and compares. Raises UserError when either is not the model.

    Beside the source there is one other model in memory at a time.
    """
    write_spatial(source.unet, folder / SPATIAL)
    write_whole(source, folder / WHOLE)
    spatial = check_spatial(source, folder / SPATIAL)
    say(f"{SPATIAL}/ in diffusers {version('diffusers')}, against the model frame by frame: {spatial}")
    whole = check_whole(source, folder / WHOLE)
    say(f"{WHOLE}/ against the model: {whole}")
    return spatial, whole


def write_spatial(unet: SpatioTemporalUNet, folder: Path) -> None:
    """Writes what `UNet2DConditionModel.from_pretrained(folder)` reads."""
    folder.mkdir()
    spatial = {k: v for k, v in unet.state_dict().items() if not is_temporal(k)}
    write_weights(weights_to_diffusers(spatial), folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config_to_diffusers(unet.config), indent=2) + "\n")


def write_whole(source: Source, folder: Path) -> None:
    """Writes the checkpoint again, without trainer state and with the UNet's own config beside it."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    temporary.mkdir()
    (temporary / CONFIG_FILE).write_text(json.dumps(asdict(source.unet.config), indent=2) + "\n")
    before = source.checkpoint
    info = replace(before.info, counters={}, lora={})
    write(temporary, {UNET: source.unet.state_dict()}, before.config.read_text(), info)
    os.replace(temporary, folder)


def check_spatial(source: Source, folder: Path) -> Difference:
    """Reads `unet/` back by diffusers and compares. Raises UserError when it is not the model frame by frame."""
    theirs = read_diffusers(folder)

    def folded(latents: Tensor, timesteps: Tensor, content: Tensor) -> Tensor:
        n = latents.shape[1]
        repeated = timesteps.repeat_interleave(n), content.repeat_interleave(n, dim=0)
        return theirs(latents.flatten(0, 1), *repeated).sample.unflatten(0, (-1, n))

    def frame_by_frame(latents: Tensor, timesteps: Tensor, content: Tensor) -> Tensor:
        return source.unet(latents, timesteps, content, temporal=False)

    found = largest_difference(folded, frame_by_frame, source.unet.config)
    return _within(found, ALLOWED, SPATIAL, source)


def check_whole(source: Source, folder: Path) -> Difference:
    """Reads `gen1/` back and compares. Raises UserError when it is not the model, bit for bit."""
    config = UNetConfig(**json.loads((folder / CONFIG_FILE).read_text()))
    again = load_whole(read_checkpoint(folder), config)
    return _within(largest_difference(again, source.unet, source.unet.config), 0.0, WHOLE, source)


def _within(found: Difference, allowed: float, half: str, source: Source) -> Difference:
    if not found.relative <= allowed:  # also when it is no number
        path = source.checkpoint.path
        raise UserError(f"{half}/ is not the model in {path}: {found}; nothing was exported: report it, it is a bug")
    return found


def read_diffusers(folder: Path) -> Any:
    """diffusers' UNet of a folder, from exactly the weights there. Raises UserError."""
    from diffusers import UNet2DConditionModel

    try:
        unet, info = UNet2DConditionModel.from_pretrained(
            folder, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
        wrong = [str(name) for kind in ("missing", "unexpected", "mismatched") for name in info[f"{kind}_keys"]]
        if wrong:
            raise ValueError(f"missing, left over or of another shape: {listed(wrong)}")
    except Exception as error:  # a dozen types
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{SPATIAL}/ is not what diffusers reads ({reason}); nothing was exported: report it, it is a bug"
        ) from error
    return unet.eval().requires_grad_(False)


@torch.no_grad()
def largest_difference(made: Predict, expected: Predict, config: UNetConfig) -> Difference:
    """Over two random clips, with one content token and with several: alone, a token leaves queries and keys unused."""
    frames, side = min(3, config.max_frames), 2 ** len(config.channels)  # the coarsest map is 2x2
    latents = keyed.normal((2, frames, config.in_channels, side, side), "export", "latents")
    timesteps = torch.tensor([keyed.integer(1000, "export", "timestep", clip) for clip in range(2)])
    absolute, relative = [], []
    for tokens in (1, 5):
        content = keyed.normal((2, tokens, config.content_dim), "export", "content", tokens)
        wanted = expected(latents, timesteps, content)
        absolute.append((made(latents, timesteps, content) - wanted).abs().max())
        relative.append(absolute[-1] / wanted.abs().max().clamp_min(torch.finfo(wanted.dtype).tiny))
    # tensors, since their largest is NaN if one of them is
    return Difference(float(torch.stack(absolute).max()), float(torch.stack(relative).max()))
