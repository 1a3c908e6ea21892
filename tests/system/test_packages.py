"""Paths into installed packages: valid in every folder, overridden by local files, and a one-line error if absent."""

import shutil
from pathlib import Path

import pytest
import torch

from gen1_train.errors import UserError
from gen1_train.frozen.autoencoder import Autoencoder, AutoencoderConfig
from gen1_train.frozen.networks import Networks
from gen1_train.system.packages import candidates, locate, released_folders
from gen1_train.training.checkpoints.checkpoint import find_checkpoint
from tests.made_checkpoint import WEIGHTS, write_checkpoint


@pytest.fixture
def carrier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a data file, which must not be imported; the working directory is elsewhere."""
    package = tmp_path / "site" / "carrier"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "weights" / "file.json").write_text("{}")
    (tmp_path / "site" / "mere_folder" / "weights").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    return package


def test_a_path_is_looked_up_locally_and_then_in_the_package_that_it_names(carrier: Path) -> None:
    path = "carrier/weights/file.json"
    assert candidates(path) == [path, str(carrier / "weights" / "file.json")]
    assert locate(path) == str(carrier / "weights" / "file.json")
    assert locate("local-dir:carrier/weights") == f"local-dir:{carrier / 'weights'}"
    assert locate(f"./{path}") == str(carrier / "weights" / "file.json")
    local = Path(path)
    local.parent.mkdir(parents=True)
    local.write_text("{}")
    assert locate(path) == path


def test_a_recorded_path_means_the_package_whatever_the_working_directory_holds(carrier: Path) -> None:
    path = "carrier/weights/file.json"
    for name in (path, "carrier/absent.json", "own/file.json"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("{}")
    assert locate(path, recorded=True) == str(carrier / "weights" / "file.json")
    assert locate("local-dir:carrier/weights", recorded=True) == f"local-dir:{carrier / 'weights'}"
    for name in ("carrier/absent.json", "own/file.json", "carrier/nowhere.json"):
        assert locate(name, recorded=True) == name


def test_the_networks_of_a_packages_checkpoint_are_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working directory of the user may hold other networks under the same path."""
    for kind in ("autoencoder", "clip", "depth"):
        (tmp_path / "miniature" / "weights" / kind).mkdir(parents=True)
        (tmp_path / "miniature" / "weights" / kind / "config.json").write_text("not theirs")
    monkeypatch.chdir(tmp_path)
    checkpoint = find_checkpoint(Path("miniature"))
    networks = Networks.recorded(checkpoint.info.estimators, "miniature", torch.device("cpu"))
    assert networks.clip.fingerprint == checkpoint.info.estimators["clip"]["fingerprint"]


@pytest.mark.parametrize(
    "path",
    [
        "carrier",  # a single name: open_clip's tag openai is not the package openai
        "carrier/nothing",
        "mere_folder/weights",
        "stabilityai/sd-vae-ft-mse",
        "/carrier/weights/file.json",
        "../carrier/weights/file.json",
        "car.rier/weights",
        "__main__/weights",
        "",
    ],
)
def test_every_other_path_is_unchanged(carrier: Path, path: str) -> None:
    assert locate(path) == path


def test_an_estimator_is_loaded_from_its_package_and_its_error_names_both_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = Autoencoder(AutoencoderConfig("miniature/weights/autoencoder"))
    assert loaded.fingerprint == Autoencoder(AutoencoderConfig(str(WEIGHTS / "autoencoder"))).fingerprint
    with pytest.raises(UserError) as error:
        Autoencoder(AutoencoderConfig("miniature/weights/nowhere"))
    assert str(error.value).startswith("autoencoder 'miniature/weights/nowhere' cannot be loaded: give a folder")
    assert f"also tried {WEIGHTS / 'nowhere'}; " in str(error.value)
    assert "\n" not in str(error.value)


def test_the_name_of_a_package_stands_for_the_checkpoint_inside_it(carrier: Path) -> None:
    with pytest.raises(UserError) as error:
        find_checkpoint(Path("carrier"))
    assert str(error.value) == f"no checkpoint at carrier, nor at {carrier / 'released'}: train one, or give its folder"
    shutil.copytree(write_checkpoint(carrier.parent / "runs" / "stage5"), carrier / "released")
    assert released_folders("carrier") == [carrier / "released"]
    for name in ("carrier", "carrier/released"):
        assert find_checkpoint(Path(name)).path == carrier / "released"
    Path("carrier").mkdir()  # like a checkout that contains the package: a folder without a checkpoint is skipped
    assert find_checkpoint(Path("carrier")).path == carrier / "released"
    own = write_checkpoint(Path("carrier"))
    assert find_checkpoint(Path("carrier")).path == own


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (
            "nobody",
            "no checkpoint at nobody: there is no such folder, and no installed package nobody with a checkpoint",
        ),
        ("runs/nobody", "no checkpoint at runs/nobody: there is no such folder"),
        ("carrier/runs", "no checkpoint at carrier/runs, nor at {carrier}/runs: train one, or give its folder"),
    ],
)
def test_a_missing_checkpoint_is_reported_in_one_line(carrier: Path, path: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        find_checkpoint(Path(path))
    assert str(error.value) == line.format(carrier=carrier)
