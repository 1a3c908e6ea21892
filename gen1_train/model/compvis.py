"""Maps CompVis' parameter names of Stable Diffusion's UNet to diffusers', and infers the config from the shapes.

CompVis numbers all blocks on the way down consecutively, and likewise on the way up: `input_blocks.4.1` is the
transformer of the fourth block. diffusers numbers the resolutions, then their layers: `down_blocks.1.attentions.0`.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from itertools import count
from pathlib import Path

from torch import Tensor

from gen1_train.errors import UserError
from gen1_train.model.unet import UNetConfig

ASSUMED = ("heads", "groups")  # fields of UNetConfig that no shape depends on
# Stable Diffusion's values of them: SD 1.x has 8 heads, SD 2.x heads of 64 channels.
GROUPS = 32
HEADS = 8
HEAD_CHANNELS = 64

OUTER = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
SHAPED = (  # the parameters whose shapes determine the config, in addition to those that are counted
    "conv_in.weight",
    "conv_out.weight",
    "mid_block.attentions.0.proj_in.weight",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    "down_blocks.0.resnets.0.conv1.weight",
)
RESAMPLING = {"op": "downsamplers.0.conv", "conv": "upsamplers.0.conv"}


def diffusers_names(names: Iterable[str], source: Path) -> dict[str, str]:
    """Returns CompVis' name -> diffusers' for every parameter of a bare UNet (names like `input_blocks.0.0.weight`).

    Raises UserError for a name that no Stable Diffusion 1.x or 2.x UNet has. Inside transformers both use the same
    names.
    """
    names = list(names)
    layers = _count(set(names), "input_blocks.{}.0.in_layers.0.weight", first=1)  # before the first downsampling
    per_level = layers + 1  # down: plus the downsampling; up: one more layer
    renamed = {name: _renamed(name, per_level) for name in names}
    unknown = [name for name, new in renamed.items() if new is None]
    if unknown or len(set(renamed.values())) < len(renamed):
        example = f"({len(unknown)} unknown weights, e.g. {unknown[0]})" if unknown else "(its layers differ)"
        raise UserError(
            f"{source} is not a Stable Diffusion 1.x or 2.x UNet {example}; give a UNet of one of these versions"
        )
    return {name: new for name, new in renamed.items() if new is not None}


def _count(names: Collection[str], pattern: str, first: int = 0) -> int:
    """Counts the names that match a pattern, numbered from `first` without gaps."""
    return next(i for i in count() if pattern.format(first + i) not in names)


def _renamed(name: str, per_level: int) -> str | None:
    if outer := _replace_prefix(name, OUTER):
        return outer
    if match := re.fullmatch(r"middle_block\.([012])\.(.+)", name):
        layer, is_transformer = divmod(int(match[1]), 2)
        inside = _inside(layer, is_transformer, match[2])
        return inside and f"mid_block.{inside}"
    if match := re.fullmatch(r"(in|out)put_blocks\.(\d+)\.([012])\.(.+)", name):
        direction, first = ("down", 1) if match[1] == "in" else ("up", 0)  # input block 0 is conv_in
        level, layer = divmod(int(match[2]) - first, per_level)
        inside = _inside(layer, int(match[3]), match[4])
        return inside and f"{direction}_blocks.{level}.{inside}"
    return None


def _inside(layer: int, part: int, name: str) -> str | None:
    """Renames within a block: its residual block (part 0), its transformer (1), or the resampling that ends a level."""
    if resampling := _replace_prefix(name, RESAMPLING):
        return resampling
    if part == 1:
        return f"attentions.{layer}.{name}"
    residual = _replace_prefix(name, RESIDUAL) if part == 0 else None
    return residual and f"resnets.{layer}.{residual}"


def _replace_prefix(name: str, table: dict[str, str]) -> str | None:
    """Replaces the first part of `name` by the table; None if the table has no entry for it."""
    return next((new + name[len(old) :] for old, new in table.items() if name.startswith(f"{old}.")), None)


def config_from_weights(weights: Mapping[str, Tensor], source: Path) -> UNetConfig:
    """Infers the config of an image UNet from the shapes of its weights, which have our names. Raises UserError.

    Fields that no shape depends on (`ASSUMED`) get Stable Diffusion's values, as in its diffusers configs: 32 groups;
    8 heads at every resolution in SD 1.x; heads of 64 channels in SD 2.x, recognized by its linear projections.
    """
    missing = [name for name in SHAPED if name not in weights or weights[name].dim() < 2]
    if missing:
        raise UserError(
            f"{source} holds no complete Stable Diffusion UNet ({', '.join(missing)} missing); fetch it again"
        )
    conv_in, conv_out, proj_in, to_k, _ = (weights[name] for name in SHAPED)
    linear, context = proj_in.dim() == 2, to_k.shape[1]
    conv = "down_blocks.{}.resnets.0.conv1.weight"
    channels = [weights[conv.format(i)].shape[0] for i in range(_count(weights, conv))]
    if any(c % GROUPS or (linear and c % HEAD_CHANNELS) for c in channels):
        raise UserError(
            f"{source} does not specify its heads and groups, and {channels} channels do not divide as in Stable "
            "Diffusion: give a folder in diffusers' layout, whose config.json specifies them"
        )
    projection = weights.get("content_projection.weight")
    return UNetConfig(
        in_channels=conv_in.shape[1],
        out_channels=conv_out.shape[0],
        channels=channels,
        attention=[f"down_blocks.{i}.attentions.0.norm.weight" in weights for i in range(len(channels))],
        heads=[c // HEAD_CHANNELS if linear else HEADS for c in channels],
        layers=_count(weights, "down_blocks.0.resnets.{}.conv1.weight"),
        groups=GROUPS,
        context_dim=context,
        content_dim=context if projection is None else projection.shape[1],
        linear_projection=linear,
        temporal=False,
    )
