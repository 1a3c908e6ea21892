"""Devices, and the precision in which frozen networks run on them."""

import torch

from gen1_train.errors import UserError, check_choice

PRECISIONS = ("auto", "fp32", "fp16", "bf16")


def resolve_precision(device: torch.device, precision: str = "auto") -> str:
    """Returns `fp32`, `fp16` or `bf16`; `auto` is fp16 on a GPU (ours: it has 3 bits more than bf16), fp32 on a CPU.

    Raises UserError for an unknown precision, and for fp16 on a CPU.
    """
    check_choice("precision", precision, PRECISIONS)
    if precision == "fp16" and device.type == "cpu":
        raise UserError("precision=fp16 needs a GPU: use auto, fp32 or bf16 on a CPU")
    if precision == "auto":
        return "fp32" if device.type == "cpu" else "fp16"
    return precision


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
    """A context in which frozen networks compute in a precision; they return float32 in any case.

    It applies only to the thread that enters it, and overrides an enclosing autocast. Raises like `resolve_precision`.
    """
    resolved = resolve_precision(device, precision)
    if resolved == "fp32":
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, torch.float16 if resolved == "fp16" else torch.bfloat16)


def set_tf32(allowed: bool) -> None:
    """Sets whether float32 products and convolutions may use TF32, 10 bits of mantissa, on GPUs; for the process."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def pick_device(name: str) -> torch.device:
    """The device of a name; `auto` is a GPU if there is one. Raises UserError for a device that does not work here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device={name} cannot be used here: {str(error).splitlines()[0]}") from error


def worker_device(device: str, rank: int) -> str:
    """The device of one of several worker processes, which are distributed over the GPUs in turn."""
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{rank % torch.cuda.device_count()}"
    return device
