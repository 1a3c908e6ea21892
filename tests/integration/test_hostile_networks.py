"""Checkpoints, shard sets and priors that name networks with code: every command ends in one line, and nothing runs."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gen1_train.data.manifest import Manifest
from gen1_train.training.checkpoints.checkpoint import read_checkpoint
from gen1_train.training.checkpoints.info import write_info
from tests.evaluation.fake import write_pairs
from tests.frozen.hostile import change_json, hostile_clip
from tests.made import make_shard_set
from tests.made_checkpoint import miniature_estimators, write_checkpoint, write_prior
from tests.running import TRAIN, WEIGHTS, run
from tests.video.files import make_video

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints whose recorded CLIP has code, with honest copies of them, and with inputs."""
    folder = tmp_path_factory.mktemp("evil")
    hostile_clip(folder / "clip", folder / "marker")
    shutil.copytree(WEIGHTS / "autoencoder", folder / "autoencoder")
    change_json(folder / "autoencoder" / "config.json", auto_map={"AutoencoderKL": "evil.Evil"})
    for kind, write in (("stage5", write_checkpoint), ("prior", write_prior)):
        write(folder / "honest" / kind)
        shutil.copytree(folder / "honest" / kind, folder / "runs" / kind)
        [checkpoint] = (folder / "runs" / kind / "checkpoints").glob("step-*")
        write_again(checkpoint, {**read_checkpoint(checkpoint).info.estimators, "clip": evil_clip(folder)})
    make_video(folder / "in.mp4", frames=4)
    write_pairs(folder, 1, image="picture.png", frames=3)
    Image.fromarray(np.full((40, 40, 3), (200, 80, 30), np.uint8)).save(folder / "picture.png")
    (folder / "images").mkdir()
    shutil.copy(folder / "picture.png", folder / "images" / "a.png")
    return folder


def write_again(checkpoint: Path, estimators: dict[str, object]) -> None:
    """Changes what a checkpoint records of its networks."""
    write_info(checkpoint, replace(read_checkpoint(checkpoint).info, estimators=estimators))


def evil_clip(folder: Path) -> dict[str, object]:
    """The entry of the hostile CLIP, with the fingerprint of the honest one."""
    entry = miniature_estimators()["clip"]
    return {**entry, "config": {**entry["config"], "model": f"local-dir:{folder / 'clip'}"}}


@pytest.fixture(autouse=True)
def nothing_ran(evil: Path) -> Iterator[None]:
    yield
    assert not (evil / "marker").exists()


def check_one_line(result: subprocess.CompletedProcess[str], line: str) -> None:
    """One line on standard error, after progress bars, with the code of a user's mistake."""
    assert result.returncode == 2, result.stdout + result.stderr
    *bars, last = result.stderr.splitlines()
    assert line in last and all("%|" in bar or not bar for bar in bars), result.stderr


REFUSED = "'hf_tokenizer_name' in its text_cfg is not a setting that we allow"


