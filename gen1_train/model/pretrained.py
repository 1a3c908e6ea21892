"""How weights pass from one UNet to the next: every key accounted for."""

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gen1_train.errors import UserError
from gen1_train.model.unet import UNetConfig

# What a predecessor need not share: what a stage adds (shapes tell the rest), and how it is computed.
GROWN = (
    "in_channels",
    "temporal",
    "temporal_kernel",
    "temporal_expansion",
    "temporal_head_width",
    "max_frames",
    "content_dim",
    "checkpointing",
)
INPUT = "conv_in.weight"  # widened from stage 4 on: the structure enters here
NEW = ("content_projection", "temporal", "input")  # what a UNet may have beyond its predecessor


@dataclass(frozen=True)
class Origin:
    """Where a tensor was read."""

    name: str  # there
    file: str  # name of the file
    dtype: str  # there: float32, float16, …


@dataclass
class WeightReport:
    """Where the weights of a UNet came from, by parameter name."""

    source: str
    copied: list[str]
    widened: list[str]  # copied into the first input channels; the new channels are zero
    new: list[str]  # as initialised
    origins: dict[str, Origin]  # of what was copied or widened
    left_aside: dict[str, int] = field(default_factory=dict)  # tensors not read, by the first part of their names
    untold: tuple[str, ...] = ()  # what the source does not say of its config: by Stable Diffusion's convention

    def summary(self) -> str:
        """One line for the user."""
        taken = [self.origins[name] for name in (*self.copied, *self.widened)]
        dtypes = " and ".join(sorted({origin.dtype for origin in taken} - {"float32"}))
        groups = {name: count for name, count in self.left_aside.items() if count > 1}
        single = len(self.left_aside) - len(groups)
        aside = [f"{count} {name}" for name, count in groups.items()] + ([f"{single} others"] if single else [])
        return (
            f"weights from {self.source}: {len(self.copied)} copied{f' from {dtypes}' if dtypes else ''}, "
            f"{len(self.widened)} widened with zeros, {len(self.new)} new"
            + (f"; left aside: {', '.join(aside)}" if aside else "")
            + (f"; {' and '.join(self.untold)}, which it does not tell, are Stable Diffusion's" if self.untold else "")
        )

    def to_json(self) -> str:
        """All of it, for the run folder; `parameters` has a line for each parameter of the UNet."""
        kinds = {"copied": self.copied, "widened": self.widened, "new": self.new}
        rows = {
            name: {"how": kind, **(asdict(self.origins[name]) if name in self.origins else {})}
            for kind, names in kinds.items()
            for name in names
        }
        head = {
            "source": self.source,
            "summary": self.summary(),
            "files": Counter(origin.file for origin in self.origins.values()),
            "left_aside": self.left_aside,
            "untold": self.untold,
        }
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
        return f'{json.dumps(head, indent=1)[:-2]},\n "parameters": {{\n{lines}\n }}\n}}\n'


def is_temporal(name: str) -> bool:
    """True for the parameters of temporal layers: new in stage 3."""
    return ".temporal_" in name


def is_projection(name: str) -> bool:
    """True for the parameters that bring the content to the width of cross-attention: new in stage 2, if needed."""
    return name.startswith("content_projection.")


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def listed(names: list[str], most: int = 8) -> str:
    """All names if they are few; else the first, and how many there are in each part of the network."""
    if len(names) <= most:
        return ", ".join(names)
    parts = Counter(re.sub(r"^([^.]+(?:\.\d+)?).*", r"\1", name) for name in names)  # down_blocks.0, conv_in, …
    return f"{', '.join(names[:3])}, …: {', '.join(f'{count} in {part}' for part, count in parts.items())}"


