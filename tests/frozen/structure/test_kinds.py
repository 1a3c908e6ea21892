"""Tests of the structure estimators: the promises of every kind, and how a kind is chosen."""

import subprocess
import sys

import pytest
import torch

from gen1_train.errors import UserError
from gen1_train.frozen.structure.depth import DepthConfig
from gen1_train.frozen.structure.edges import EdgesConfig
from gen1_train.frozen.structure.face import FaceConfig
from gen1_train.frozen.structure.kinds import STRUCTURES, StructureEstimator, build_structure, structure_config
from gen1_train.frozen.structure.soft_edges import SoftEdgesConfig
from tests.frozen.structure.faces import faces
from tests.running import WEIGHTS

CONFIGS = {
    "depth": DepthConfig(str(WEIGHTS / "depth"), size=64, multiple=16),
    "edges": EdgesConfig(),
    "soft_edges": SoftEdgesConfig(),
    "face": FaceConfig(),
}


def test_every_kind_is_in_the_tests():
    assert CONFIGS.keys() == STRUCTURES.keys()


@pytest.fixture(scope="module", params=list(CONFIGS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def estimator(kind: str) -> StructureEstimator:
    return build_structure(kind, CONFIGS[kind])


@pytest.fixture(scope="module")
def frames(kind: str) -> torch.Tensor:
    """Two clips of two frames: bright squares of several sizes on a dark background, or a face."""
    if kind == "face":
        return torch.from_numpy(faces())
    frames = torch.full((4, 48, 80, 3), 30, dtype=torch.uint8)
    for i in range(4):
        frames[i, 8 : 20 + 5 * i, 10 : 30 + 10 * i] = 200
    return frames


def test_the_estimate_is_a_float32_map_per_frame(estimator, frames):
    raw = estimator(frames)
    assert raw.shape == frames.shape[:3] and raw.dtype == torch.float32 and raw.isfinite().all()
    assert raw.std() > 0
    torch.testing.assert_close(torch.cat([estimator(frames[:2]), estimator(frames[2:])]), raw, rtol=1e-4, atol=1e-4)


def test_a_clip_is_normalized_to_the_range_0_to_1(estimator, frames):
    raw = estimator(frames)[:2]
    normal, (low, high) = estimator.normalise(raw)
    assert normal.shape == raw.shape and 0 <= normal.min() < 1e-6 and 0.99 < normal.max() <= 1
    torch.testing.assert_close(normal * (high - low) + low, raw, rtol=1e-4, atol=1e-5)


def test_the_metadata_documents_the_values_in_one_line(estimator):
    assert "1 is" in estimator.normalisation and "\n" not in estimator.normalisation


def test_only_a_frame_that_lacks_the_subject_is_empty(kind, estimator, frames):
    """Frames whose map is all 0 are counted for kinds that have a subject."""
    assert estimator.subject == {"face": "face"}.get(kind)
    if estimator.subject is not None:
        blank = torch.full_like(frames[:1], 90)
        empty = ~estimator(torch.cat([frames, blank])).flatten(1).any(dim=1)
        assert empty.tolist() == [False] * len(frames) + [True]


def test_an_estimator_is_rebuilt_from_the_settings_of_a_manifest(kind, estimator, frames):
    config = structure_config(kind, estimator.record())
    assert config == CONFIGS[kind]
    rebuilt = build_structure(kind, config)
    assert rebuilt.fingerprint == estimator.fingerprint and len(rebuilt.fingerprint) == 64
    assert torch.equal(rebuilt(frames), estimator(frames))


def test_kinds_have_different_fingerprints():
    assert len({build_structure(kind, config).fingerprint for kind, config in CONFIGS.items()}) == len(CONFIGS)


def test_an_unknown_kind_is_refused_with_the_known_ones():
    for call in (lambda: structure_config("pose", {}), lambda: build_structure("pose", None)):
        with pytest.raises(UserError, match="no structure 'pose'; choose from depth, edges, soft_edges, face"):
            call()


def test_an_unknown_setting_of_a_kind_is_refused():
    with pytest.raises(UserError, match="structure=edges has no setting path; its settings are blur, low, high"):
        structure_config("edges", {"blur": 1.0, "path": "x"})


@pytest.mark.slow
def test_a_kind_does_not_import_the_libraries_of_the_others():
    """Edges do not need transformers or LiteRT, and reading a config needs none of the libraries."""
    code = (
        "import sys\nfrom gen1_train.frozen.structure.kinds import build_structure, structure_config\n"
        "heavy = ('transformers', 'cv2', 'open_clip', 'ai_edge_litert')\n"
        "assert not [name for name in heavy if name in sys.modules]\n"
        "import torch\n"
        "build_structure('edges', structure_config('edges', {}))(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))\n"
        "assert 'cv2' in sys.modules and not {'transformers', 'ai_edge_litert'} & sys.modules.keys()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