def edit(evil: Path, output: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    words = [f"input={evil / 'in.mp4'}", f"output={output}", "prompt=x", "steps=1", "device=cpu"]
    return run("gen1_train.edit", *words, *settings)


def test_gen1_edit(evil: Path, tmp_path: Path) -> None:
    result = edit(evil, tmp_path / "out.mp4", f"checkpoint={evil / 'runs' / 'stage5'}")
    check_one_line(result, REFUSED)
    assert not (tmp_path / "out.mp4").exists()


def test_gen1_edit_by_a_name_of_the_hub(evil: Path, tmp_path: Path) -> None:
    run_folder = shutil.copytree(evil / "honest" / "stage5", tmp_path / "stage5")
    [checkpoint] = (run_folder / "checkpoints").glob("step-*")
    write_again(checkpoint, {**miniature_estimators(), "clip": hub_clip()})
    result = edit(evil, tmp_path / "out.mp4", f"checkpoint={run_folder}")
    check_one_line(result, "fetch it first with `hf download someone/x`")


def hub_clip() -> dict[str, object]:
    entry = miniature_estimators()["clip"]
    return {**entry, "config": {**entry["config"], "model": "hf-hub:someone/x"}}


def test_gen1_edit_with_a_prior(evil: Path, tmp_path: Path) -> None:
    """The CLIP that a prior names is compared, and never loaded."""
    settings = [f"checkpoint={evil / 'honest' / 'stage5'}", f"prior={evil / 'runs' / 'prior'}"]
    result = edit(evil, tmp_path / "out.mp4", *settings)
    assert result.returncode == 0, result.stderr


def test_gen1_eval(evil: Path, tmp_path: Path) -> None:
    result = run(
        "gen1_train.evaluate",
        f"checkpoint={evil / 'runs' / 'stage5'}",
        f"data={evil / 'pairs.csv'}",
        f"output={tmp_path / 'out'}",
        "device=cpu",
    )
    check_one_line(result, REFUSED)


def test_gen1_export(evil: Path, tmp_path: Path) -> None:
    """It copies what the checkpoint records, and loads no network of it."""
    result = run("gen1_train.export", f"checkpoint={evil / 'runs' / 'stage5'}", f"output={tmp_path / 'out'}")
    assert result.returncode == 0, result.stderr
    exported = min((tmp_path / "out").rglob("checkpoint.json"), key=lambda file: len(file.parts))
    result = edit(evil, tmp_path / "out.mp4", f"checkpoint={exported.parent}")
    check_one_line(result, REFUSED)


def test_a_customization(evil: Path, tmp_path: Path) -> None:
    settings = [f"images={evil / 'images'}", f"init.checkpoint={evil / 'runs' / 'stage5'}", f"output={tmp_path}"]
    result = run("gen1_train.train", *TRAIN, "model=tiny", "stage=customize", *settings)
    check_one_line(result, REFUSED)


@pytest.fixture
def shard_set(evil: Path, tmp_path: Path) -> Path:
    """A set whose manifest names the hostile CLIP and an autoencoder with code."""
    root = make_shard_set(tmp_path / "set", width=112, height=64)
    estimators = miniature_estimators()
    autoencoder = {**estimators["autoencoder"], "config": {"path": str(evil / "autoencoder")}}
    replaced = {**estimators, "autoencoder": autoencoder, "clip": evil_clip(evil)}
    recipe = {"autoencoder": autoencoder["config"]}
    replace(Manifest.load(root), estimators=replaced, recipe=recipe).save(root)
    return root


CODE = "its config has 'auto_map', and only plain weights are loaded"


def test_gen1_train_with_a_shard_set(evil: Path, shard_set: Path, tmp_path: Path) -> None:
    source = f"init.checkpoint={evil / 'honest' / 'stage5'}"
    settings = ["stage=5", "stage.predecessor=5", f"data.root={shard_set}", source, f"output={tmp_path / 'runs'}"]
    result = run("gen1_train.train", *TRAIN, "model=tiny", *settings)
    check_one_line(result, CODE)
    assert not (tmp_path / "runs" / "gen1" / "stage5" / "checkpoints").exists()


def test_gen1_data_refresh(shard_set: Path, tmp_path: Path) -> None:
    clip = f"recipe.clip.model=local-dir:{WEIGHTS / 'clip'}"
    settings = [f"source={shard_set}", f"output={tmp_path / 'out'}", "layer=clip", clip, "recipe.clip.pretrained=null"]
    result = run("data_tools.sets.refresh", *settings, "device=cpu")
    check_one_line(result, CODE)


@pytest.mark.parametrize("setting", ["init.from", "init.checkpoint", "validation.root", "data.root"])
def test_credentials_in_any_setting_are_masked(tmp_path: Path, setting: str) -> None:
    stage = "stage=1" if setting == "init.from" else "stage=5"
    secret = f"{setting}=https://user:hidden@host/x"
    result = run("gen1_train.train", *TRAIN, stage, secret, f"output={tmp_path}")
    assert result.returncode == 2 and "hidden" not in result.stdout + result.stderr
    assert not any("hidden" in file.read_text() for file in tmp_path.rglob("*") if file.is_file())
