"""The frozen networks in half precision, and in several threads at once."""

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gen1_train.errors import UserError
from gen1_train.frozen.autoencoder import Autoencoder, AutoencoderConfig, to_signed
from gen1_train.frozen.clip import ClipConfig, ClipEncoder
from gen1_train.frozen.loading import finite
from gen1_train.frozen.structure.depth import DepthConfig, DepthEstimator
from gen1_train.system import device
from gen1_train.system.device import (
    ALLOCATOR_SETTINGS,
    PEAKS,
    autocast,
    peak_rate,
    resolve_precision,
    set_tf32,
    use_expandable_segments,
)
from tests.running import WEIGHTS

CPU, GPU = torch.device("cpu"), torch.device("cuda")
NAMES = ["depth", "clip image", "clip text", "moments", "structure latent"]


@pytest.fixture(scope="module")
def calls() -> dict[str, Callable[[], Tensor]]:
    """Calls of each network on four smooth frames of 112x64."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (4, 4, 7, 3), dtype=np.uint8)
    frames = np.stack(
        [np.asarray(Image.fromarray(frame).resize((112, 64), Image.Resampling.BICUBIC)) for frame in coarse]
    )
    depth = DepthEstimator(DepthConfig(str(WEIGHTS / "depth"), size=64, multiple=16))
    clip = ClipEncoder(ClipConfig(f"local-dir:{WEIGHTS / 'clip'}", None))
    autoencoder = Autoencoder(AutoencoderConfig(str(WEIGHTS / "autoencoder")))
    ramp = torch.linspace(0, 1, 2 * 64 * 112).view(2, 64, 112)
    return {
        "depth": lambda: depth(torch.from_numpy(frames)),
        "clip image": lambda: clip.images(frames),
        "clip text": lambda: clip.texts(["a red ball", "a blue cube"]),
        "moments": lambda: autoencoder.encode_moments(to_signed(torch.from_numpy(frames))),
        "structure latent": lambda: autoencoder.encode_structure(ramp),
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_half_precision_is_close_to_full(calls, name, dtype, bound):
    """Within 2 % of the maximum in bf16 (0.5 % to 0.9 % measured), 0.2 % in fp16 (0.05 % to 0.11 % measured)."""
    full = calls[name]()
    with torch.autocast("cpu", dtype):
        half = calls[name]()
    assert half.dtype == full.dtype == torch.float32 and half.device.type == "cpu"
    assert 0 < (half - full).abs().max() < bound * full.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_full_precision_overrides_an_enclosing_autocast(calls, name):
    """Training calls the autoencoder inside Lightning's bf16 autocast."""
    with torch.autocast("cpu", torch.bfloat16), autocast(CPU):
        inside = calls[name]()
    assert torch.equal(inside, calls[name]())


def test_the_default_precision_depends_on_the_device():
    assert [resolve_precision(CPU), resolve_precision(GPU)] == ["fp32", "fp16"]
    assert [resolve_precision(GPU, name) for name in ("fp32", "fp16", "bf16")] == ["fp32", "fp16", "bf16"]
    with pytest.raises(UserError, match="precision=half is not one of auto, fp32, fp16, bf16"):
        resolve_precision(CPU, "half")
    with pytest.raises(UserError, match="precision=fp16 needs a GPU"):
        autocast(CPU, "fp16")
    with autocast(CPU, "bf16"):
        assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.bfloat16
    assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.float32


@pytest.fixture
def switches():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("switches")
def test_tf32_is_allowed_or_not_and_a_cpu_s_numbers_stay():
    values = torch.rand(8, 8)
    expected = values @ values
    for allowed in (True, False):
        set_tf32(allowed)
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (allowed, allowed)
        assert torch.equal(values @ values, expected)


