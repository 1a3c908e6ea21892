"""What the frozen networks (autoencoder, depth, CLIP) share: a device, loading with clear errors, a fingerprint."""

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from gen1_train.errors import UserError

Network = TypeVar("Network", bound=nn.Module)


def load_frozen(what: str, path: str, wanted: str, load: Callable[[], Network]) -> Network:
    """Runs a library's loader; whatever goes wrong becomes one line that names the network, the path and the mend."""
    try:
        network = load()
    except Exception as error:  # the libraries raise a dozen types for a wrong path or a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{what} {path!r} cannot be loaded: give {wanted} ({reason})") from error
    return network.eval().requires_grad_(False)


def complete(loaded: tuple[Network, dict[str, Any]], unused: str = "") -> Network:
    """A network that a library loaded with `output_loading_info`, if all its weights were there.

    Both libraries only warn of missing weights and leave them random. `unused`: the prefix of those that may be
    missing since nothing calls them. Raises ValueError.
    """
    network, info = loaded
    missing = sorted(name for name in info["missing_keys"] if not unused or not name.startswith(unused))
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, {missing[0]} among them")
    return network


def fingerprint(network: nn.Module, *settings: object) -> str:
    """sha256 over weights (names, shapes, fp32 values) and settings: equal fingerprints give equal outputs."""
    digest = hashlib.sha256(repr(settings).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def pick_device(name: str) -> torch.device:
    """`auto`: a GPU if there is one. Raises UserError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device={name} cannot be used here: {str(error).splitlines()[0]}") from error