def load_weights(
    network: nn.Module,
    weights: dict[str, Tensor],
    source: str,
    may_be_new: Collection[str] = NEW,
    origins: dict[str, Origin] | None = None,
) -> WeightReport:
    """Puts the weights of a predecessor into a UNet, or with may_be_new=() those of this very network.

    The only keys that may be new are the temporal layers and the content projection; the only shape that may differ
    is the input convolution's, which may gain input channels: they start at zero, so the output does not change.
    `may_be_new` says which of these (NEW) are allowed. `origins` is for the report: by default each weight lay under
    its own name in the file `source`. Raises UserError that names every other key that is missing, left over, of
    another shape or not finite; nothing is changed then.
    """
    wanted = network.state_dict()
    kinds = {"temporal": is_temporal, "content_projection": is_projection}
    allowed = [kind for name, kind in kinds.items() if name in may_be_new]
    new = [k for k in wanted if k not in weights and any(kind(k) for kind in allowed)]
    common = [k for k in wanted if k in weights]
    widened = [k for k in common if "input" in may_be_new and k == INPUT and _widens(weights[k], wanted[k])]
    check_keys(wanted, weights, source, new, widened)
    broken = [k for k in common if not weights[k].isfinite().all()]
    if broken:
        raise UserError(f"{len(broken)} weights in {source} are not finite ({listed(broken)}); fetch or train it again")
    state = {k: weights[k] for k in common if k not in widened}
    for k in widened:
        state[k] = torch.zeros_like(wanted[k])
        state[k][:, : weights[k].shape[1]] = weights[k]
    network.load_state_dict(state, strict=False)  # strictness is above: all keys are in common, or declared new
    if origins is None:
        origins = {k: Origin(k, Path(source).name, dtype_name(weights[k])) for k in common}
    return WeightReport(source, [k for k in common if k not in widened], widened, new, origins)


def check_keys(
    wanted: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    source: str,
    new: Sequence[str] = (),
    widened: Sequence[str] = (),
) -> None:
    """Raises UserError unless the weights are those wanted, by name and shape, but for what is new or widened."""
    missing = [k for k in wanted if k not in weights and k not in new]
    for group in (is_temporal, is_projection):
        if any(group(k) for k in weights if k in wanted):
            missing += [k for k in new if group(k)]  # some are there: not a predecessor without them, a damaged one
    misshapen = {
        k: f"{k} is {tuple(weights[k].shape)}, wanted {tuple(wanted[k].shape)}"
        for k in wanted
        if k in weights and weights[k].shape != wanted[k].shape and k not in widened
    }
    kinds = {
        "missing": missing,
        "left over": [k for k in weights if k not in wanted],
        "of another shape": list(misshapen.values()),
    }
    problems = [f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds.items() if names]
    if problems:
        found = "; ".join(problems)
        raise UserError(f"the weights in {source} are not those of this model ({found}); check model= and the path")


def _widens(old: Tensor, new: Tensor) -> bool:
    return old.shape[0] == new.shape[0] and old.shape[1] < new.shape[1] and old.shape[2:] == new.shape[2:]


def check_same_family(config: UNetConfig, pretrained: UNetConfig, source: str, untold: tuple[str, ...] = ()) -> None:
    """Raises UserError when a pretrained UNet differs from the configured one in anything that inflation keeps.

    A difference in `untold` fields alone, which the source does not tell, is refused too: a wrong number of heads or
    groups loads without a complaint and makes noise.
    """
    grown = [name for name in GROWN if not (name == "temporal_head_width" and pretrained.temporal)]
    kept = replace(pretrained, **{name: getattr(config, name) for name in grown})
    differing = [name for name in vars(config) if getattr(kept, name) != getattr(config, name)]
    if not differing:
        return
    found = ", ".join(f"{name} {getattr(kept, name)} (model: {getattr(config, name)})" for name in differing)
    if set(differing) <= set(untold):
        settings = " ".join(f"model.{name}={getattr(kept, name)}".replace(", ", ",") for name in differing)
        raise UserError(
            f"{source} does not tell its {' and '.join(differing)}; in Stable Diffusion they are {found}: set "
            f"{settings}, or if it has others, give it as a folder in diffusers' layout, whose config.json tells them"
        )
    raise UserError(f"the UNet in {source} is not of the chosen model: {found}; choose another model=")


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file; UserError when it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"no weights at {path}: the file is missing") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}); fetch or train it again") from error
