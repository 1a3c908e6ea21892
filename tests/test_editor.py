"""The editor's estimators: those that the checkpoint names, and no others."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gen1_train.diffusion.structure import degrade
from gen1_train.editor import Gen1Editor, load_estimators
from gen1_train.errors import UserError
from gen1_train.estimators.clip import ClipConfig, ClipEncoder
from gen1_train.estimators.depth import DepthConfig
from gen1_train.estimators.edges import EdgesConfig
from gen1_train.estimators.structure import build_structure
from gen1_train.model.autoencoder import Autoencoder, AutoencoderConfig
from gen1_train.training.checkpoint import Checkpoint, CheckpointInfo

CPU = torch.device("cpu")
WEIGHTS = Path(__file__).parents[1] / "miniature" / "weights"
KINDS = {"depth": DepthConfig(str(WEIGHTS / "depth"), size=64, multiple=16), "edges": EdgesConfig(low=10.0)}


@pytest.fixture(scope="module")
def made_by() -> dict[str, Any]:
    """What a manifest says of the autoencoder and of CLIP."""
    autoencoder, clip = (
        AutoencoderConfig(str(WEIGHTS / "autoencoder")),
        ClipConfig(f"local-dir:{WEIGHTS / 'clip'}", None),
    )
    return {
        "autoencoder": {"config": asdict(autoencoder), "fingerprint": Autoencoder(autoencoder).fingerprint},
        "clip": {"config": asdict(clip), "fingerprint": ClipEncoder(clip).fingerprint},
    }


def checkpoint(made_by: dict[str, Any], kind: str = "edges", **changes: Any) -> Checkpoint:
    fingerprint = build_structure(kind, KINDS[kind]).fingerprint
    structure = {"kind": kind, "config": asdict(KINDS[kind]), "fingerprint": fingerprint, **changes}
    return Checkpoint(Path("RUN"), CheckpointInfo("5", 10, True, estimators={**made_by, "structure": structure}))


@pytest.mark.parametrize("kind", KINDS)
def test_the_structure_is_estimated_as_for_training(made_by, kind):
    autoencoder, estimator, clip = load_estimators(checkpoint(made_by, kind), CPU)
    editor = Gen1Editor.__new__(Gen1Editor)
    editor.autoencoder, editor.structure_estimator, editor.clip = autoencoder, estimator, clip
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 112, 3), dtype=np.uint8)
    trained = build_structure(kind, KINDS[kind])
    structure = editor.structure(frames)
    expected, _ = trained.normalise(trained(torch.from_numpy(frames)))
    assert torch.equal(torch.cat(list(structure.at(0))), expected)
    blurred = torch.cat(list(structure.at(5)))
    assert torch.equal(blurred, degrade(expected[None], torch.tensor([5]))[0]) and not torch.equal(blurred, expected)


@pytest.mark.parametrize("missing", ["kind", "structure", "clip", "autoencoder", "everything"])
def test_a_checkpoint_that_does_not_name_its_estimators_is_refused(made_by, missing):
    found = checkpoint(made_by)
    estimators = found.info.estimators
    if missing == "kind":
        del estimators["structure"]["kind"]
    elif missing == "everything":
        estimators.clear()
    else:
        del estimators[missing]
    with pytest.raises(UserError, match=r"RUN/checkpoint\.json does not name .* kind of structure"):
        load_estimators(found, CPU)


def test_an_unknown_kind_of_structure_is_refused(made_by):
    found = checkpoint(made_by)
    found.info.estimators["structure"]["kind"] = "pose"
    with pytest.raises(UserError, match="no structure 'pose'; choose from depth, edges"):
        load_estimators(found, CPU)


@pytest.mark.parametrize(
    ("name", "what"), [("autoencoder", "autoencoder"), ("structure", "depth estimator"), ("clip", "CLIP model")]
)
def test_an_estimator_that_was_changed_is_refused(made_by, name, what):
    found = checkpoint(made_by, "depth")
    estimators = found.info.estimators
    estimators[name] = {**estimators[name], "fingerprint": "another"}
    with pytest.raises(UserError) as error:
        load_estimators(found, CPU)
    assert str(error.value).startswith(f"the {what} at {estimators[name]['config']} is not the one that made the data")
    assert "the data of RUN (its fingerprint differs): restore it" in str(error.value)
