"""LoRA (arXiv 2106.09685) through peft: a product of two thin matrices is trained for each projection of attention.

The UNet's own weights are frozen, and are neither in the optimizer nor in the averages. For everything that reads
checkpoints, a checkpoint of such a run is still an ordinary one: its weights, and each average, are those of the run's
start with the adapter merged into them. It also contains

    lora.safetensors             the adapter as it is trained, small; by peft's names
    lora_ema_0.9999.safetensors  its average: each of the two matrices is averaged separately (ours)

from which, together with RUN/base.safetensors (the weights of the start), a run resumes bit-exactly.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen1_train.errors import UserError
from gen1_train.model.pretrained import check_keys, load_safetensors, load_weights
from gen1_train.model.unet import SpatioTemporalUNet
from gen1_train.system.files import atomic_file
from gen1_train.training.checkpoints.checkpoint import OPTIMIZER, Checkpoint, adapter_file, sha256
from gen1_train.training.checkpoints.state import trainable
from gen1_train.training.checkpoints.writer import Complete, Files
from gen1_train.training.checkpoints.writing import write_weights
from gen1_train.training.customization.customize import CustomizeConfig

BASE = "base.safetensors"
# nn.Linear modules only. In cross-attention only those that a single content token uses, see
# layers.Attention.to_single_token; ours. peft matches the expression against the whole name of a module.
SPATIAL = r".*\.(attn1\.(to_q|to_k|to_v|to_out\.0)|attn2\.(to_v|to_out\.0))"
TEMPORAL = r".*\.temporal_transformer_blocks\..*\.attn\.(to_q|to_k|to_v|to_out)"


def scale_of(config: CustomizeConfig) -> float:
    """Returns the factor of the product of the two matrices: alpha / rank."""
    assert config.lora_rank is not None
    return (config.lora_rank if config.lora_alpha is None else config.lora_alpha) / config.lora_rank


def add_lora(unet: nn.Module, config: CustomizeConfig, seed: int) -> None:
    """Adds an adapter to a UNet, in place, and freezes everything else. The output stays bit-identical."""
    from peft import LoraConfig, inject_adapter_in_model

    assert config.lora_rank is not None
    torch.manual_seed(seed)  # the same on every rank
    targets = f"{SPATIAL}|{TEMPORAL}" if config.lora_temporal else SPATIAL
    rank = config.lora_rank
    alpha: Any = scale_of(config) * rank  # typed as int by peft, but only divided by the rank
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), unet)


def merged(base: Mapping[str, Tensor], adapter: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Returns the weights of a plain UNet that computes the same as the two together: W + scale B A, in float32."""
    weights = dict(base)
    for name, down in adapter.items():
        layer, is_down, suffix = name.partition(".lora_A.")
        if is_down:
            up = adapter[f"{layer}.lora_B.{suffix}"]
            weights[f"{layer}.weight"] = base[f"{layer}.weight"] + scale * (up @ down)
    return weights


def save_base(run: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes the weights that the adapter is added to, atomically. Raises UserError."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        with atomic_file(run / BASE) as temporary:
            write_weights({name: tensor.detach().float().cpu() for name, tensor in weights.items()}, temporary)
    except OSError as error:
        raise UserError(f"{run / BASE} cannot be written ({error.strerror or error}): free space there") from error


def describe_adapter(config: CustomizeConfig, run: Path) -> dict[str, Any]:
    """Returns what a checkpoint records about its adapter."""
    return {**settings(config), "base": sha256(run / BASE)}


def settings(config: CustomizeConfig) -> dict[str, Any]:
    return {"rank": config.lora_rank, "scale": scale_of(config), "temporal": config.lora_temporal}


def check_adapter(config: CustomizeConfig, run: Path, resume: Checkpoint) -> None:
    """Raises UserError when a run cannot resume: the settings differ, or its base is missing or was changed."""
    before, now = resume.info.lora, settings(config) if config.lora_rank is not None else {}
    if {name: value for name, value in before.items() if name != "base"} != now:
        raise UserError(
            f"{resume.path} was trained with customize.lora_rank={before.get('rank')} (scale {before.get('scale')}, "
            f"temporal {before.get('temporal')}), which cannot change within a run: use these settings, or start a new "
            "run with name="
        )
    if before and (not (run / BASE).is_file() or sha256(run / BASE) != before.get("base")):
        raise UserError(f"{run / BASE} is missing or was changed: restore it, or start a new run with name=")


def load_base(unet: SpatioTemporalUNet, run: Path, config: CustomizeConfig, seed: int) -> None:
    """Loads the weights that a run started with into a UNet, and adds a fresh adapter. Raises UserError."""
    load_weights(unet, load_safetensors(run / BASE), str(run / BASE), may_be_new=())
    add_lora(unet, config, seed)


def load_trained(unet: SpatioTemporalUNet, weights: Mapping[str, Tensor], source: str) -> None:
    """Loads the trained weights of a UNet: all of them, or its adapter's. Raises UserError for other keys."""
    trained = trainable(unet)
    check_keys(trained, weights, source)
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(weights[name])


def merging(config: CustomizeConfig, run: Path) -> Complete | None:
    """Returns a function that turns the files which a run has gathered into those of an ordinary checkpoint; None if no
    adapter is trained.

    It expects adapters in place of weights and averages, runs in the writer's thread, and raises UserError.
    """

    def complete(files: Files) -> Files:
        base = load_safetensors(run / BASE)
        completed: Files = {}
        for file, content in files.items():
            if file == OPTIMIZER:
                completed[file] = content
            else:
                completed[adapter_file(file)] = content
                completed[file] = merged(base, content, scale_of(config))
        return completed

    return complete if config.lora_rank is not None else None
