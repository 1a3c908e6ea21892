"""Loading of weights from one UNet into the next, with every key accounted for."""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from gen1_train.errors import UserError
from gen1_train.model.unet import UNetConfig

Network = TypeVar("Network", bound=nn.Module)

# The fields in which a predecessor may differ: what a stage adds (the shapes check the rest), and how it is computed.
MAY_DIFFER = (
    "in_channels",
    "temporal",
    "temporal_kernel",
    "temporal_expansion",
    "temporal_head_width",
    "max_frames",
    "content_dim",
    "checkpointing",
    "kernels",
)
INPUT = "conv_in.weight"  # widened from stage 4 on, for the structure
POSITIONS = ".positions"  # the end of the name of the learned frame positions of a temporal transformer block
NEW = ("content_projection", "temporal", "input", "positions")  # what a UNet may add to its predecessor


@dataclass(frozen=True)
class Origin:
    """The source of a tensor."""

    name: str  # in the file
    file: str  # name of the file
    dtype: str  # in the file: float32, float16, …


@dataclass
class WeightReport:
    """The sources of a UNet's weights, by parameter name."""

    source: str
    copied: list[str]
    widened: list[str]  # copied into the first input channels; the new channels are zero
    new: list[str]  # as initialized
    origins: dict[str, Origin]  # of the copied and widened weights
    stretched: list[str] = field(default_factory=list)  # frame positions, see `stretch`
    unused: dict[str, int] = field(default_factory=dict)  # number of tensors not read, by the first part of the name
    assumed: tuple[str, ...] = ()  # config fields that the source does not specify: by Stable Diffusion's convention

    def summary(self) -> str:
        """One line for the user."""
        loaded = [self.origins[name] for name in (*self.copied, *self.widened, *self.stretched)]
        dtypes = " and ".join(sorted({origin.dtype for origin in loaded} - {"float32"}))
        groups = {name: count for name, count in self.unused.items() if count > 1}
        single = len(self.unused) - len(groups)
        unused = [f"{count} {name}" for name, count in groups.items()] + ([f"{single} others"] if single else [])
        return (
            f"weights from {self.source}: {len(self.copied)} copied{f' from {dtypes}' if dtypes else ''}, "
            f"{len(self.widened)} widened with zeros, {len(self.new)} new"
            + (f", {len(self.stretched)} stretched to more frames" if self.stretched else "")
            + (f"; not used: {', '.join(unused)}" if unused else "")
            + (f"; {' and '.join(self.assumed)}: not specified, Stable Diffusion's are assumed" if self.assumed else "")
        )

    def to_json(self) -> str:
        """Returns the whole report, for the run folder; `parameters` has one line per parameter of the UNet."""
        kinds = {"copied": self.copied, "widened": self.widened, "stretched": self.stretched, "new": self.new}
        rows = {
            name: {"how": kind, **(asdict(self.origins[name]) if name in self.origins else {})}
            for kind, names in kinds.items()
            for name in names
        }
        head = {
            "source": self.source,
            "summary": self.summary(),
            "files": Counter(origin.file for origin in self.origins.values()),
            "left_aside": self.unused,
            "untold": self.assumed,
        }
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
        return f'{json.dumps(head, indent=1)[:-2]},\n "parameters": {{\n{lines}\n }}\n}}\n'


def is_temporal(name: str) -> bool:
    """Whether a parameter belongs to a temporal layer, which are new in stage 3."""
    return ".temporal_" in name


def is_projection(name: str) -> bool:
    """Whether a parameter projects the content to the width of cross-attention; new in stage 2, if needed."""
    return name.startswith("content_projection.")


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def listed(names: list[str], most: int = 8) -> str:
    """Joins the names if they are few; otherwise the first ones and the counts in each part of the network."""
    if len(names) <= most:
        return ", ".join(names)
    parts = Counter(re.sub(r"^([^.]+(?:\.\d+)?).*", r"\1", name) for name in names)  # down_blocks.0, conv_in, …
    return f"{', '.join(names[:3])}, …: {', '.join(f'{count} in {part}' for part, count in parts.items())}"


