"""Structure: monocular depth by MiDaS DPT (paper section 3.3; it uses DPT-Large), with transformers' classes."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen1_train.errors import UserError, check_positive
from gen1_train.frozen.loading import architecture, fingerprint, finite, load_frozen, require_complete
from gen1_train.frozen.plain import find_source, plain_folder, read_config, selected

NORMALISATION = "min-max over the clip, inverse depth, 1 is nearest"  # ours; normalizing each frame would flicker

# transformers creates this layer but never calls it: the first fusion has only one input (transformers #28292)
UNUSED = "neck.fusion_stage.layers.0.residual_layer1."

# The backbones of MiDaS whose input is scaled to mean 0.5 and deviation 0.5, and that take any aspect. (MiDaS gives
# Swin and LeViT squares only.)
KINDS = "DPT-Large and other plain ViT, DPT-Hybrid (BiT and ViT), DPT-BEiT"

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
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


@dataclass
class DepthConfig:
    path: str = "Intel/dpt-large"  # a folder in transformers' DPT format, in the working folder or a package; or hub id
    size: int = 384  # pixels of the shorter side at which depth is estimated (ours; DPT-Large learned squares of 384)
    multiple: int = 32  # both sides are rounded to a multiple of this (MiDaS's value)
    chunk: int = 8  # frames per call of the network; bounds memory, changes values by rounding only

    def check(self) -> None:
        """Raises UserError for a setting that is out of its range."""
        check_positive(depth__size=self.size, depth__multiple=self.multiple, depth__chunk=self.chunk)


class DepthEstimator:
    """Estimates relative inverse depth, at the frame's own aspect.

    The shorter side is resized to `size` pixels: 448x256 to 672x384. This is ours (MiDaS's mode `lower_bound`). MiDaS
    itself runs DPT in its mode `minimal`, which resizes as little as possible (448x256 to 384x224), and transformers'
    processor distorts every frame to 384x384, unless its settings say otherwise.
    """

    normalisation = NORMALISATION
    subject: str | None = None

    def __init__(self, config: DepthConfig, device: str | torch.device = "cpu", recorded: bool = False) -> None:
        """Raises UserError if the network cannot be loaded, or is of a kind whose depth would be wrong.

        `recorded`: a file names it, not the user, see `frozen.plain`.
        """
        from transformers.utils import logging

        logging.disable_progress_bar()  # it would break up our own progress bar
        config.check()
        self.config = config
        self.device = torch.device(device)
        self.network: Any = load_frozen(
            "depth estimator",
            config.path,
            f"a folder in transformers' DPT format (config.json, model.safetensors) or a hub id; supported: {KINDS}",
            lambda: load_dpt(config.path, recorded),
        ).to(self.device)
        # random if the checkpoint lacks it, as Intel/dpt-large does: fingerprints would differ between processes
        self.network.neck.fusion_stage.layers[0].residual_layer1 = nn.Identity()
        patch = patch_size(self.network.config)
        if config.multiple % patch:
            raise UserError(
                f"depth.multiple={config.multiple} is not a multiple of {patch} pixels, the size of a patch of "
                f"depth.path={config.path}: give {patch * max(1, round(config.multiple / patch))}"
            )

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.network, self.config.size, self.config.multiple, NORMALISATION)

    @property
    def architecture(self) -> str:
        """The hash of the settings that its weights do not show, see `architecture`."""
        config = self.network.config
        backbone = config.backbone_config.to_dict() if config.backbone_config is not None else {}
        return architecture(
            **{name: getattr(config, name) for name in NETWORK},
            backbone={name: backbone[name] for name in BACKBONE if name in backbone},
        )

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 frames (n, h, w, 3) -> inverse depth (n, h, w), float32, unbounded; larger is nearer."""
        return torch.cat([self._part(part.to(self.device)).cpu() for part in frames.split(self.config.chunk)])

    def normalise(self, raw: Tensor, span: tuple[float, float] | None = None) -> tuple[Tensor, tuple[float, float]]:
        """Normalizes the inverse depth (n, h, w) of one clip, see `normalise_clip`."""
        return normalise_clip(raw, span)

    def _part(self, frames: Tensor) -> Tensor:
        height, width = frames.shape[1:3]
        pixels = frames.movedim(-1, 1).float() / 127.5 - 1  # DPT's mean 0.5, std 0.5
        size = self._network_size(height, width)
        pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
        depth = finite(lambda: dpt_inverse_depth(self.network, pixels), self.device).unsqueeze(1)
        return F.interpolate(depth, size=(height, width), mode="bicubic", align_corners=False).squeeze(1)

    def _network_size(self, height: int, width: int) -> tuple[int, int]:
        scale = self.config.size / min(height, width)
        multiple = self.config.multiple
        return (
            max(multiple, round(height * scale / multiple) * multiple),
            max(multiple, round(width * scale / multiple) * multiple),
        )


def load_dpt(path: str, recorded: bool) -> Any:
    """Loads transformers' DPT. Raises ValueError for a kind that is not supported, before its weights are read.

    Other errors are those of transformers. A small picture goes through the network, so that one that cannot run
    (another number of layers than its neck takes, for example) fails here, and not in every task.
    """
    from transformers import DPTForDepthEstimation

    source = find_source(path, CONFIG, (WEIGHTS,), recorded)
    with plain_folder(source, dpt_settings(read_config(source.config))) as folder:
        network = require_complete(
            DPTForDepthEstimation.from_pretrained(folder, use_safetensors=True, output_loading_info=True), unused=UNUSED
        ).eval()
    patch = patch_size(network.config)
    with torch.no_grad():
        dpt_inverse_depth(network, torch.zeros(1, 3, 2 * patch, 4 * patch))
    return network


def dpt_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what transformers may read of a config.json. Raises ValueError for a kind that is not supported."""
    if config.get("model_type") != "dpt":
        raise ValueError(f"its model_type is {config.get('model_type')}, not dpt")
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


def patch_size(config: Any) -> int:
    """Returns the pixels of a patch's side. Raises ValueError if patches are not square."""
    size = (config if config.is_hybrid or config.backbone_config is None else config.backbone_config).patch_size
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"its patches are not square: {size}")
    return int(sides.pop())


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
    patch = patch_size(config)
    rows, columns = (side // patch for side in pixels.shape[-2:])
    return network.head(network.neck(states, rows, columns))


def normalise_clip(
    inverse_depth: Tensor, span: tuple[float, float] | None = None
) -> tuple[Tensor, tuple[float, float]]:
    """Normalizes the inverse depth (n, h, w) of one clip to [0, 1]; returns it with its range (or `span`).

    A flat clip becomes all 0.
    """
    low, high = span or (float(inverse_depth.min()), float(inverse_depth.max()))
    return (inverse_depth - low) / max(high - low, 1e-6), (low, high)
