"""Which number format an edit computes in, by setting and device."""

from contextlib import nullcontext

import pytest
import torch

from gen1_train.editing.config import PRECISIONS, EditConfig
from gen1_train.editing.precision import Formats, best_precision, formats_on
from gen1_train.errors import UserError
from gen1_train.evaluate import EvaluateConfig
from gen1_train.system.device import resolve_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    return monkeypatch


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((7, 0), "fp16"), ((6, 1), "fp32")],
)
def test_auto_is_bf16_or_fp16_on_gpus_that_gain_from_it(
    gpu: pytest.MonkeyPatch, capability: tuple[int, int], precision: str
) -> None:
    asked = []

    def supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return including_emulation or capability >= (8, 0)

    gpu.setattr(torch.cuda, "is_bf16_supported", supported)
    gpu.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert best_precision(GPU) == precision == formats_on(GPU).precision
    assert set(asked) == {False}  # emulated bf16 would be slower than fp32


@pytest.mark.parametrize("name", ["cpu", "mps", "meta"])
def test_auto_is_fp32_anywhere_else(name: str) -> None:
    assert formats_on(torch.device(name)) == Formats("fp32")


def test_a_given_precision_is_kept() -> None:
    assert [formats_on(GPU, name).unet for name in PRECISIONS[1:]] == [torch.float32, torch.bfloat16, torch.float16]
    assert formats_on(CPU, "bf16") == Formats("bf16")
    with pytest.raises(UserError, match="precision=fp16 needs a GPU: use auto, fp32 or bf16 on a CPU"):
        formats_on(CPU, "fp16")


def test_an_unknown_precision_is_refused_in_one_line_by_every_command() -> None:
    line = "^precision=half is not one of auto, fp32, bf16, fp16$"
    with pytest.raises(UserError, match=line):
        formats_on(CPU, "half")
    with pytest.raises(UserError, match=line):
        EditConfig(checkpoint="a", input="b", output="c.mp4", precision="half").check()
    with pytest.raises(UserError, match=line):
        EvaluateConfig(checkpoint="a", data="b", output="c", precision="half").check()


def test_estimators_compute_as_in_gen1_data_unless_fp32_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for precision in ("fp32", "bf16"):  # fp32 on a CPU in any case
        with torch.autocast("cpu", torch.bfloat16), Formats(precision).estimators(CPU):
            assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.float32
    monkeypatch.setattr("gen1_train.editing.precision.autocast", resolve_precision)
    assert [Formats(precision).estimators(GPU) for precision in PRECISIONS[1:]] == ["fp32", "fp16", "fp16"]


def test_the_results_of_tf32_are_told_from_those_of_fp32() -> None:
    assert Formats("fp32").results(GPU, tf32=True) == "tf32"
    assert Formats("fp32").results(GPU, tf32=False) == Formats("fp32").results(CPU, tf32=True) == "fp32"
    assert Formats("bf16").results(GPU, tf32=True) == "bf16"
