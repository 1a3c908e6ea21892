"""How weights pass from one UNet to the next: every key accounted for."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gen1_train.errors import UserError
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig

INPUT = "conv_in.weight"  # widened from stage 4 on: the structure enters here


@dataclass
class WeightReport:
    """Where the weights of a UNet came from, by parameter name."""

    source: str
    copied: list[str]
    widened: list[str]  # copied into the first input channels; the new channels are zero
    new: list[str]  # as initialised

    def summary(self) -> str:
        return (
            f"weights from {self.source}: {len(self.copied)} copied, {len(self.widened)} widened with zeros, "
            f"{len(self.new)} new"
        )


def is_temporal(name: str) -> bool:
    """True for the parameters of temporal layers: new in stage 3."""
    return ".temporal_" in name


def is_projection(name: str) -> bool:
    """True for the parameters that bring the content to the width of cross-attention: new in stage 2, if needed."""
    return name.startswith("content_projection.")


def load_weights(unet: SpatioTemporalUNet, weights: dict[str, Tensor], source: str, grow: bool = True) -> WeightReport:
    """Puts the weights of a predecessor into a UNet, or with grow=False those of this very UNet: then nothing is new.

    The only keys that may be new are the temporal layers and the content projection; the only shape that may differ
    is the input convolution's, which may gain input channels: they start at zero, so the output does not change.
    Raises UserError that names every other key that is missing, left over or of another shape; nothing is changed then.
    """
    wanted = unet.state_dict()
    new = [k for k in wanted if k not in weights and grow and (is_temporal(k) or is_projection(k))]
    missing = [k for k in wanted if k not in weights and k not in new]
    left_over = [k for k in weights if k not in wanted]
    common = [k for k in wanted if k in weights]
    widened = [k for k in common if grow and k == INPUT and _widens(weights[k], wanted[k])]
    misshapen = [k for k in common if weights[k].shape != wanted[k].shape and k not in widened]
    for group in (is_temporal, is_projection):
        if any(group(k) for k in common):
            missing += [k for k in new if group(k)]  # some are there: not a predecessor without them, a damaged one
    problems = [
        *(f"missing {k}" for k in missing),
        *(f"left over {k}" for k in left_over),
        *(f"{k} is {tuple(weights[k].shape)}, wanted {tuple(wanted[k].shape)}" for k in misshapen),
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise UserError(f"the weights in {source} are not those of this model ({shown}); check model= and the path")
    state = {k: weights[k] for k in common if k not in widened}
    for k in widened:
        state[k] = torch.zeros_like(wanted[k])
        state[k][:, : weights[k].shape[1]] = weights[k]
    unet.load_state_dict(state, strict=False)  # strictness is above: all keys are in common, or declared new
    return WeightReport(source, [k for k in common if k not in widened], widened, new)


def _widens(old: Tensor, new: Tensor) -> bool:
    return old.shape[0] == new.shape[0] and old.shape[1] < new.shape[1] and old.shape[2:] == new.shape[2:]


def check_same_family(config: UNetConfig, pretrained: UNetConfig, source: str) -> None:
    """Raises UserError when a pretrained UNet differs from the configured one in anything that inflation keeps."""
    grown = {"in_channels", "temporal", "temporal_kernel", "max_frames", "content_dim"}
    kept = replace(pretrained, **{name: getattr(config, name) for name in grown})
    differing = [
        f"{name} {getattr(kept, name)} (model: {getattr(config, name)})"
        for name in vars(config)
        if getattr(kept, name) != getattr(config, name)
    ]
    if differing:
        found = ", ".join(differing)
        raise UserError(f"the UNet in {source} is not of the chosen model: {found}; choose another model=")


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file; UserError when it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"no weights at {path}: the file is missing") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}); fetch or train it again") from error
