"""The reference for the spatial half of our UNet: diffusers' UNet2DConditionModel of a UNetConfig."""

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from gen1_train.model.pretrained import load_weights
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig

SD1 = {"channels": [8, 16, 32, 32], "heads": [8, 8, 8, 8], "groups": 4, "context_dim": 24, "content_dim": 24}
SD2 = {**SD1, "channels": [16, 32, 32, 64], "heads": [2, 4, 4, 8], "linear_projection": True}


def diffusers_unet(config: UNetConfig) -> UNet2DConditionModel:
    """Builds the UNet with random weights from torch's global generator."""
    down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in config.attention]
    up = ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(config.attention)]
    return UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        norm_num_groups=config.groups,
        cross_attention_dim=config.context_dim,
        attention_head_dim=config.heads,
        use_linear_projection=config.linear_projection,
    )


def inflated(config: UNetConfig, image_unet: UNet2DConditionModel) -> SpatioTemporalUNet:
    unet = SpatioTemporalUNet(config).to(image_unet.dtype)
    load_weights(unet, image_unet.state_dict(), "diffusers")
    return unet


def frame_by_frame(image_unet: UNet2DConditionModel, latents: Tensor, timesteps: Tensor, content: Tensor) -> Tensor:
    """Runs diffusers' UNet on each frame (b, n, c, h, w) alone, in a loop, independent of our folds."""
    clips = []
    for clip, t, tokens in zip(latents, timesteps, content):
        frames = [image_unet(frame[None], t[None], tokens[None]).sample for frame in clip]
        clips.append(torch.cat(frames))
    return torch.stack(clips)


def inputs(
    config: UNetConfig, b: int = 2, n: int = 3, size: tuple[int, int] = (8, 8), tokens: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns random float64 (latents, timesteps, content)."""
    latents = torch.randn(b, n, config.in_channels, *size, dtype=torch.float64)
    timesteps = torch.tensor([17, 903, 500, 0])[:b]
    return latents, timesteps, torch.randn(b, tokens, config.content_dim, dtype=torch.float64)


def perturb(unet: SpatioTemporalUNet) -> None:
    """Makes the temporal layers nonzero, as after training."""
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if ".temporal_" in name:
                parameter += 0.1 * torch.randn_like(parameter)
