"""Functions that the frozen networks (autoencoder, depth, CLIP) share: loading, fingerprints, and finite outputs."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gen1_train.errors import UserError
from gen1_train.system.packages import SCHEME, candidates

Network = TypeVar("Network", bound=nn.Module)


def load_frozen(name: str, path: str, remedy: str, load: Callable[[], Network]) -> Network:
    """Runs a loader of the network at a path, which may be in an installed package, see `system.packages.locate`.

    Every failure becomes a UserError of one line that names the network, the path, other paths tried, and the remedy.
    """
    try:
        network = load()
    except Exception as error:  # the libraries raise many types for a wrong path or a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        others = candidates(path)[1:]
        if others and not any(Path(each.removeprefix(SCHEME)).exists() for each in (path, *others)):
            reason = f"also tried {' and '.join(others)}; {reason}"
        raise UserError(f"{name} {path!r} cannot be loaded: give {remedy} ({reason})") from error
    return network.eval().requires_grad_(False)


def require_complete(loaded: tuple[Network, dict[str, Any]], unused: str | tuple[str, ...] = ()) -> Network:
    """Returns a network that a library loaded with `output_loading_info`. Raises ValueError if weights are missing.

    diffusers and transformers only warn of missing weights and leave them random. `unused`: prefixes of weights that
    may be missing because they are never used.
    """
    network, info = loaded
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(unused))
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, e.g. {missing[0]}")
    return network


def fingerprint(network: nn.Module, *settings: object) -> str:
    """Hashes weights (names, shapes, values as float32) and settings by sha256.

    Networks of one `architecture` with equal fingerprints have equal outputs.
    """
    digest = hashlib.sha256(repr(settings).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def architecture(**settings: Any) -> str:
    """Hashes the settings of a network that its weights and their shapes do not show, such as the number of heads.

    It is recorded next to the fingerprint; older manifests and checkpoints have none.
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def check_fingerprint(
    name: str, actual: str, recorded: Mapping[str, Any], product: str, architecture: str | None = None
) -> None:
    """Raises UserError if a network differs from the recorded one behind `product`: in its fingerprint, or in its
    `architecture`, if that is given and was recorded.
    """
    changed = architecture is not None and recorded.get("architecture") not in (None, architecture)
    if changed or actual != recorded["fingerprint"]:
        raise UserError(
            f"the {name} at {recorded['config']} is not the one that made {product} (its fingerprint differs): restore "
            "it, or create the data again with gen1-data"
        )


def finite(run: Callable[[], Tensor], device: torch.device) -> Tensor:
    """Returns the result of `run` as float32; runs it again in fp32 if it is not finite under autocast to fp16."""
    output = run().float()
    in_fp16 = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.float16
    if in_fp16 and not output.isfinite().all():
        with torch.autocast(device.type, enabled=False):
            output = run().float()
    return output
