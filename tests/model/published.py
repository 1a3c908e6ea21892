"""Writers of Stable Diffusion's published formats from diffusers' UNet, without the reader's tables."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from torch import Tensor

from gen1_train.model.unet import UNetConfig
from tests.model.reference import diffusers_unet

SD1 = UNetConfig(channels=[32, 64, 96, 96], context_dim=24, content_dim=24, temporal=False)
SD2 = replace(SD1, channels=[64, 64, 128, 128], heads=[1, 1, 2, 2], layers=1, linear_projection=True)
SMALL = replace(SD1, channels=[32, 64], attention=[True, False], heads=[8, 8], layers=1)

OUTER = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
INNER = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def image_unet(config: UNetConfig, half: bool = False) -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = diffusers_unet(config).eval().requires_grad_(False)
    return unet.half() if half else unet


def compvis_modules(config: UNetConfig) -> dict[str, str]:
    """Maps diffusers' module names to CompVis', with the blocks in the order of CompVis' UNet."""
    last = len(config.channels) - 1
    down: list[list[str]] = [[]]  # block 0 is the input convolution
    for level, attends in enumerate(config.attention):
        for layer in range(config.layers):
            down.append([f"resnets.{layer}", f"attentions.{layer}"][: 1 + attends])
            down[-1] = [f"down_blocks.{level}.{part}" for part in down[-1]]
        if level < last:
            down.append([f"down_blocks.{level}.downsamplers.0"])
    up: list[list[str]] = []
    for level, attends in enumerate(reversed(config.attention)):
        for layer in range(config.layers + 1):
            up.append([f"resnets.{layer}", f"attentions.{layer}"][: 1 + attends])
            up[-1] += ["upsamplers.0"] if layer == config.layers and level < last else []
            up[-1] = [f"up_blocks.{level}.{part}" for part in up[-1]]
    rows = {"input_blocks": down, "output_blocks": up}
    numbered = {
        module: f"{row}.{i}.{j}"
        for row, blocks in rows.items()
        for i, block in enumerate(blocks)
        for j, module in enumerate(block)
    }
    return OUTER | numbered


def compvis_name(name: str, modules: dict[str, str]) -> str:
    """Converts diffusers' name of a parameter to CompVis'."""
    module = next(module for module in modules if name.startswith(f"{module}."))
    inside = name.removeprefix(f"{module}.")
    first, _, rest = inside.partition(".")
    if ".resnets." in module:
        inside = f"{INNER[first]}.{rest}"
    if ".downsamplers." in module:
        inside = f"op.{rest}"
    return f"{modules[module]}.{inside}"


def compvis_names(config: UNetConfig, names: Iterable[str]) -> dict[str, str]:
    """Maps CompVis' name of every parameter to diffusers'."""
    modules = compvis_modules(config)
    return {compvis_name(name, modules): name for name in names}


def bare_compvis(config: UNetConfig, unet: UNet2DConditionModel) -> dict[str, Tensor]:
    weights = unet.state_dict()
    return {old: weights[new].clone() for old, new in compvis_names(config, weights).items()}


def complete_checkpoint(config: UNetConfig, unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The UNet, and tensors of autoencoder, text encoder, averaged UNet and noise schedule, as in published files.

    The text encoder of SD 2.x is open_clip's.
    """
    bare = bare_compvis(config, unet)
    text = f"cond_stage_model.{'model.transformer.resblocks' if config.linear_projection else 'transformer'}"
    return {
        "betas": torch.rand(10),
        "alphas_cumprod": torch.rand(10),
        **{f"model.diffusion_model.{name}": tensor for name, tensor in bare.items()},
        **{f"model_ema.{name.replace('.', '')}": torch.rand(2) for name in bare},
        "model_ema.num_updates": torch.tensor(7),
        **{f"first_stage_model.decoder.{name}.weight": torch.rand(2) for name in ("conv_in", "conv_out")},
        **{f"{text}.{i}": torch.zeros(1, dtype=torch.int64) for i in range(3)},
    }


Writer = Callable[[Path, UNetConfig, UNet2DConditionModel], Path]


def folder(variant: str | None = None, shard: str = "10GB", inner: bool = False) -> Writer:
    def write(target: Path, config: UNetConfig, unet: UNet2DConditionModel) -> Path:
        unet.save_pretrained(target / "unet", variant=variant, max_shard_size=shard)
        return target / "unet" if inner else target

    return write


def legacy_index(target: Path, config: UNetConfig, unet: UNet2DConditionModel) -> Path:
    folder("fp16", "1MB")(target, config, unet)
    index = target / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json"
    index.rename(index.with_name("diffusion_pytorch_model.safetensors.fp16.index.json"))
    return target


def file(
    name: str, contents: Callable[[UNetConfig, UNet2DConditionModel], dict[str, Tensor]], with_config: bool = False
) -> Writer:
    def write(target: Path, config: UNetConfig, unet: UNet2DConditionModel) -> Path:
        save_file(contents(config, unet), target / name)
        if with_config:
            unet.save_config(target)
        return target / name

    return write


def checkpoint(
    contents: Callable[[UNetConfig, UNet2DConditionModel], dict[str, Tensor]],
    bare: bool = False,
    zipped: bool = True,
    lightning: bool = False,
) -> Writer:
    """`lightning`: with the state of a callback, keyed by its class, and a numpy number, as in SD 1.x checkpoints."""

    def write(target: Path, config: UNetConfig, unet: UNet2DConditionModel) -> Path:
        tensors = contents(config, unet)
        content: dict[str, object] = {**tensors} if bare else {"state_dict": tensors, "global_step": 470000, "epoch": 2}
        if lightning:
            content["callbacks"] = {ModelCheckpoint: {"monitor": "val/loss", "best_model_score": np.float64(0.1)}}
        torch.save(content, target / "sd-v1.ckpt", _use_new_zipfile_serialization=zipped)
        return target / "sd-v1.ckpt"

    return write


def diffusers_weights(config: UNetConfig, unet: UNet2DConditionModel) -> dict[str, Tensor]:
    return dict(unet.state_dict())
