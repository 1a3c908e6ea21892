"""MiDaS's DPT in transformers' format: what of its config is read, and its forward pass at any aspect."""

from typing import Any

from torch import Tensor, nn

from gen1_train.frozen.loading import require_complete
from gen1_train.frozen.plain import selected

# The backbones of MiDaS whose input is scaled to mean 0.5 and deviation 0.5, and that take any aspect. (MiDaS gives
# Swin and LeViT squares only.)
SUPPORTED = "DPT-Large and other plain ViT, DPT-Hybrid (BiT and ViT), DPT-BEiT"

# transformers creates this layer but never calls it: the first fusion has only one input (transformers #28292)
UNUSED = "neck.fusion_stage.layers.0.residual_layer1."

NETWORK = (  # settings that the layers are built from
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
    "is_hybrid",
    "qkv_bias",
    "backbone_out_indices",
    "readout_type",
    "reassemble_factors",
    "neck_hidden_sizes",
    "fusion_hidden_size",
    "head_in_index",
    "add_projection",
    "use_batch_norm_in_fusion_residual",
    "use_bias_in_fusion_residual",
    "backbone_featmap_shape",
    "neck_ignore_stages",
)
OTHER = (  # they are for training or for other heads, or name the format
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "use_auxiliary_head",
    "auxiliary_loss_weight",
    "semantic_loss_ignore_index",
    "semantic_classifier_dropout",
    "pooler_output_size",
    "pooler_act",
    "dtype",
    "torch_dtype",
    "transformers_version",
)
BACKBONE = (  # of BiT and BEiT
    "model_type",
    "num_channels",
    "embedding_size",
    "hidden_sizes",
    "depths",
    "layer_type",
    "hidden_act",
    "global_padding",
    "num_groups",
    "embedding_dynamic_padding",
    "output_stride",
    "width_factor",
    "out_features",
    "out_indices",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "use_mask_token",
    "use_absolute_position_embeddings",
    "use_mean_pooling",
    "use_relative_position_bias",
    "use_shared_relative_position_bias",
    "layer_scale_init_value",
    "add_fpn",
    "reshape_hidden_states",
    "vocab_size",
    "pool_scales",
)
BACKBONE_OTHER = (*OTHER, "drop_path_rate", "auxiliary_channels", "auxiliary_num_convs", "auxiliary_concat_input")


def load_dpt(folder: str) -> Any:
    """Loads DPTForDepthEstimation. Raises ValueError if weights are missing; other errors are those of transformers."""
    from transformers import DPTForDepthEstimation

    return without_unused(
        require_complete(
            DPTForDepthEstimation.from_pretrained(folder, use_safetensors=True, output_loading_info=True), unused=UNUSED
        )
    )


def without_unused(network: Any) -> Any:
    """Removes the layer that is never called.

    It is random if the checkpoint lacks it, as Intel/dpt-large does: fingerprints would differ between processes.
    """
    network.neck.fusion_stage.layers[0].residual_layer1 = nn.Identity()
    return network


def dpt_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what transformers may read of a config.json. Raises ValueError for a kind that is not supported."""
    settings = {"model_type": "dpt", **selected(config, (*NETWORK, *OTHER))}
    backbone = config.get("backbone_config") or {}
    if not isinstance(backbone, dict):
        raise ValueError("its backbone_config is not a JSON object")
    kind = backbone.get("model_type") or config.get("backbone")  # `backbone` would be looked up on the hub
    hybrid = bool(config.get("is_hybrid"))
    if kind not in (("bit", None) if hybrid else ("beit", None)) or (kind and not backbone):
        raise ValueError(f"its backbone is {kind}{' of a hybrid' if hybrid else ''}")
    if backbone:
        settings["backbone_config"] = selected(backbone, (*BACKBONE, *BACKBONE_OTHER))
    return settings


def dpt_architecture(config: Any) -> dict[str, Any]:
    """Returns the settings of a loaded network that its weights do not show."""
    backbone = config.backbone_config.to_dict() if config.backbone_config is not None else {}
    return {
        **{name: getattr(config, name) for name in NETWORK},
        "backbone": {name: backbone[name] for name in BACKBONE if name in backbone},
    }


def square_side(size: Any) -> int:
    """Returns the side of a square that a config gives as one number or as two. Raises ValueError for another shape."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"its patches or pictures are not square: {size}")
    return int(sides.pop())


def dpt_vit(config: Any) -> Any:
    """Returns the config of the vision transformer: the network's own, or that of its backbone."""
    return config if config.is_hybrid or config.backbone_config is None else config.backbone_config


def dpt_inverse_depth(network: Any, pixels: Tensor) -> Tensor:
    """Normalized pixels (n, 3, h, w) -> inverse depth (n, h', w') by transformers' DPT at any aspect.

    h' and w' are h and w in the published networks. With ViT and with BiT, DPTForDepthEstimation.forward assumes a
    square token grid; its parts, called separately with the true grid, do not.
    """
    config = network.config
    if network.backbone is not None:  # BEiT, for which transformers passes the true grid
        return network(pixels).predicted_depth
    if config.is_hybrid:
        network.dpt.embeddings.image_size = pixels.shape[-2:]  # it refuses any other; positions are interpolated anyway
    output = network.dpt(pixels, output_hidden_states=True)
    taps = config.backbone_out_indices[2:] if config.is_hybrid else config.backbone_out_indices
    states = [state for i, state in enumerate(output.hidden_states[1:]) if i in taps]
    if config.is_hybrid:
        states = [*output.intermediate_activations, *states]  # the maps of BiT's first two stages
    patch = square_side(config.patch_size)
    rows, columns = (side // patch for side in pixels.shape[-2:])
    return network.head(network.neck(states, rows, columns))
