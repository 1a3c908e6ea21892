"""Tests of the Triton kernels: in Triton's interpreter against torch, and compiled for GPUs that are not here."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.model.interpreted import HEADS, MAPS

pytest.importorskip("triton")  # it comes with torch on Linux
# half-precision results are rounded once, where the interpreter truncates bfloat16, and attention's weights before
BOUNDS = {"float64": 1e-12, "float32": 2e-6, "bfloat16": 2**-7, "float16": 2**-9}


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    # -c and not -m, which the tests fork from a process that has imported triton already
    command = [sys.executable, "-c", "from tests.model.interpreted import main; main()"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shape", MAPS)
def test_group_norm_is_torchs(interpreted: dict[str, Any], shape: str, silu: bool, dtype: str) -> None:
    found = interpreted["errors"][f"{shape} {silu} {dtype}"]
    assert found.pop("channels last")
    assert all(error < BOUNDS[dtype] for error in found.values()), found


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("shape", HEADS)
def test_attention_is_torchs(interpreted: dict[str, Any], shape: str, dtype: str) -> None:
    found = interpreted["errors"][f"{shape} {dtype}"]
    assert found.pop("frames first")
    assert all(error < BOUNDS[dtype] for error in found.values()), found


@pytest.mark.slow
def test_wrong_and_failing_kernels_are_found_at_the_start(interpreted: dict[str, Any]) -> None:
    found = interpreted["comparisons"]
    assert found["right"] is None and found["right attention"] is None and found["problem"] is None
    assert found["wrong"].startswith("Triton's result differs from torch's by ")
    assert found["failing"] == "Triton fails: group norm of 2x12x3x4: RuntimeError: no ptxas was found"
    assert found["compared"].startswith("Triton agrees, and takes ")


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "capability"), [("bf16", 80), ("bf16", 90), ("fp32", 90)])
@pytest.mark.parametrize("kind", ["group norm", "attention of 8", "attention of 32"])
def test_the_kernels_compile_for_gpus(kind: str, dtype: str, capability: int) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gen1_train.model import triton_attention, triton_group_norm

    numbers = torch.bfloat16 if dtype == "bf16" else torch.float32
    if kind == "group norm":
        file, x = triton_group_norm, torch.empty(32, 320, 32, 56, dtype=numbers, device="meta")
        constants = triton_group_norm._constants(x, 32, silu=True)
    else:
        file, q = triton_attention, torch.empty(4, 8960, int(kind.split()[-1]), 64, dtype=numbers, device="meta")
        constants = triton_attention._constants(q)
    options = {name: constants.pop(name) for name in ("num_warps", "enable_fp_fusion") if name in constants}
    wide = dict.fromkeys(("means", "rstds", "to_weight", "to_bias"), "*fp32")
    whole = dict.fromkeys(("pixels", "groups", "heads", "frames"), "i32")
    plain = {**wide, **whole, "eps": "fp32", "scale": "fp32", **dict.fromkeys(constants, "constexpr")}
    for kernel in (file._forward_kernel, file._backward_kernel):
        signature = {name: plain.get(name, f"*{dtype}") for name in kernel.arg_names}
        source = ASTSource(kernel, signature, constants)
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["cubin"]
