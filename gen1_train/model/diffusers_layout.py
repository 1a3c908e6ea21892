"""diffusers' name for everything: config and weights of its UNet2DConditionModel <-> ours.

Every entry of diffusers' config stands in exactly one of the three tables below; a test walks its signature.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from gen1_train.errors import UserError
from gen1_train.model.unet import UNetConfig

CONFIG_FILE, WEIGHTS_FILE = "config.json", "diffusion_pytorch_model.safetensors"
CLASS = "UNet2DConditionModel"
DOWN, UP = ("DownBlock2D", "CrossAttnDownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")  # without, with transformers
PROJECTION = ("content_projection.", "encoder_hid_proj.")  # the same linear layer: our name, diffusers'

# What a UNetConfig says, with diffusers' defaults: they stand for entries that are absent.
MAPPED: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": [DOWN[1], DOWN[1], DOWN[1], DOWN[0]],
    "up_block_types": [UP[0], UP[1], UP[1], UP[1]],
    "attention_head_dim": 8,  # diffusers' name for the number of heads
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "cross_attention_dim": 1280,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,  # with encoder_hid_dim: text_proj
    "use_linear_projection": False,
}

# What our UNet does in one way only, that of Stable Diffusion 1.x and 2.x: the values that mean it, the default first.
FIXED: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "only_cross_attention": (False,),
    "downsample_padding": (1,),
    "mid_block_scale_factor": (1,),
    "dropout": (0.0,),
    "act_fn": ("silu",),
    "norm_eps": (1e-5,),
    "transformer_layers_per_block": (1,),
    "reverse_transformer_layers_per_block": (None,),
    "num_attention_heads": (None,),  # diffusers refuses it too: attention_head_dim is what it is named for
    "dual_cross_attention": (False,),
    "class_embed_type": (None,),
    "addition_embed_type": (None,),
    "num_class_embeds": (None,),
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1.0,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "mid_block_only_cross_attention": (None, False),
    "cross_attention_norm": (None,),
}

# What changes no output of the UNets that pass the table above, and why.
HARMLESS: dict[str, str] = {
    "sample_size": "the size that pipelines choose if they are given none; the UNet takes any",
    "upcast_attention": "where attention computes in float32 if the weights are in half precision; the same function",
    "addition_time_embed_dim": "read for addition_embed_type only",
    "addition_embed_type_num_heads": "read for addition_embed_type only",
    "projection_class_embeddings_input_dim": "read for class_embed_type and addition_embed_type only",
}
# Entries that UNet2DConditionModel does not know change nothing either: diffusers leaves them out with a warning. There
# are such: `_name_or_path`, and what its EMAModel writes into the config (decay, power, optimization_step, …).


def config_from_diffusers(content: dict[str, Any], source: Path) -> UNetConfig:
    """diffusers' UNet2DConditionModel config -> ours, without temporal layers.

    Raises UserError that names the entry for a UNet that does anything else than Stable Diffusion 1.x or 2.x.
    """
    for name, supported in {"_class_name": (CLASS,), **FIXED}.items():
        if _of_all_resolutions(content.get(name, supported[0])) not in supported:
            raise _unlike(source, name, content[name], repr(supported[0]))
    entries = {**MAPPED, **content}
    channels, linear = _integers(entries, "block_out_channels", source), entries["use_linear_projection"]
    if linear not in (True, False):
        raise _unlike(source, "use_linear_projection", linear, "True or False")
    context = _integer(entries, "cross_attention_dim", source)
    config = UNetConfig(
        in_channels=_integer(entries, "in_channels", source),
        out_channels=_integer(entries, "out_channels", source),
        channels=channels,
        attention=_attention(entries, len(channels), source),
        heads=_heads(entries, len(channels), source),
        layers=_integer(entries, "layers_per_block", source),
        groups=_integer(entries, "norm_num_groups", source),
        context_dim=context,
        content_dim=_content(entries, context, source),
        linear_projection=bool(linear),
        temporal=False,
    )
    if any(width % config.groups for width in channels):
        raise _unlike(source, "norm_num_groups", config.groups, f"a divisor of {channels}")
    return config


def config_to_diffusers(config: UNetConfig) -> dict[str, Any]:
    """Our config -> that of diffusers' UNet2DConditionModel with our spatial layers, for its config.json."""
    projected = config.content_dim != config.context_dim
    one_number = len(set(config.heads)) == 1  # as in the files of Stable Diffusion 1.x
    return {
        "_class_name": CLASS,
        **{name: supported[0] for name, supported in FIXED.items()},
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": list(config.channels),
        "down_block_types": [DOWN[attends] for attends in config.attention],
        "up_block_types": [UP[attends] for attends in reversed(config.attention)],
        "attention_head_dim": config.heads[0] if one_number else list(config.heads),
        "layers_per_block": config.layers,
        "norm_num_groups": config.groups,
        "cross_attention_dim": config.context_dim,
        "encoder_hid_dim": config.content_dim if projected else None,
        "encoder_hid_dim_type": "text_proj" if projected else None,
        "use_linear_projection": config.linear_projection,
    }


