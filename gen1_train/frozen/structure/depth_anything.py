"""Depth Anything (V1, V2) in transformers' format: what of its config is read. DINOv2 with the neck of DPT."""

from typing import Any

from torch import Tensor

from gen1_train.frozen.loading import require_complete
from gen1_train.frozen.plain import selected
from gen1_train.frozen.structure.dpt import OTHER, UNUSED, without_unused

SUPPORTED = "Depth Anything V1 and V2 for relative depth"
MASK_TOKEN = "backbone.embeddings.mask_token"  # DINOv2's, for its training

NETWORK = (  # settings that the layers are built from; `max_depth` is for metric depth
    "patch_size",
    "reassemble_hidden_size",
    "reassemble_factors",
    "neck_hidden_sizes",
    "fusion_hidden_size",
    "head_in_index",
    "head_hidden_size",
    "depth_estimation_type",
)
BACKBONE = (  # of DINOv2
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "mlp_ratio",
    "hidden_act",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
    "qkv_bias",
    "layerscale_value",
    "use_swiglu_ffn",
    "out_features",
    "out_indices",
    "apply_layernorm",
    "reshape_hidden_states",
    "use_mask_token",
)


def load_depth_anything(folder: str) -> Any:
    """Loads DepthAnythingForDepthEstimation. Raises ValueError, as `load_dpt` does."""
    from transformers import DepthAnythingForDepthEstimation

    network = require_complete(
        DepthAnythingForDepthEstimation.from_pretrained(folder, use_safetensors=True, output_loading_info=True),
        unused=(UNUSED, MASK_TOKEN),
    )
    network.backbone.embeddings.mask_token = None
    return without_unused(network)


def depth_anything_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what transformers may read of a config.json. Raises ValueError for a kind that is not supported."""
    if config.get("depth_estimation_type", "relative") != "relative":
        raise ValueError(
            f"it estimates {config['depth_estimation_type']} depth, in meters: give a model for relative depth, such "
            "as depth-anything/Depth-Anything-V2-Small-hf"
        )
    backbone = config.get("backbone_config")
    if not isinstance(backbone, dict) or backbone.get("model_type") != "dinov2":
        kind = backbone.get("model_type") if isinstance(backbone, dict) else config.get("backbone")
        raise ValueError(f"its backbone is {kind}, not described as dinov2 in backbone_config")
    settings = {"model_type": "depth_anything", **selected(config, (*NETWORK, *OTHER))}
    settings["backbone_config"] = selected(backbone, (*BACKBONE, *OTHER, "drop_path_rate"))
    return settings


def depth_anything_architecture(config: Any) -> dict[str, Any]:
    """Returns the settings of a loaded network that its weights do not show."""
    backbone = config.backbone_config.to_dict()
    return {
        "model_type": config.model_type,
        **{name: getattr(config, name) for name in NETWORK},
        "backbone": {name: backbone[name] for name in BACKBONE},
    }


def depth_anything_vit(config: Any) -> Any:
    """Returns the config of DINOv2. Raises ValueError if the head has another size of patches."""
    if config.patch_size != config.backbone_config.patch_size:
        raise ValueError(f"its patch_size is {config.patch_size}, and {config.backbone_config.patch_size} in DINOv2")
    return config.backbone_config


def depth_anything_inverse_depth(network: Any, pixels: Tensor) -> Tensor:
    """Normalized pixels (n, 3, h, w) -> inverse depth (n, h, w); transformers takes any aspect."""
    return network(pixels).predicted_depth