@pytest.mark.parametrize("name", ["encode_moments", "encode_structure"])
def test_values_that_overflow_in_fp16_are_encoded_again_in_fp32(name):
    """Some autoencoders overflow in fp16, which would put NaN into shards; group norm keeps the final values small."""
    autoencoder = Autoencoder(AutoencoderConfig(str(WEIGHTS / "autoencoder")))
    with torch.no_grad():
        autoencoder.kl.encoder.conv_in.weight *= 1e6
    pixels = (
        torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32) if name == "encode_moments" else torch.rand(1, 32, 32)
    )
    encode = getattr(autoencoder, name)
    full = encode(pixels)
    with torch.autocast("cpu", torch.float16):
        assert not autoencoder.kl.encode(torch.ones(1, 3, 32, 32)).latent_dist.mean.isfinite().all()
        assert torch.equal(encode(pixels), full) and full.isfinite().all()
        assert torch.is_autocast_enabled("cpu")


def test_values_that_are_not_finite_in_fp32_are_returned():
    calls = []
    with torch.autocast("cpu", torch.float16):
        output = finite(lambda: calls.append(1) or torch.tensor([float("nan")]), CPU)
    assert output.isnan().all() and len(calls) == 2
    calls.clear()
    assert finite(lambda: calls.append(1) or torch.tensor([float("nan")]), CPU).isnan().all() and len(calls) == 1


def test_the_networks_run_concurrently(calls):
    """One thread per network, each with its own autocast: no thread affects the precision or values of another."""
    alone = {name: call() for name, call in calls.items()}
    concurrent: dict[str, list[Tensor]] = {name: [] for name in calls}
    start = threading.Barrier(3)

    def work(*names: str) -> None:
        with autocast(CPU, "bf16" if "depth" in names else "fp32"):
            start.wait(timeout=60)
            for _ in range(5):
                for name in names:
                    concurrent[name].append(calls[name]())

    groups = (("depth",), ("clip image", "clip text"), ("moments", "structure latent"))
    threads = [threading.Thread(target=work, args=names) for names in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(outputs) == 5 for outputs in concurrent.values())
    for name, outputs in concurrent.items():
        if name != "depth":
            assert all(torch.equal(output, alone[name]) for output in outputs), name
    assert all(torch.equal(output, concurrent["depth"][0]) for output in concurrent["depth"])
    assert not torch.equal(concurrent["depth"][0], alone["depth"])


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("A100-PCIE-40GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA B200", 2250.0),
        ("AMD Instinct MI300X OAM", 1307.4),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA L40", None),
    ],
)
def test_peak_rates_are_known_by_the_whole_name_only(name, tflops):
    assert peak_rate(name) == (None if tflops is None else tflops * 1e12)


def test_peak_rates_are_known_by_their_short_names():
    assert [peak_rate(key) for key in PEAKS] == [tflops * 1e12 for _, tflops in PEAKS.values()]


def test_segments_expand_unless_the_user_configures_the_allocator(monkeypatch):
    for name in ALLOCATOR_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(device.torch.version, "hip", None)
    monkeypatch.setattr(device.sys, "platform", "linux")
    use_expandable_segments()
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    for name in ALLOCATOR_SETTINGS:
        monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
        monkeypatch.setenv(name, "backend:native")
        use_expandable_segments()
        assert [os.environ.get(each) for each in ALLOCATOR_SETTINGS if each != name] == [None, None]
        assert os.environ[name] == "backend:native"
        monkeypatch.delenv(name)
    monkeypatch.setattr(device.torch.cuda, "is_initialized", lambda: True)  # too late
    use_expandable_segments()
    assert "PYTORCH_CUDA_ALLOC_CONF" not in os.environ


def test_torch_reads_the_variables_of_its_allocator_by_these_names():
    header = Path(torch.__file__).parent / "include" / "c10" / "cuda" / "CUDAAllocatorConfig.h"
    text = header.read_text()
    assert re.findall(r'get_env\("(\w+)"\)', text) == list(ALLOCATOR_SETTINGS)
