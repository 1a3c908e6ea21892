"""A release: half the size, the same edits, no paths of the machine; it is complete or does not exist."""

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

from gen1_train.diffusion.sampling import SamplingConfig
from gen1_train.editing.editor import Gen1Editor
from gen1_train.errors import UserError
from gen1_train.training.checkpoints.checkpoint import INFO, PRIOR, RECOMMENDED, UNET, Checkpoint, read_checkpoint
from gen1_train.video.encode import write_video
from miniature import release as releasing
from miniature.experiment import SAMPLING
from miniature.release import release
from miniature.world.render import render_clip
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
    """A release of the runs, in a package outside the repository."""
    package = runs.parent / "site" / "carrier"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    size = release(runs / "stage5", runs / "prior", package / "released")
    files = [path for path in package.rglob("*") if path.is_file()]
    assert size == sum(path.stat().st_size for path in files)
    assert {path.name for path in package.iterdir()} == {"__init__.py", "released"}
    return package / "released"


@pytest.mark.slow
def test_a_release_edits_like_the_original_up_to_half_precision(runs: Path, released: Path) -> None:
    original, copy = (Gen1Editor.from_pretrained(path, "cpu") for path in (runs / "stage5", released))
    assert {parameter.dtype for parameter in copy.unet.parameters()} == {torch.float32}
    assert original.prior is not None and copy.prior is not None and copy.prior.path == released / "prior"
    frames = render_clip(3, 3, 64, 112).frames
    sampling = SamplingConfig(steps=2)  # the release recommends others
    a, b = (editor(frames, prompt="a red ball", sampling=sampling).astype(float) for editor in (original, copy))
    assert a.std() > 5  # the edit is not uniform
    assert 10 * np.log10(255**2 / max(((a - b) ** 2).mean(), 1e-9)) > 35


def test_a_release_is_half_as_large_and_has_no_paths_of_the_machine(runs: Path, released: Path) -> None:
    for run, folder, weights in (("stage5", released, UNET), ("prior", released / "prior", PRIOR)):
        before = next((runs / run / "checkpoints").glob("step-*"))
        assert (folder / weights).stat().st_size < 0.55 * (before / weights).stat().st_size
        assert {tensor.dtype for tensor in load_file(folder / weights).values()} == {torch.float16}
        more = {RECOMMENDED} if weights == UNET else set()
        assert {path.name for path in folder.iterdir() if path.is_file()} == {weights, "config.yaml", INFO, *more}
        text = (folder / INFO).read_text() + (folder / "config.yaml").read_text()
        assert str(REPOSITORY) not in text and str(runs) not in text
        estimators = json.loads((folder / INFO).read_text())["estimators"]
        assert estimators["clip"]["config"]["model"] == "local-dir:miniature/weights/clip"


def test_a_release_recommends_the_dials_of_the_measured_edits_and_prompts_of_its_world(released: Path) -> None:
    text = (released / RECOMMENDED).read_text()
    assert text == (releasing.OUTPUT / RECOMMENDED).read_text()
    recommended = Gen1Editor.from_pretrained(released, "cpu").recommended
    dials = {"omega": 3.0, "steps": 12, "solver": "dpm++"}
    assert recommended.dials == dials and {"omega=3", "steps=12", "solver=dpm++"} <= set(SAMPLING)
    assert all(prompt.endswith(" ground") for prompt in recommended.prompts) and recommended.prompts


@pytest.mark.slow
def test_gen1_edit_loads_a_release_by_its_package_name_from_any_folder(released: Path, tmp_path: Path) -> None:
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


def test_a_second_release_replaces_the_first(runs: Path, tmp_path: Path) -> None:
    output = tmp_path / "released"
    output.mkdir()
    (output / "old.safetensors").touch()
    release(runs / "stage5", runs / "prior", output)
    assert {path.name for path in tmp_path.iterdir()} == {"released"}
    assert {path.name for path in output.iterdir()} == {UNET, "config.yaml", INFO, RECOMMENDED, "prior"}


def change_info(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """Changes the info of every checkpoint that is opened for a release."""
    find = releasing.find_checkpoint

    def changed(path: Path) -> Checkpoint:
        checkpoint = find(path)
        return Checkpoint(checkpoint.path, replace(checkpoint.info, **changes))

    monkeypatch.setattr(releasing, "find_checkpoint", changed)


def test_runs_that_cannot_be_released_are_refused_and_the_old_release_is_kept(
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
        change_info(patch, finished=False)
        assert "is at step 10 and not finished" in refused(model, prior)
    with monkeypatch.context() as patch:
        estimators = read_checkpoint(next((model / "checkpoints").glob("step-*"))).info.estimators
        elsewhere = {**estimators["autoencoder"], "config": {"path": "/models/vae", "chunk": 16}}
        change_info(patch, estimators={**estimators, "autoencoder": elsewhere})
        assert "names /models/vae, which is not in miniature/weights" in refused(model, prior)
    with monkeypatch.context() as patch:
        patch.setattr(releasing, "MEGABYTES", 0.1)
        assert "above 0.1: train a smaller model=" in refused(model, prior)


def test_the_command_prints_the_size_and_one_line_for_a_mistake(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "released"
    arguments = ["release", str(runs / "stage5"), str(runs / "prior"), f"--output={output}"]
    monkeypatch.setattr(sys, "argv", arguments)
    releasing.main()
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    assert capsys.readouterr().out.splitlines()[-1] == f"{output}: {size / 1e6:.1f} MB in total"
    for wrong, line in (
        (["release", "nowhere", "nowhere"], "no checkpoint at nowhere: "),
        (["release", str(runs / "stage5")], "the following arguments are required: PRIOR_FOLDER"),
    ):
        monkeypatch.setattr(sys, "argv", wrong)
        with pytest.raises(SystemExit) as ended:
            releasing.main()
        (error,) = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2 and error.startswith("python -m miniature.release: error: ") and line in error
