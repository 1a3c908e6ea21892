"""LoRA (arXiv 2106.09685) through peft: beside each projection of attention a product of two thin matrices is trained.

The UNet's own weights stand still and are neither in the optimizer nor in its averages. A checkpoint of such a run is
an ordinary one all the same, and everything that reads checkpoints reads it: its weights, and each average, are those
of the run's start with the adapter merged into them. Beside them lie

    lora.safetensors             the adapter as it is trained, small; by peft's names
    lora_ema_0.9999.safetensors  its average: each of the two matrices is averaged by itself (ours)

from which, with RUN/base.safetensors (the weights of the start), a run goes on to the bit.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen1_train.errors import UserError
from gen1_train.files import sync
from gen1_train.model.pretrained import check_keys, load_safetensors, load_weights
from gen1_train.model.unet import SpatioTemporalUNet
from gen1_train.training.checkpoint import OPTIMIZER, Checkpoint, adapter_file, sha256, write_weights
from gen1_train.training.customize import CustomizeConfig
from gen1_train.training.state import trainable

BASE = "base.safetensors"
Files = dict[str, dict[str, Tensor]]
# Plain nn.Linear that are called as modules. Of cross-attention only what one content token leaves in use, see
# layers.Attention.to_one; ours. peft takes the expression for the whole name of a module.
SPATIAL = r".*\.(attn1\.(to_q|to_k|to_v|to_out\.0)|attn2\.(to_v|to_out\.0))"
TEMPORAL = r".*\.temporal_transformer_blocks\..*\.attn\.(to_q|to_k|to_v|to_out)"


def scale_of(config: CustomizeConfig) -> float:
    """By which the product of the two matrices is scaled: alpha / rank."""
    assert config.lora_rank is not None
    return (config.lora_rank if config.lora_alpha is None else config.lora_alpha) / config.lora_rank


def add_lora(unet: nn.Module, config: CustomizeConfig, seed: int) -> None:
    """Puts an adapter into a UNet, in place, and lets nothing else be trained. Its output is the same, to the bit."""
    from peft import LoraConfig, inject_adapter_in_model

    assert config.lora_rank is not None
    torch.manual_seed(seed)  # the same on every rank
    targets = f"{SPATIAL}|{TEMPORAL}" if config.lora_temporal else SPATIAL
    rank = config.lora_rank
    alpha: Any = scale_of(config) * rank  # typed as a whole number there, but only ever divided by the rank
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), unet)


def merged(base: Mapping[str, Tensor], adapter: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The weights of the plain UNet that computes what the two compute together: W + scale B A, in float32."""
    made = dict(base)
    for name, down in adapter.items():
        layer, found, rest = name.partition(".lora_A.")
        if found:
            up = adapter[f"{layer}.lora_B.{rest}"]
            made[f"{layer}.weight"] = base[f"{layer}.weight"] + scale * (up @ down)
    return made


def save_base(run: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes the weights that the adapter is beside; whole or not there. Raises UserError."""
    temporary = run / f".{BASE}.tmp"
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_weights({name: tensor.detach().float().cpu() for name, tensor in weights.items()}, temporary)
        sync(temporary)
        os.replace(temporary, run / BASE)
        sync(run)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"{run / BASE} cannot be written ({error.strerror or error}): make room there") from error


def describe_adapter(config: CustomizeConfig, run: Path) -> dict[str, Any]:
    """What a checkpoint says of its adapter."""
    return {**settings(config), "base": sha256(run / BASE)}


def settings(config: CustomizeConfig) -> dict[str, Any]:
    return {"rank": config.lora_rank, "scale": scale_of(config), "temporal": config.lora_temporal}


def check_adapter(config: CustomizeConfig, run: Path, resume: Checkpoint) -> None:
    """Raises UserError when a run cannot go on: another adapter is asked for, or its base is gone or changed."""
    before, now = resume.info.lora, settings(config) if config.lora_rank is not None else {}
    if {name: value for name, value in before.items() if name != "base"} != now:
        raise UserError(
            f"{resume.path} was trained with customize.lora_rank={before.get('rank')} (scale {before.get('scale')}, "
            f"temporal {before.get('temporal')}), which cannot be changed within a run: set it so, or start a new run "
            "with name="
        )
    if before and (not (run / BASE).is_file() or sha256(run / BASE) != before["base"]):
        raise UserError(f"{run / BASE} is not there or was changed: restore it, or start a new run with name=")


def load_base(unet: SpatioTemporalUNet, run: Path, config: CustomizeConfig, seed: int) -> None:
    """Puts the weights that a run began with into a UNet, and an adapter that changes nothing. Raises UserError."""
    load_weights(unet, load_safetensors(run / BASE), str(run / BASE), may_be_new=())
    add_lora(unet, config, seed)


def load_trained(unet: SpatioTemporalUNet, weights: Mapping[str, Tensor], source: str) -> None:
    """Puts what is trained into a UNet: its weights, or its adapter's if it has one. Raises UserError for others."""
    wanted = trainable(unet)
    check_keys(wanted, weights, source)
    with torch.no_grad():
        for name, weight in wanted.items():
            weight.copy_(weights[name])


def merging(config: CustomizeConfig, run: Path) -> Callable[[Files], Files]:
    """What makes an ordinary checkpoint of the files that a run has gathered; for the writer's thread.

    It takes adapters in place of weights and averages, and raises UserError.
    """

    def complete(files: Files) -> Files:
        base = load_safetensors(run / BASE)
        made: Files = {}
        for file, content in files.items():
            if file == OPTIMIZER:
                made[file] = content
            else:
                made[adapter_file(file)] = content
                made[file] = merged(base, content, scale_of(config))
        return made

    return complete if config.lora_rank is not None else lambda files: files
