"""The editor's estimators are those that the checkpoint names, and its settings have one set of defaults."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gen1_train.diffusion.guidance import GuidanceConfig
from gen1_train.diffusion.sampling import SamplingConfig
from gen1_train.diffusion.structure import PIXELS, RELATIVE, degrade
from gen1_train.editing.editor import Gen1Editor, with_dials
from gen1_train.editing.opening import load_estimators
from gen1_train.editing.precision import Formats
from gen1_train.errors import UserError
from gen1_train.frozen.autoencoder import Autoencoder, AutoencoderConfig
from gen1_train.frozen.clip import ClipConfig, ClipEncoder
from gen1_train.frozen.structure.depth import DepthConfig
from gen1_train.frozen.structure.edges import EdgesConfig
from gen1_train.frozen.structure.face import FaceConfig
from gen1_train.frozen.structure.kinds import build_structure
from gen1_train.frozen.structure.soft_edges import SoftEdgesConfig
from gen1_train.training.checkpoints.checkpoint import Checkpoint, CheckpointInfo
from tests.frozen.structure.faces import faces
from tests.running import WEIGHTS

CPU = torch.device("cpu")
KINDS = {
    "depth": DepthConfig(str(WEIGHTS / "depth"), size=64, multiple=16),
    "edges": EdgesConfig(low=10.0),
    "soft_edges": SoftEdgesConfig(contrast=30.0),
    "face": FaceConfig(line=0.03),
}


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    """The entries of a manifest for the autoencoder and CLIP."""
    autoencoder = AutoencoderConfig(str(WEIGHTS / "autoencoder"))
    clip = ClipConfig(f"local-dir:{WEIGHTS / 'clip'}", None)
    return {
        "autoencoder": {"config": asdict(autoencoder), "fingerprint": Autoencoder(autoencoder).fingerprint},
        "clip": {"config": asdict(clip), "fingerprint": ClipEncoder(clip).fingerprint},
    }


def checkpoint(networks: dict[str, Any], kind: str = "edges", **changes: Any) -> Checkpoint:
    fingerprint = build_structure(kind, KINDS[kind]).fingerprint
    structure = {"kind": kind, "config": asdict(KINDS[kind]), "fingerprint": fingerprint, **changes}
    return Checkpoint(Path("RUN"), CheckpointInfo("5", 10, True, estimators={**networks, "structure": structure}))


@pytest.mark.parametrize("kind", KINDS)
def test_the_structure_is_estimated_as_for_training(networks, kind):
    editor = Gen1Editor.__new__(Gen1Editor)
    editor.formats, editor.device, editor.degradation = Formats(), CPU, PIXELS
    editor.autoencoder, editor.structure_estimator, editor.clip = load_estimators(checkpoint(networks, kind), CPU)
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 112, 3), dtype=np.uint8)
    frames[:2] = faces(112, 64)[:2]
    trained = build_structure(kind, KINDS[kind])
    structure = editor.structure(frames)
    assert structure.empty_frames == (1 if kind == "face" else 0)  # noise has no face
    expected, _ = trained.normalise(trained(torch.from_numpy(frames)))
    assert torch.equal(torch.cat(list(structure.at(0))), expected)
    blurred = torch.cat(list(structure.at(5)))
    assert torch.equal(blurred, degrade(expected[None], [5])[0]) and not torch.equal(blurred, expected)
    editor.degradation = RELATIVE
    for area, side in ((None, 64), ((4, 14), 32)):
        blurred = torch.cat(list(editor.structure(frames, area=area).at(5)))
        assert torch.equal(blurred, degrade(expected[None], [5], RELATIVE, side)[0])


@pytest.mark.parametrize("missing", ["kind", "structure", "clip", "autoencoder", "everything"])
def test_a_checkpoint_that_does_not_name_its_estimators_is_refused(networks, missing):
    recorded = checkpoint(networks)
    estimators = recorded.info.estimators
    if missing == "kind":
        del estimators["structure"]["kind"]
    elif missing == "everything":
        estimators.clear()
    else:
        del estimators[missing]
    with pytest.raises(UserError, match=r"RUN does not name .* kind of structure"):
        load_estimators(recorded, CPU)


def test_an_unknown_kind_of_structure_is_refused(networks):
    recorded = checkpoint(networks)
    recorded.info.estimators["structure"]["kind"] = "pose"
    with pytest.raises(UserError, match="no structure 'pose'; choose from depth, edges, soft_edges, face"):
        load_estimators(recorded, CPU)


@pytest.mark.parametrize(
    ("name", "what"), [("autoencoder", "autoencoder"), ("structure", "depth estimator"), ("clip", "CLIP model")]
)
def test_a_changed_estimator_is_refused(networks, name, what):
    recorded = checkpoint(networks, "depth")
    estimators = recorded.info.estimators
    estimators[name] = {**estimators[name], "fingerprint": "another"}
    with pytest.raises(UserError) as error:
        load_estimators(recorded, CPU)
    assert str(error.value).startswith(f"the {what} at {estimators[name]['config']} is not the one that made the data")
    assert "the data of RUN (its fingerprint differs): restore it" in str(error.value)


def test_dials_change_single_settings_of_the_sampler() -> None:
    sampling = SamplingConfig(steps=7, guidance=GuidanceConfig(omega=3.0))
    changed = with_dials(sampling, {"omega_t": 1.2, "t_s": 2})
    assert changed == SamplingConfig(steps=7, t_s=2, guidance=GuidanceConfig(omega=3.0, omega_t=1.2))
    assert with_dials(sampling, {}) == sampling
    with pytest.raises(TypeError, match="omega_s"):
        with_dials(sampling, {"omega_s": 1.0})
