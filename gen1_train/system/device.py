"""Devices, their peak rates and allocators, and the precision in which frozen networks run on them."""

import os
import re
import sys

import torch

from gen1_train.errors import UserError, check_choice

PRECISIONS = ("auto", "fp32", "fp16", "bf16")

# Peak rates of dense bfloat16 products with float32 sums, in TFLOP/s, by the full name that torch.cuda.get_device_name
# and nvidia-smi give a device (a pattern). From the vendors' data sheets; where a sheet gives the rate with 2:4
# sparsity only (H100, H200, B200), it is half of that. Variants that are not named (NVL, GH200, laptops, MIG slices)
# have other rates.
PEAKS = {
    "A100": (r"(NVIDIA )?A100-(SXM4|PCIE)-(40|80)GB|NVIDIA A100 80GB PCIe", 312.0),  # NVIDIA A100 data sheet, 2021
    "H100-SXM": (r"NVIDIA H100 80GB HBM3", 989.4),  # NVIDIA H100 data sheet: 1979 sparse
    "H100-PCIe": (r"NVIDIA H100 PCIe", 756.0),  # NVIDIA H100 data sheet: 1513 sparse
    "H200": (r"NVIDIA H200", 989.4),  # NVIDIA H200 data sheet: 1979 sparse
    "B200": (r"NVIDIA B200", 2250.0),  # NVIDIA Blackwell data sheet, HGX B200: 4500 sparse
    "MI300X": (r"AMD Instinct MI300X( OAM)?", 1307.4),  # AMD Instinct MI300X data sheet
    "L40S": (r"NVIDIA L40S", 362.05),  # NVIDIA L40S data sheet: 362.05 dense, 733 sparse
    "RTX-4090": (r"NVIDIA GeForce RTX 4090", 165.2),  # NVIDIA Ada whitepaper, appendix A: 330.3 sparse
}
# Elements of the largest map that a convolution on a GPU may read or write in one call (ours). torch gives cuDNN the
# whole batch and does not split it; whether cuDNN's kernels address more was not tested, and older versions failed
# (pytorch issue 17930). Other kernels split larger tensors or address them with 64 bits: torch's, cuBLAS's, our Triton
# kernels. Layer norm is wrong from 2^32 on (pytorch issue 181555), but its maps are smaller than those of convolutions.
MAX_MAP = 2**31 - 1
# torch 2.15 reads the first of these that is set, when CUDA is initialized (c10/cuda/CUDAAllocatorConfig.h)
ALLOCATOR_SETTINGS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def peak_rate(name: str) -> float | None:
    """Returns the dense bfloat16 FLOP/s in the data sheet of a device, by its full name or its key in PEAKS.

    None for any other device.
    """
    for key, (pattern, tflops) in PEAKS.items():
        if name == key or re.fullmatch(pattern, name):
            return tflops * 1e12
    return None


def use_expandable_segments() -> None:
    """Lets torch's allocator on NVIDIA GPUs grow its segments, which steps of changing sizes would fragment.

    It does nothing if the user has configured the allocator, and once CUDA is initialized, which reads the variable.
    """
    if sys.platform != "linux" or torch.version.hip is not None or torch.cuda.is_initialized():
        return
    if not any(name in os.environ for name in ALLOCATOR_SETTINGS):
        os.environ[ALLOCATOR_SETTINGS[0]] = "expandable_segments:True"


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


def set_determinism(deterministic: bool, cudnn_benchmark: bool) -> None:
    """Sets whether only deterministic algorithms are allowed, and whether cuDNN chooses by time; for the process.

    What cuDNN finds fastest differs from start to start, so deterministic algorithms exclude it.
    """
    torch.backends.cudnn.benchmark = cudnn_benchmark and not deterministic
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        # cuBLAS reads it when it is first used; without it torch refuses matrix products
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time


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
