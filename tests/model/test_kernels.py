"""Tests of the choice between torch and Triton. The comparison itself is tested in test_kernels_triton.py."""

from dataclasses import replace

import pytest
import torch

from gen1_train.errors import UserError
from gen1_train.model import kernels
from gen1_train.model.group_norm import GroupNorm
from gen1_train.model.kernels import Case, Comparison, Heads, Latents, NormMap, cases_of, choose
from gen1_train.model.pretrained import check_same_family
from gen1_train.model.temporal import TemporalAttention
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from tests.model.reference import SD1

CONFIG = UNetConfig(**SD1)
BATCHES = [Latents(2, 3, 8, 12), Latents(4, 1, 8, 8)]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
AGREES = Comparison(faster=True, times="Triton agrees, and takes 1.0 ms for 3 shapes, torch 2.0 ms")
SLOWER = replace(AGREES, faster=False, times="Triton agrees, and takes 2.0 ms for 3 shapes, torch 1.0 ms")
BROKEN = Comparison("Triton fails: group norm of 2x12x3x4")


def unet(wanted: str) -> SpatioTemporalUNet:
    return SpatioTemporalUNet(replace(CONFIG, kernels=wanted))


def taken(model: SpatioTemporalUNet) -> set[bool]:
    return {module.triton for module in model.modules() if isinstance(module, GroupNorm | TemporalAttention)}


def test_a_cpu_uses_torch_and_says_nothing() -> None:
    for wanted in ("auto", "torch"):
        model = unet(wanted)
        assert choose(model, BATCHES, CPU, torch.float32, compiled=False) is None and taken(model) == {False}
    with pytest.raises(UserError, match=r"model\.kernels=triton needs a GPU: use model\.kernels=auto"):
        choose(unet("triton"), BATCHES, CPU, torch.float32, compiled=False)


@pytest.mark.parametrize(
    ("wanted", "found", "compiled", "triton", "reason"),
    [
        ("auto", AGREES, False, True, "Triton: Triton agrees, and takes 1.0 ms for 3 shapes, torch 2.0 ms"),
        ("auto", SLOWER, False, False, "torch: Triton agrees, and takes 2.0 ms for 3 shapes, torch 1.0 ms"),
        ("auto", BROKEN, False, False, "torch: Triton fails: group norm of 2x12x3x4"),
        ("auto", None, True, False, "torch: the compiler fuses them"),
        ("torch", None, False, False, "torch: model.kernels=torch"),
        ("triton", SLOWER, True, True, "Triton: Triton agrees, and takes 2.0 ms for 3 shapes, torch 1.0 ms"),
    ],
)
def test_the_choice_follows_the_comparison_and_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, wanted: str, found: Comparison | None, compiled: bool, triton: bool, reason: str
) -> None:
    monkeypatch.setattr(kernels, "compare", lambda *_: found)
    model = unet(wanted)
    line = choose(model, BATCHES, GPU, torch.bfloat16, compiled)
    assert line == f"group norms and temporal attention by {reason}" and taken(model) == {triton}


def test_speed_does_not_matter_where_only_deterministic_algorithms_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a run could choose other kernels when it is resumed, and have other bits."""
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    for found, triton in ((SLOWER, True), (BROKEN, False)):
        monkeypatch.setattr(kernels, "compare", lambda *_, found=found: found)
        model = unet("auto")
        choose(model, BATCHES, GPU, torch.bfloat16, compiled=False)
        assert taken(model) == {triton}


def test_triton_by_order_is_refused_if_it_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "compare", lambda *_: BROKEN)
    model = unet("triton")
    with pytest.raises(UserError, match=r"=triton: Triton fails: group norm of 2x12x3x4; use model\.kernels=torch$"):
        choose(model, BATCHES, GPU, torch.bfloat16, compiled=False)
    assert taken(model) == {False}


@pytest.mark.parametrize(("given", "compared"), [(None, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_norms_are_compared_with_weights_as_a_forward_pass_has_them(
    monkeypatch: pytest.MonkeyPatch, given: torch.dtype | None, compared: torch.dtype
) -> None:
    seen: list[torch.dtype] = []
    monkeypatch.setattr(kernels, "compare", lambda cases, device, dtype, weights: seen.append(weights) or AGREES)
    choose(unet("auto"), BATCHES, GPU, torch.bfloat16, False, given)
    assert seen == [compared]


def test_without_triton_torch_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    assert (
        choose(unet("auto"), BATCHES, GPU, torch.float32, False)
        == "group norms and temporal attention by torch: triton is not installed"
    )


def test_the_cases_are_what_norms_and_attention_are_given() -> None:
    given: set[Case] = set()
    model = SpatioTemporalUNet(CONFIG)
    for module in model.modules():
        if isinstance(module, GroupNorm):
            module.register_forward_pre_hook(
                lambda norm, xs: given.add(NormMap(tuple(xs[0].shape), norm.num_groups, norm.eps, norm.silu))
            )
        if isinstance(module, TemporalAttention):
            module.register_forward_pre_hook(
                lambda attention, xs: given.add(
                    Heads((2, xs[0].shape[2] * attention.heads, 3, xs[0].shape[3] // attention.heads))
                )
            )
    for b in BATCHES:
        latents = torch.zeros(b.samples, b.frames, 4, b.height, b.width)
        model(latents, torch.zeros(b.samples), torch.zeros(b.samples, 1, 24), temporal=b.frames > 1)
    random = torch.get_rng_state()
    assert cases_of(CONFIG, BATCHES) == given and torch.equal(torch.get_rng_state(), random)


def test_a_predecessor_may_have_used_other_kernels() -> None:
    check_same_family(replace(CONFIG, kernels="torch"), replace(CONFIG, kernels="triton"), "the predecessor")


def test_unknown_kernels_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.kernels"):
        replace(CONFIG, kernels="cuda").check()
