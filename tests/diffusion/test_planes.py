"""The names of structures of several planes, and how strongly an edit follows each."""

import re

import pytest
import torch

from gen1_train.diffusion.planes import kinds_of, read_choice, strengths_of
from gen1_train.diffusion.structure import PIXELS, RELATIVE, degrade, scale_planes
from gen1_train.errors import UserError

KINDS = ("depth", "edges", "face")


def test_a_structure_names_its_planes_in_order() -> None:
    assert kinds_of("depth") == ("depth",) and kinds_of("edges+depth") == ("edges", "depth")


@pytest.mark.parametrize(
    ("choice", "strengths"),
    [
        (None, (1, 1, 1)),
        ("depth", (1, 0, 0)),
        ("face+depth", (1, 0, 1)),
        ("depth:1,face:0.5", (1, 0, 0.5)),
        ("depth + edges:.25", (1, 0.25, 0)),
        ({"edges": 1, "depth": 0}, (0, 1, 0)),
    ],
)
def test_kinds_that_are_not_named_are_left_out(choice, strengths) -> None:
    assert strengths_of(choice, KINDS) == strengths


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("pose", "structure=pose: this checkpoint has learned no plane of 'pose'; choose from depth, edges, face"),
        ("depth:1.5", "structure=depth:1.5: the strength of depth is from 0 to 1"),
        ({"depth": -1.0}, "structure=depth:-1: the strength of depth is from 0 to 1"),
        ("depth:nan", "structure=depth:nan: the strength of depth is from 0 to 1"),
        ("depth:0+face:0", "structure=depth:0+face:0 leaves nothing of the structure"),
        ({}, "structure= leaves nothing"),
        ("depth+depth:0.5", "names a kind twice"),
        ("depth:much", "structure=depth:much: give kinds with strengths from 0 to 1, such as depth+face:0.5"),
        ("depth+", "give kinds with strengths"),
        ("", "give kinds with strengths"),
    ],
)
def test_a_choice_that_cannot_be_is_refused_in_one_line(choice, message) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        strengths_of(choice, KINDS)


def test_what_is_wrong_for_any_checkpoint_is_found_without_one() -> None:
    assert read_choice("pose:0.5") == {"pose": 0.5}
    with pytest.raises(UserError, match="is from 0 to 1"):
        read_choice("pose:2")


def test_planes_are_scaled_toward_0() -> None:
    maps = torch.rand(2, 3, 4, 5)
    assert scale_planes(maps, (1.0, 1.0, 1.0)) is maps
    scaled = scale_planes(maps, (1.0, 0.0, 0.5))
    assert torch.equal(scaled[:, 0], maps[:, 0]) and not scaled[:, 1].any()
    assert torch.equal(scaled[:, 2], maps[:, 2] / 2)
    assert torch.equal(scale_planes(maps[:, 0], (0.5,)), maps[:, 0] / 2)


@pytest.mark.parametrize("degradation", [PIXELS, RELATIVE])
def test_planes_are_degraded_as_each_alone(degradation) -> None:
    maps = torch.rand(3, 2, 3, 48, 64)  # b n p h w
    levels = [0, 3, 7]
    together = degrade(maps, levels, degradation)
    alone = torch.stack([degrade(plane, levels, degradation) for plane in maps.unbind(2)], dim=2)
    assert torch.equal(together, alone)
    assert not degrade(torch.zeros(1, 2, 2, 48, 64), [5], degradation).any()  # an absent plane stays absent
