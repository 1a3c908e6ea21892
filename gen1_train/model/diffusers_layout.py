"""diffusers' name for everything: the config of its UNet2DConditionModel <-> ours."""

from pathlib import Path
from typing import Any

from gen1_train.errors import UserError
from gen1_train.model.unet import UNetConfig


def config_from_diffusers(content: dict[str, Any], source: Path) -> UNetConfig:
    """diffusers' UNet2DConditionModel config -> ours. Raises UserError for a UNet that is not of SD 1.x's family."""
    supported = ({"DownBlock2D", "CrossAttnDownBlock2D"}, {"UpBlock2D", "CrossAttnUpBlock2D"})
    kinds = (set(content.get("down_block_types", [])), set(content.get("up_block_types", [])))
    channels = content.get("block_out_channels")
    if not channels or not all(have and have <= can for have, can in zip(kinds, supported)):
        raise UserError(f"{source} is not a Stable Diffusion 1.x or 2.x UNet (blocks {sorted(kinds[0] | kinds[1])})")
    heads = content.get("attention_head_dim", 8)  # diffusers' name for what is the number of heads in SD 1.x and 2.x
    context = content.get("cross_attention_dim", 768)
    return UNetConfig(
        in_channels=content.get("in_channels", 4),
        out_channels=content.get("out_channels", 4),
        channels=list(channels),
        attention=[kind.startswith("CrossAttn") for kind in content["down_block_types"]],
        heads=[heads] * len(channels) if isinstance(heads, int) else list(heads),
        layers=content.get("layers_per_block", 2),
        groups=content.get("norm_num_groups", 32),
        context_dim=context,
        content_dim=context,
        linear_projection=content.get("use_linear_projection", False),
        temporal=False,
    )
