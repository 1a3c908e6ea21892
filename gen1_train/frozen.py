"""What the frozen networks (autoencoder, depth, CLIP) share: a device and its precision, loading with clear errors, a
fingerprint."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gen1_train.errors import UserError
from gen1_train.resources import locate, places

Network = TypeVar("Network", bound=nn.Module)

PRECISIONS = ("auto", "fp32", "fp16", "bf16")


def load_frozen(what: str, path: str, wanted: str, load: Callable[[str], Network]) -> Network:
    """Runs a library's loader on what lies at a path, from here or in a package (resources.locate).

    Whatever goes wrong becomes one line that names the network, the path, where else was looked, and the mend.
    """
    try:
        network = load(locate(path))
    except Exception as error:  # the libraries raise a dozen types for a wrong path or a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if locate(path) == path and (others := places(path)[1:]):
            reason = f"looked there and at {' and '.join(others)}; {reason}"
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


def check_fingerprint(what: str, found: str, recorded: Mapping[str, Any], made: str) -> None:
    """Raises UserError when a network found now, by its fingerprint, is not the recorded one that `made` something."""
    if found != recorded["fingerprint"]:
        raise UserError(
            f"the {what} at {recorded['config']} is not the one that made {made} (its fingerprint differs): restore "
            "it, or make the data again with gen1-data"
        )


def resolve_precision(device: torch.device, precision: str = "auto") -> str:
    """`fp32`, `fp16` or `bf16`; `auto` is fp16 on a GPU (ours: it has three bits more than bf16), fp32 on a CPU.

    Raises UserError for an unknown one, and for fp16 on a CPU.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision={precision} is not one of {', '.join(PRECISIONS)}")
    if precision == "fp16" and device.type == "cpu":
        raise UserError("precision=fp16 needs a GPU: use auto, fp32 or bf16 on a CPU")
    if precision == "auto":
        return "fp32" if device.type == "cpu" else "fp16"
    return precision


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
    """The precision in which frozen networks work inside a `with`; what they return is float32 all the same.

    It holds for the thread that enters it alone, and in place of any autocast around it. Raises as resolve_precision.
    """
    chosen = resolve_precision(device, precision)
    if chosen == "fp32":
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, torch.float16 if chosen == "fp16" else torch.bfloat16)


def finite(run: Callable[[], Tensor], device: torch.device) -> Tensor:
    """What `run` returns, as float32; run again in fp32 where fp16's range was too small for it."""
    made = run().float()
    in_fp16 = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.float16
    if in_fp16 and not made.isfinite().all():
        with torch.autocast(device.type, enabled=False):
            made = run().float()
    return made


def pick_device(name: str) -> torch.device:
    """`auto`: a GPU if there is one. Raises UserError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device={name} cannot be used here: {str(error).splitlines()[0]}") from error


def device_of(device: str, rank: int) -> str:
    """The device of one of several worker processes: they take the GPUs in turn."""
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{rank % torch.cuda.device_count()}"
    return device
