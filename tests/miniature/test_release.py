"""A release: half the bytes, the same edits, nothing of the machine; whole or not there."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gen1_train.editor import Gen1Editor
from gen1_train.errors import UserError
from gen1_train.training.checkpoint import INFO, PRIOR, UNET, Checkpoint, read_checkpoint
from gen1_train.video.encode import write_video
from miniature import release as releasing
from miniature.release import release
from miniature.render import render_clip
from tests.made_checkpoint import write_checkpoint, write_prior
from tests.running import ENVIRONMENT, REPOSITORY


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished stage 5 and its prior."""
    folder = tmp_path_factory.mktemp("runs")
    write_checkpoint(folder / "stage5")
    write_prior(folder / "prior")
    return folder


@pytest.fixture(scope="module")
def released(runs: Path) -> Path:
    """A package on a path of its own that carries a release of them."""
    package = runs.parent / "site" / "carrier"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    size = release(runs / "stage5", runs / "prior", package / "released")
    files = [path for path in package.rglob("*") if path.is_file()]
    assert size == sum(path.stat().st_size for path in files)
    assert {path.name for path in package.iterdir()} == {"__init__.py", "released"}
    return package / "released"


def test_it_edits_as_the_original_up_to_half_precision(runs: Path, released: Path) -> None:
    original, copy = (Gen1Editor.from_pretrained(path, "cpu") for path in (runs / "stage5", released))
    assert {parameter.dtype for parameter in copy.unet.parameters()} == {torch.float32}
    assert original.prior is not None and copy.prior is not None and copy.prior.path == released / "prior"
    frames = render_clip(3, 3, 64, 112).frames
    a, b = (editor(frames, prompt="a red ball", steps=2).astype(float) for editor in (original, copy))
    assert a.std() > 5  # not a plain picture
    assert 10 * np.log10(255**2 / max(((a - b) ** 2).mean(), 1e-9)) > 35


def test_it_is_half_as_large_and_tells_nothing_of_the_machine(runs: Path, released: Path) -> None:
    for run, folder, weights in (("stage5", released, UNET), ("prior", released / "prior", PRIOR)):
        before = next((runs / run / "checkpoints").glob("step-*"))
        assert (folder / weights).stat().st_size < 0.55 * (before / weights).stat().st_size
        assert {tensor.dtype for tensor in load_file(folder / weights).values()} == {torch.float16}
        assert {path.name for path in folder.iterdir() if path.is_file()} == {weights, "config.yaml", INFO}
        text = (folder / INFO).read_text() + (folder / "config.yaml").read_text()
        assert str(REPOSITORY) not in text and str(runs) not in text
        made_by = json.loads((folder / INFO).read_text())["estimators"]
        assert made_by["clip"]["config"]["model"] == "local-dir:miniature/weights/clip"


@pytest.mark.slow
def test_gen1_edit_takes_it_by_the_package_s_name_from_any_folder(released: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(released.parents[1]), ENVIRONMENT["PYTHONPATH"]])
    write_video(tmp_path / "in.mp4", render_clip(3, 2, 64, 112).frames, 24)
    settings = ["checkpoint=carrier", "input=in.mp4", "prompt=a red ball", "output=out.mp4", "steps=1", "device=cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "gen1_train.edit", *settings],
        cwd=tmp_path, env={**ENVIRONMENT, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 2


def test_a_second_release_takes_the_place_of_the_first(runs: Path, tmp_path: Path) -> None:
    output = tmp_path / "released"
    output.mkdir()
    (output / "old.safetensors").touch()
    release(runs / "stage5", runs / "prior", output)
    assert {path.name for path in tmp_path.iterdir()} == {"released"}
    assert {path.name for path in output.iterdir()} == {UNET, "config.yaml", INFO, "prior"}


def change(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """Whatever checkpoint is opened for a release says something else of itself."""
    find = releasing.find_checkpoint

    def changed(path: Path) -> Checkpoint:
        found = find(path)
        return Checkpoint(found.path, replace(found.info, **changes))

    monkeypatch.setattr(releasing, "find_checkpoint", changed)


def test_runs_that_cannot_be_released_are_refused_and_leave_what_was_there(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "released"
    output.mkdir()

    def refused(run: Path, prior: Path) -> str:
        with pytest.raises(UserError) as error:
            release(run, prior, output)
        assert list(tmp_path.iterdir()) == [output] and "\n" not in str(error.value)
        return str(error.value)

    model, prior = runs / "stage5", runs / "prior"
    assert "is of stage 5: give a run of stage=prior" in refused(model, model)
    assert "is of stage prior: give a run of stage=5" in refused(prior, prior)
    with monkeypatch.context() as patch:
        change(patch, finished=False)
        assert "is at step 10 and not finished" in refused(model, prior)
    with monkeypatch.context() as patch:
        estimators = read_checkpoint(next((model / "checkpoints").glob("step-*"))).info.estimators
        elsewhere = {**estimators["autoencoder"], "config": {"path": "/models/vae", "chunk": 16}}
        change(patch, estimators={**estimators, "autoencoder": elsewhere})
        assert "names /models/vae, which is not in miniature/weights" in refused(model, prior)
    with monkeypatch.context() as patch:
        patch.setattr(releasing, "MEGABYTES", 0.1)
        assert "above 0.1: train a smaller model=" in refused(model, prior)


def test_the_command_says_the_size_and_ends_a_mistake_in_one_line(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "released"
    arguments = ["release", str(runs / "stage5"), str(runs / "prior"), f"--output={output}"]
    monkeypatch.setattr(sys, "argv", arguments)
    releasing.main()
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    assert capsys.readouterr().out.splitlines()[-1] == f"{output}: {size / 1e6:.1f} MB in all"
    for wrong, line in (
        (["release", "nowhere", "nowhere"], "no checkpoint at nowhere: "),
        (["release", str(runs / "stage5")], "the following arguments are required: PRIOR_FOLDER"),
    ):
        monkeypatch.setattr(sys, "argv", wrong)
        with pytest.raises(SystemExit) as ended:
            releasing.main()
        (said,) = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2 and said.startswith("python -m miniature.release: error: ") and line in said
