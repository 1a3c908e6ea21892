"""gen1-export takes the prior along, so that the exported folder edits by prompt like the run that it is from."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from gen1_train.editing.editor import Gen1Editor
from gen1_train.errors import UserError
from gen1_train.export import ExportConfig, export
from gen1_train.system.console import console
from gen1_train.training.checkpoints.checkpoint import INFO, RECOMMENDED
from miniature.world.render import render_clip
from tests.made_checkpoint import edit_info, write_checkpoint, write_prior


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run tree with a stage 5 and its prior."""
    tree = tmp_path_factory.mktemp("tree")
    write_checkpoint(tree / "stage5")
    write_prior(tree / "prior")
    return tree


def edit_by_prompt(checkpoint: Path) -> np.ndarray:
    editor = Gen1Editor.from_pretrained(checkpoint, "cpu")
    return editor(render_clip(3, 3, 64, 112).frames, prompt="a red ball", steps=2)


@pytest.mark.slow
def test_an_exported_folder_edits_by_prompt_like_its_run(tree: Path, tmp_path: Path) -> None:
    (tree / "stage5" / RECOMMENDED).write_text("omega: 3\n")
    export(ExportConfig(str(tree / "stage5"), str(tmp_path / "out")))
    assert Gen1Editor.from_pretrained(tmp_path / "out" / "gen1", "cpu").recommended.dials == {"omega": 3.0}
    assert sorted(path.name for path in (tmp_path / "out" / "gen1" / "prior").iterdir()) == [
        "checkpoint.json",
        "config.yaml",
        "prior.safetensors",
    ]
    shutil.move(tmp_path / "out" / "gen1", tmp_path / "elsewhere")  # what others download
    assert np.array_equal(edit_by_prompt(tmp_path / "elsewhere"), edit_by_prompt(tree / "stage5"))
    assert "`gen1/prior/`" in (tmp_path / "out" / "README.md").read_text()


def test_a_named_prior_is_exported(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree / "stage5", tmp_path / "stage5", symlinks=True)
    export(ExportConfig(str(tmp_path / "stage5"), str(tmp_path / "out"), prior=str(tree / "prior")))
    assert (tmp_path / "out" / "gen1" / "prior" / INFO).exists()


@pytest.mark.parametrize("without", ["none", "missing"])
def test_an_export_without_a_prior_is_reported(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], without: str
) -> None:
    run = tree / "stage5"
    if without == "missing":
        run = Path(shutil.copytree(run, tmp_path / "alone" / "stage5", symlinks=True))
    with console("gen1-export"):
        export(ExportConfig(str(run), str(tmp_path / "out"), prior="none" if without == "none" else None))
    assert "without a prior, the exported model edits by image= alone" in capsys.readouterr().out
    assert not (tmp_path / "out" / "gen1" / "prior").exists()
    assert "prior/" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("prior", "message"), [("nothing", "no checkpoint at nothing"), ("TREE/stage5", "is of stage 5: give a run of")]
)
def test_what_is_not_a_prior_is_refused(tree: Path, tmp_path: Path, prior: str, message: str) -> None:
    prior = prior.replace("TREE", str(tree))
    with pytest.raises(UserError, match=message):
        export(ExportConfig(str(tree / "stage5"), str(tmp_path / "out"), prior=prior))
    assert list(tmp_path.iterdir()) == []


def test_a_prior_of_another_clip_is_refused(tree: Path, tmp_path: Path) -> None:
    """Its embeddings would mean something else to the model; gen1-edit refuses it too."""
    shutil.copytree(tree, tmp_path / "tree", symlinks=True)
    [info] = (tmp_path / "tree" / "prior").rglob("step-*/" + INFO)
    edit_info(info.parent, lambda content: content["estimators"]["clip"].update(fingerprint="0" * 64))
    with pytest.raises(UserError, match=r"belongs to another CLIP .* prior=none"):
        export(ExportConfig(str(tmp_path / "tree" / "stage5"), str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