def load_weights(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    source: str,
    may_be_new: Collection[str] = NEW,
    origins: dict[str, Origin] | None = None,
) -> WeightReport:
    """Loads the weights of a predecessor into a UNet, or with may_be_new=() those of the same network.

    Only the temporal layers and the content projection may be new, and only two kinds of weights may differ in shape.
    The input convolution may gain input channels, which start at zero, so that the output does not change. The
    positions of frames may become more, see `stretch`. `may_be_new` lists which of these (NEW) are allowed. `origins`
    is for the report; by default each weight has its own name in the file `source`. Raises UserError, without changing
    the network, if any other weight is missing, unexpected, of another shape or not finite.
    """
    expected = network.state_dict()
    kinds = {"temporal": is_temporal, "content_projection": is_projection}
    allowed = [kind for name, kind in kinds.items() if name in may_be_new]
    new = [k for k in expected if k not in weights and any(kind(k) for kind in allowed)]
    common = [k for k in expected if k in weights]
    widened = [k for k in common if "input" in may_be_new and k == INPUT and _widens(weights[k], expected[k])]
    grown = [k for k in common if k.endswith(POSITIONS) and _lengthens(weights[k], expected[k])]
    stretched = grown if "positions" in may_be_new else []
    check_keys(expected, weights, source, new, [*widened, *stretched])
    broken = [k for k in common if not weights[k].isfinite().all()]
    if broken:
        raise UserError(f"{len(broken)} weights in {source} are not finite ({listed(broken)}); fetch or train it again")
    copied = [k for k in common if k not in {*widened, *stretched}]
    state = {k: weights[k] for k in copied}
    for k in widened:
        state[k] = torch.zeros_like(expected[k])
        state[k][:, : weights[k].shape[1]] = weights[k]
    state |= {k: stretch(weights[k], len(expected[k])) for k in stretched}
    network.load_state_dict(state, strict=False)  # checked above: all keys are common or declared new
    if origins is None:
        origins = {k: Origin(k, Path(source).name, dtype_name(weights[k])) for k in common}
    return WeightReport(source, copied, widened, new, origins, stretched)


def build_for(build: Callable[[], Network], weights: Mapping[str, Tensor], source: str) -> Network:
    """Builds the network that a file describes, for weights of the same file; `load_weights` loads all of them.

    The weights have no values before that: at full size, random ones would take seconds to draw. The network has no
    buffers, which would have none either.

    Raises UserError if they do not fit each other, before the network takes memory: a few bytes of a config that comes
    from a stranger could describe one that fills the machine.
    """
    with torch.device("meta"):
        network = build()
    check_keys(network.state_dict(), weights, source)
    return network.to_empty(device="cpu")


def check_keys(
    expected: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    source: str,
    new: Sequence[str] = (),
    widened: Sequence[str] = (),
) -> None:
    """Raises UserError unless the weights have the expected names and shapes, except for those new or widened."""
    missing = [k for k in expected if k not in weights and k not in new]
    for group in (is_temporal, is_projection):
        if any(group(k) for k in weights if k in expected):
            missing += [k for k in new if group(k)]  # some of the group exist: the file is damaged, not a predecessor
    misshapen = {
        k: f"{k} is {tuple(weights[k].shape)}, expected {tuple(expected[k].shape)}"
        for k in expected
        if k in weights and weights[k].shape != expected[k].shape and k not in widened
    }
    kinds = {
        "missing": missing,
        "unexpected": [k for k in weights if k not in expected],
        "of another shape": list(misshapen.values()),
    }
    problems = [f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds.items() if names]
    if problems:
        raise UserError(
            f"the weights in {source} do not fit this model ({'; '.join(problems)}); check model= and the path"
        )


def stretch(positions: Tensor, frames: int) -> Tensor:
    """Interpolates the learned positions of frames (n, c) to (frames, c): the first and the last stay where they are.

    A longer clip then moves through the same positions more slowly. Equal numbers of frames give equal values. Ours.
    """
    columns = positions.double().T[None]
    return interpolate(columns, size=frames, mode="linear", align_corners=True)[0].T.to(positions.dtype)


def _lengthens(old: Tensor, new: Tensor) -> bool:
    return old.ndim == new.ndim == 2 and 0 < old.shape[0] < new.shape[0] and old.shape[1] == new.shape[1]


def _widens(old: Tensor, new: Tensor) -> bool:
    return old.shape[0] == new.shape[0] and old.shape[1] < new.shape[1] and old.shape[2:] == new.shape[2:]


def check_same_family(config: UNetConfig, pretrained: UNetConfig, source: str, assumed: tuple[str, ...] = ()) -> None:
    """Raises UserError if a pretrained UNet differs from the configured one in anything that inflation keeps.

    A difference only in `assumed` fields, which the source does not specify, is refused too: a wrong number of heads
    or groups loads without an error and generates noise.
    """
    changeable = [name for name in MAY_DIFFER if not (name == "temporal_head_width" and pretrained.temporal)]
    kept = replace(pretrained, **{name: getattr(config, name) for name in changeable})
    differing = [name for name in vars(config) if getattr(kept, name) != getattr(config, name)]
    if not differing:
        return
    values = ", ".join(f"{name} {getattr(kept, name)} (model: {getattr(config, name)})" for name in differing)
    if set(differing) <= set(assumed):
        settings = " ".join(f"model.{name}={getattr(kept, name)}".replace(", ", ",") for name in differing)
        raise UserError(
            f"{source} does not specify its {' and '.join(differing)}; in Stable Diffusion they are {values}: set "
            f"{settings}, or if they differ, give a folder in diffusers' layout, whose config.json specifies them"
        )
    raise UserError(f"the UNet in {source} does not match the chosen model: {values}; choose another model=")


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file. Raises UserError if it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"no weights at {path}: the file is missing") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}); fetch or train it again") from error
