"""Converts config and weights between diffusers' UNet2DConditionModel and our UNet.

Every entry of diffusers' config is in exactly one of the three tables below; a test walks its signature.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from gen1_train.errors import UserError
from gen1_train.model.unet import UNetConfig

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
CLASS = "UNet2DConditionModel"
# without transformers, with transformers
DOWN = ("DownBlock2D", "CrossAttnDownBlock2D")
UP = ("UpBlock2D", "CrossAttnUpBlock2D")
PROJECTION = ("content_projection.", "encoder_hid_proj.")  # the same linear layer: our name, diffusers'

# The entries that a UNetConfig covers, with diffusers' defaults, which apply to absent entries.
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

# The entries for which our UNet supports only Stable Diffusion 1.x and 2.x: the accepted values, the default first.
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
    "num_attention_heads": (None,),  # diffusers refuses it too: it uses attention_head_dim for this
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

# The entries that change no output of the UNets that pass the table above, and why.
HARMLESS: dict[str, str] = {
    "sample_size": "the default size of pipelines; the UNet accepts any size",
    "upcast_attention": "attention computes in float32 if the weights are in half precision; the same function",
    "addition_time_embed_dim": "only read for addition_embed_type",
    "addition_embed_type_num_heads": "only read for addition_embed_type",
    "projection_class_embeddings_input_dim": "only read for class_embed_type and addition_embed_type",
}
# Entries that UNet2DConditionModel does not know have no effect either: diffusers ignores them with a warning. Examples
# are `_name_or_path`, and what its EMAModel writes into the config (decay, power, optimization_step, …).


def config_from_diffusers(content: dict[str, Any], source: Path) -> UNetConfig:
    """Converts the config of diffusers' UNet2DConditionModel to ours, without temporal layers.

    Raises UserError, naming the entry, for a UNet that differs from Stable Diffusion 1.x and 2.x.
    """
    for name, supported in {"_class_name": (CLASS,), **FIXED}.items():
        if _uniform_value(content.get(name, supported[0])) not in supported:
            raise _unlike(source, name, content[name], repr(supported[0]))
    entries = {**MAPPED, **content}
    channels = _integers(entries, "block_out_channels", source)
    linear = entries["use_linear_projection"]
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
    """Converts our config to that of a diffusers UNet2DConditionModel with our spatial layers, for its config.json."""
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
    """Renames the weights of a UNet2DConditionModel to our names; only the content projection differs."""
    return _renamed(weights, PROJECTION[1], PROJECTION[0])


def weights_to_diffusers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames spatial weights from our names to diffusers'."""
    return _renamed(weights, PROJECTION[0], PROJECTION[1])


def _renamed(weights: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {new + k.removeprefix(old) if k.startswith(old) else k: v for k, v in weights.items()}


def _unlike(source: Path, name: str, value: Any, supported: str) -> UserError:
    return UserError(
        f"{source} is not a Stable Diffusion 1.x or 2.x UNet: {name} is {value!r}, but only {supported} is supported; "
        "give another UNet"
    )


def _uniform_value(value: Any) -> Any:
    """Returns the single value of a list that has the same value for every resolution, and other entries unchanged."""
    if isinstance(value, (list, tuple)) and value and all(item == value[0] for item in value):
        return value[0]
    return value


def _integer(entries: dict[str, Any], name: str, source: Path) -> int:
    value = _uniform_value(entries[name])
    if not _is_count(value):
        raise _unlike(source, name, entries[name], "one integer above 0")
    return value


def _integers(entries: dict[str, Any], name: str, source: Path) -> list[int]:
    value = entries[name]
    if not isinstance(value, (list, tuple)) or not value or not all(_is_count(item) for item in value):
        raise _unlike(source, name, value, "a list of integers above 0")
    return list(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _attention(entries: dict[str, Any], resolutions: int, source: Path) -> list[bool]:
    """Whether each resolution has transformers, finest first; the same on the way down and up."""
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
    """The width of the content: that of cross-attention, or the input width of encoder_hid_proj."""
    width, kind = entries["encoder_hid_dim"], entries["encoder_hid_dim_type"]
    if width is None and kind is None:
        return context
    if kind not in (None, "text_proj"):  # in diffusers a width alone means text_proj
        raise _unlike(source, "encoder_hid_dim_type", kind, "None or 'text_proj'")
    if not _is_count(width) or width == context:  # our UNet has no projection between equal widths
        raise _unlike(source, "encoder_hid_dim", width, f"a width other than cross_attention_dim ({context})")
    return width
