"""Small random networks in the real formats of MiDaS's DPT and of Depth Anything."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BeitConfig,
    BitConfig,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
)


def frames(n: int, h: int, w: int) -> Tensor:
    torch.manual_seed(n)
    return torch.randint(0, 256, (n, h, w, 3), dtype=torch.uint8)


def tiny_dpt(layers: int = 4, taps: tuple[int, ...] = (0, 1, 2, 3)) -> DPTForDepthEstimation:
    """Builds a network laid out like DPT-Large: four taps, the deepest at half the patch grid, full-size output."""
    torch.manual_seed(0)
    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
        backbone_out_indices=list(taps),
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        use_auxiliary_head=False,
    )
    return lively(config)


def lively(config: DPTConfig | DepthAnythingConfig) -> Any:
    """Builds a network with larger weights than transformers' initial ones, whose output would be constant."""
    anything = isinstance(config, DepthAnythingConfig)
    network: Any = (DepthAnythingForDepthEstimation if anything else DPTForDepthEstimation)(config)
    for parameter in network.eval().requires_grad_(False).parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.3)
    last = network.head.conv3 if anything else network.head.head[-2]
    last.bias.fill_(1.0)  # otherwise the last ReLU could clip everything
    return network


COMMON: dict[str, Any] = {"fusion_hidden_size": 8, "use_auxiliary_head": False, "image_size": 64, "patch_size": 16}
VIT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def hybrid(**changes: Any) -> DPTConfig:
    """The config of DPT-Hybrid, made small: BiT with three stages, the last of which a ViT continues."""
    bit = BitConfig(
        global_padding="same",
        layer_type="bottleneck",
        embedding_dynamic_padding=True,
        out_features=STAGES[:3],
        depths=[1, 1, 1],
        hidden_sizes=[16, 32, 64],
        embedding_size=8,
        num_groups=2,
    )
    settings: dict[str, Any] = {
        "is_hybrid": True,
        "backbone_config": bit.to_dict(),
        "backbone_featmap_shape": [1, 64, 4, 4],
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [16, 32, 16, 16],
        "reassemble_factors": [1, 1, 1, 0.5],
    }
    return DPTConfig(**COMMON, **VIT, **(settings | changes))


def beit() -> DPTConfig:
    """The config of DPT-BEiT, made small, with the relative positions of the published ones."""
    backbone = BeitConfig(
        **VIT,
        image_size=64,
        patch_size=16,
        use_relative_position_bias=True,
        out_features=STAGES,
        reshape_hidden_states=False,
    )
    return DPTConfig(**COMMON, hidden_size=16, backbone_config=backbone, neck_hidden_sizes=[8, 8, 16, 16])


def depth_anything(**changes: Any) -> DepthAnythingConfig:
    """The config of Depth Anything V2, made small."""
    dino = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=56,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    sizes = {"reassemble_hidden_size": 16, "neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 8}
    return DepthAnythingConfig(backbone_config=dino, **(sizes | {"head_hidden_size": 8} | changes))


def folder_without(folder: Path, target: Path, prefix: str) -> Path:
    """Copies the folder without the weights whose names start with `prefix`."""
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    weights = load_file(target / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}
    assert len(kept) < len(weights)
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    return target
