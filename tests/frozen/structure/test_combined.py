"""Several kinds of structure at once: each plane is that of its estimator alone, to the bit."""

from typing import Any

import numpy as np
import pytest
import torch

from gen1_train.errors import UserError
from gen1_train.frozen.networks import recorded_structure
from gen1_train.frozen.structure.combined import CombinedEstimator, count_empty, parts_of, plane_of, widest
from gen1_train.frozen.structure.kinds import (
    StructureEstimator,
    build_structure,
    check_kind,
    kinds_in,
    structure_config,
    subject_of,
)
from tests.frozen.structure.faces import faces
from tests.frozen.structure.test_kinds import CONFIGS

STRUCTURES = ("depth+edges", "face+depth+soft_edges")


def build(kind: str) -> StructureEstimator:
    return build_structure(kind, {part: CONFIGS[part] for part in kind.split("+")})


@pytest.fixture(scope="module", params=STRUCTURES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def estimator(kind: str) -> StructureEstimator:
    return build(kind)


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    """Two frames with a face, and one without."""
    return torch.cat([torch.from_numpy(faces(112, 64)[:2]), torch.full((1, 64, 112, 3), 90, dtype=torch.uint8)])


def test_each_plane_is_that_of_its_estimator_alone(kind, estimator, frames):
    raw = estimator(frames)
    normal, spans = estimator.normalise(raw)
    assert raw.shape == normal.shape == (3, len(kind.split("+")), 64, 112) and raw.dtype == torch.float32
    given, _ = estimator.normalise(raw, [(-1.0, 2.0)] * raw.shape[1])
    for number, part in enumerate(kind.split("+")):
        alone = build_structure(part, CONFIGS[part])
        maps, span = alone.normalise(alone(frames))
        assert torch.equal(raw[:, number], alone(frames))
        assert torch.equal(normal[:, number], maps) and spans[number] == span
        assert torch.equal(given[:, number], alone.normalise(alone(frames), (-1.0, 2.0))[0])
        assert torch.equal(plane_of(estimator, normal, number), maps)
        assert type(parts_of(estimator)[number]) is type(alone)
    assert kinds_in(estimator) == tuple(kind.split("+"))


def test_it_is_rebuilt_from_a_manifest_in_its_order(kind, estimator, frames):
    entry: dict[str, Any] = {"kind": kind, "config": estimator.record(), "fingerprint": estimator.fingerprint}
    entry["config"] = dict(sorted(entry["config"].items()))  # as JSON with sorted keys gives it back
    for config in (structure_config(kind, entry["config"]), recorded_structure(kind, entry, "MANIFEST")):
        rebuilt = build_structure(kind, config)
        assert (rebuilt.fingerprint, rebuilt.architecture) == (estimator.fingerprint, estimator.architecture)
        assert torch.equal(rebuilt(frames), estimator(frames))


def test_fingerprints_tell_kinds_and_their_order_apart():
    kinds = ("depth", "edges", "depth+edges", "edges+depth", "edges+soft_edges")
    prints = {build_structure(each, structure_config(each, _settings(each))).fingerprint for each in kinds}
    assert len(prints) == len(kinds) and all(len(each) == 64 for each in prints)


def _settings(kind: str) -> dict[str, Any]:
    values = {part: vars(CONFIGS[part]) for part in kind.split("+")}
    return values if len(values) > 1 else values[kind]


def test_frames_without_the_subject_are_counted_by_its_plane(frames):
    estimator = build("edges+face")
    assert estimator.subject == "face" == subject_of("edges+face") and subject_of("depth+edges") is None
    assert count_empty(estimator, estimator(frames)) == 1
    alone = parts_of(estimator)[1]
    assert count_empty(alone, alone(frames)) == 1
    assert count_empty(build("depth+edges"), torch.zeros(3, 2, 4, 4)) is None


def test_the_range_of_a_video_covers_its_parts():
    assert widest([(0.0, 2.0), (-1.0, 1.0)]) == (-1.0, 2.0)
    assert widest([((0.0, 2.0), (0.0, 1.0)), ((-1.0, 1.0), (0.0, 3.0))]) == ((-1.0, 2.0), (0.0, 3.0))


def test_the_metadata_documents_each_plane(estimator, kind):
    assert all(f"{part}: " in estimator.normalisation for part in kind.split("+"))
    assert isinstance(estimator, CombinedEstimator) and "\n" not in estimator.normalisation


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("depth+pose", "structure=depth.pose: 'pose' is not one of depth, edges, soft_edges, face"),
        ("depth+depth", "names a kind twice"),
        ("depth+edges+soft_edges+face", "has 4 kinds, and a picture takes 3"),
        ("depth+", "'' is not one of"),
    ],
)
def test_kinds_that_cannot_be_combined_are_refused(kind, message):
    for call in (
        lambda: structure_config(kind, {}),
        lambda: build_structure(kind, {}),
        lambda: check_kind("structure", kind),
    ):
        with pytest.raises(UserError, match=message):
            call()


@pytest.mark.parametrize("config", [None, {}, {"depth": {"path": 3}, "edges": {}}, {"depth": {}, "edges": "x"}])
def test_a_damaged_record_is_refused(config):
    with pytest.raises(UserError, match=r"FILE records|FILE does not record"):
        recorded_structure("depth+edges", {"config": config, "fingerprint": "x"}, "FILE")


def test_numpy_maps_are_counted_like_tensors(frames):
    estimator = build("edges+face")
    maps = (estimator(frames).numpy() * 65535).astype(np.uint16)
    assert count_empty(estimator, torch.from_numpy(maps > 0)) == 1