def weights_from_diffusers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' names of a UNet2DConditionModel's weights -> ours, which differ in the content projection alone."""
    return _renamed(weights, PROJECTION[1], PROJECTION[0])


def weights_to_diffusers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names of spatial weights -> diffusers'."""
    return _renamed(weights, PROJECTION[0], PROJECTION[1])


def _renamed(weights: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {new + k.removeprefix(old) if k.startswith(old) else k: v for k, v in weights.items()}


def _unlike(source: Path, name: str, value: Any, supported: str) -> UserError:
    return UserError(
        f"{source} is not a Stable Diffusion 1.x or 2.x UNet: {name} is {value!r}, supported is {supported}; "
        "give another UNet"
    )


def _of_all_resolutions(value: Any) -> Any:
    """Entries may be lists with a value for each resolution; one that says the same for all of them is that value."""
    if isinstance(value, (list, tuple)) and value and all(item == value[0] for item in value):
        return value[0]
    return value


def _integer(entries: dict[str, Any], name: str, source: Path) -> int:
    value = _of_all_resolutions(entries[name])
    if not _is_count(value):
        raise _unlike(source, name, entries[name], "one whole number above 0")
    return value


def _integers(entries: dict[str, Any], name: str, source: Path) -> list[int]:
    value = entries[name]
    if not isinstance(value, (list, tuple)) or not value or not all(_is_count(item) for item in value):
        raise _unlike(source, name, value, "a list of whole numbers above 0")
    return list(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _attention(entries: dict[str, Any], resolutions: int, source: Path) -> list[bool]:
    """Which resolutions have transformers, finest first: the same ones on the way down and up."""
    down, up = entries["down_block_types"], entries["up_block_types"]
    if not isinstance(down, (list, tuple)) or len(down) != resolutions or not all(kind in DOWN for kind in down):
        raise _unlike(source, "down_block_types", down, f"{' or '.join(DOWN)} for each of {resolutions} resolutions")
    attention = [kind == DOWN[1] for kind in down]
    mirrored = [UP[attends] for attends in reversed(attention)]
    if not isinstance(up, (list, tuple)) or list(up) != mirrored:
        raise _unlike(source, "up_block_types", up, f"{mirrored}, as on the way down")
    return attention


def _heads(entries: dict[str, Any], resolutions: int, source: Path) -> list[int]:
    value = entries["attention_head_dim"]
    heads = [value] * resolutions if isinstance(value, int) else value
    if not isinstance(heads, (list, tuple)) or len(heads) != resolutions or not all(_is_count(n) for n in heads):
        raise _unlike(source, "attention_head_dim", value, f"one number of heads, or one for each of {resolutions}")
    return list(heads)


def _content(entries: dict[str, Any], context: int, source: Path) -> int:
    """The width of the content: that of cross-attention, or what encoder_hid_proj brings to it."""
    width, kind = entries["encoder_hid_dim"], entries["encoder_hid_dim_type"]
    if width is None and kind is None:
        return context
    if kind not in (None, "text_proj"):  # diffusers: a width alone means text_proj
        raise _unlike(source, "encoder_hid_dim_type", kind, "None or 'text_proj'")
    if not _is_count(width) or width == context:  # ours has no projection between equal widths
        raise _unlike(source, "encoder_hid_dim", width, f"a width other than cross_attention_dim ({context})")
    return width
