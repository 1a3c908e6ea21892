"""Edits that follow the planes of a structure with chosen strengths."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gen1_train.diffusion.sampling import SamplingConfig
from gen1_train.edit import edit
from gen1_train.editing.config import EditConfig
from gen1_train.editing.editor import Gen1Editor
from gen1_train.editing.masks import mask_by_depth
from gen1_train.editing.run import structure_pictures
from gen1_train.editing.variants import variants
from gen1_train.errors import UserError
from gen1_train.evaluation.methods import SweepConfig, sampling_of, settings_of
from gen1_train.evaluation.run import measured
from gen1_train.frozen.structure.depth import DepthConfig
from gen1_train.frozen.structure.edges import EdgesConfig
from gen1_train.frozen.structure.kinds import build_structure
from gen1_train.video.encode import write_video
from miniature.world.render import render_clip
from tests.made_checkpoint import edit_info, write_checkpoint
from tests.running import WEIGHTS

CONFIGS: dict[str, Any] = {"depth": DepthConfig(str(WEIGHTS / "depth"), 64, 16), "edges": EdgesConfig()}
CLIP = render_clip(3, 3, 64, 112).frames
EXAMPLE = render_clip(5, 1, 64, 64).frames[0]
DIALS: dict[str, Any] = {"image": EXAMPLE, "steps": 1, "t_s": 2}


@pytest.fixture(scope="module")
def editor_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Gen1Editor]:
    folder = tmp_path_factory.mktemp("planes")

    def make(kind: str = "depth+edges", drop_planes: float | None = 0.2) -> Gen1Editor:
        run = folder / f"{kind}-{drop_planes}"
        if not run.exists():
            estimator = build_structure(kind, CONFIGS)
            recorded = {"kind": kind, "config": estimator.record(), "fingerprint": estimator.fingerprint}
            path = write_checkpoint(run, drop_planes=drop_planes)
            edit_info(path, lambda info: info["estimators"].update(structure=recorded))
        return Gen1Editor.from_pretrained(run, "cpu")

    return make


@pytest.fixture(scope="module")
def editor(editor_of: Callable[..., Gen1Editor]) -> Gen1Editor:
    return editor_of()


def test_strengths_of_1_are_the_default_to_the_bit(editor: Gen1Editor) -> None:
    edits = [editor(CLIP, **DIALS, structure=each) for each in (None, "depth+edges", "edges:1,depth:1.0")]
    edits.append(editor(CLIP, **DIALS, structure={"depth": 1, "edges": 1}))
    assert all(np.array_equal(each, edits[0]) for each in edits)
    others = [editor(CLIP, **DIALS, structure=each) for each in ("depth", "edges", "depth+edges:0.5")]
    assert len({each.tobytes() for each in (edits[0], *others)}) == 4


def test_a_plane_that_is_left_out_is_0_as_in_training(editor: Gen1Editor) -> None:
    with editor.structure(CLIP) as structure:
        whole = torch.cat(list(structure.at(0)))
        alone = torch.cat(list(structure.at(0, "depth:1,edges:0")))
        half = torch.cat(list(structure.at(0, "edges:0.5+depth")))
        scene = editor.scene(CLIP, structure, SamplingConfig(structure="depth"))
    assert whole.shape == (3, 2, 64, 112)
    assert torch.equal(alone[:, 0], whole[:, 0]) and not alone[:, 1].any()
    assert torch.equal(half[:, 1], whole[:, 1] / 2)
    assert scene.structure is not None
    assert torch.equal(scene.structure, editor.autoencoder.encode_structure(alone, several=True))


def test_each_plane_is_that_of_a_checkpoint_with_it_alone(editor_of: Callable[..., Gen1Editor]) -> None:
    with editor_of().structure(CLIP) as structure:
        planes = torch.cat(list(structure.at(3)))
        masks = list(mask_by_depth(structure, "foreground"))
    depth = build_structure("depth", CONFIGS["depth"])
    single = editor_of()
    single.structure_estimator = depth
    with single.structure(CLIP) as structure:
        assert torch.equal(torch.cat(list(structure.at(3))), planes[:, 0])
        assert np.array_equal(list(mask_by_depth(structure, "foreground")), masks)


def test_structure_output_has_the_planes_as_colors(editor: Gen1Editor) -> None:
    with editor.structure(CLIP) as structure:
        whole = torch.cat(list(structure.at(0)))
        pictures = np.stack(list(structure_pictures(structure, SamplingConfig())))
        depth = np.stack(list(structure_pictures(structure, SamplingConfig(structure="depth"))))
    assert pictures.dtype == np.uint8 and pictures.shape == (3, 64, 112, 3)
    assert np.array_equal(pictures[..., 0], (whole[:, 0].numpy() * 255).round()) and not pictures[..., 2].any()
    assert pictures[..., 1].any() and not depth[..., 1].any() and np.array_equal(depth[..., 0], pictures[..., 0])


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ("face", "structure=face: this checkpoint has learned no plane of 'face'; choose from depth, edges"),
        ("depth:2", "the strength of depth is from 0 to 1"),
        ("depth:0,edges:0", "leaves nothing of the structure"),
    ],
)
def test_what_the_checkpoint_does_not_have_is_refused(editor: Gen1Editor, structure: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        editor(CLIP, **DIALS, structure=structure)


def test_a_checkpoint_that_always_saw_all_planes_warns_once(editor_of, caplog: pytest.LogCaptureFixture) -> None:
    for drop_planes in (0.2, None):
        editor = editor_of(drop_planes=drop_planes)
        editor.check(SamplingConfig(structure="edges+depth"))
        assert not caplog.messages
        editor.check(SamplingConfig(structure="depth"))
        editor.check(SamplingConfig(structure="edges"))
        assert len(caplog.messages) == (drop_planes is None)
    assert "structure=depth: this checkpoint was trained with all of its depth and edges at all times" in caplog.text


def test_gen1_edit_sweeps_over_planes(tmp_path: Path, editor_of) -> None:
    editor_of()
    write_video(tmp_path / "clip.mp4", CLIP, 10)
    Image.fromarray(EXAMPLE).save(tmp_path / "example.png")
    config = EditConfig(
        input=str(tmp_path / "clip.mp4"),
        image=str(tmp_path / "example.png"),
        checkpoint="none",
        output=str(tmp_path / "out.mp4"),
        sweep="structure=depth|depth+edges:0.5",
    )
    found = variants(config)
    assert [each.sampling.structure for each in found] == ["depth", "depth+edges:0.5"]
    assert [each.label for each in found] == ["structure=depth", "structure=depth+edges:0.5"]
    with pytest.raises(UserError, match=r"has no values: .* sweep=structure=depth\|depth\+edges"):
        variants(EditConfig(sweep="structure", image="x"))
    config.sweep, config.structure = None, "depth:3"
    with pytest.raises(UserError, match="the strength of depth is from 0 to 1"):
        edit(config)


def test_an_evaluation_follows_its_planes_and_compares_depth(editor: Gen1Editor) -> None:
    sweep = SweepConfig(structure="edges")
    sweep.check()
    setting = settings_of(sweep)[1]
    assert sampling_of(setting, sweep, 0, 7).structure == "edges"
    sweep.check_structure("depth+edges")
    with pytest.raises(UserError, match="no plane of 'edges'; choose from depth"):
        sweep.check_structure("depth")
    estimator = editor.structure_estimator
    assert measured(estimator)(torch.from_numpy(CLIP)).shape == CLIP.shape[:3]
    assert torch.equal(measured(estimator)(torch.from_numpy(CLIP)), estimator(torch.from_numpy(CLIP))[:, 0])
    assert measured("another") == "another"
