"""Paths into installed packages: from any folder, after what lies there, and one line when nothing does."""

import shutil
from pathlib import Path

import pytest

from gen1_train.errors import UserError
from gen1_train.model.autoencoder import Autoencoder, AutoencoderConfig
from gen1_train.resources import locate, places, releases
from gen1_train.training.checkpoint import find_checkpoint
from tests.made_checkpoint import WEIGHTS, write_checkpoint


@pytest.fixture
def carrier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that carries a file; it must not be imported. The working directory is another one."""
    package = tmp_path / "site" / "carrier"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "weights" / "file.json").write_text("{}")
    (tmp_path / "site" / "mere_folder" / "weights").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    return package


def test_a_path_is_taken_from_here_and_else_from_the_package_that_it_names(carrier: Path) -> None:
    path = "carrier/weights/file.json"
    assert places(path) == [path, str(carrier / "weights" / "file.json")]
    assert locate(path) == str(carrier / "weights" / "file.json")
    assert locate("local-dir:carrier/weights") == f"local-dir:{carrier / 'weights'}"
    assert locate(f"./{path}") == str(carrier / "weights" / "file.json")
    here = Path(path)
    here.parent.mkdir(parents=True)
    here.write_text("{}")
    assert locate(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "carrier",  # a name alone: open_clip's tag openai is none of the package openai
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
def test_everything_else_stays_as_it_is(carrier: Path, path: str) -> None:
    assert locate(path) == path


def test_an_estimator_is_found_in_its_package_and_missed_with_both_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = Autoencoder(AutoencoderConfig("miniature/weights/autoencoder"))
    assert found.fingerprint == Autoencoder(AutoencoderConfig(str(WEIGHTS / "autoencoder"))).fingerprint
    with pytest.raises(UserError) as error:
        Autoencoder(AutoencoderConfig("miniature/weights/nowhere"))
    assert str(error.value).startswith("autoencoder 'miniature/weights/nowhere' cannot be loaded: give a folder")
    assert f"looked there and at {WEIGHTS / 'nowhere'}; " in str(error.value)
    assert "\n" not in str(error.value)


def test_a_package_s_name_is_the_checkpoint_that_it_carries(carrier: Path) -> None:
    with pytest.raises(UserError) as error:
        find_checkpoint(Path("carrier"))
    assert str(error.value) == f"no checkpoint at carrier, nor at {carrier / 'released'}: train one, or give its folder"
    shutil.copytree(write_checkpoint(carrier.parent / "runs" / "stage5"), carrier / "released")
    assert releases("carrier") == [carrier / "released"]
    for name in ("carrier", "carrier/released"):
        assert find_checkpoint(Path(name)).path == carrier / "released"
    Path("carrier").mkdir()  # such as a checkout that holds the package: no checkpoint, so no obstacle
    assert find_checkpoint(Path("carrier")).path == carrier / "released"
    own = write_checkpoint(Path("carrier"))
    assert find_checkpoint(Path("carrier")).path == own


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (
            "nobody",
            "no checkpoint at nobody: there is no such folder, and no installed package nobody that carries one",
        ),
        ("runs/nobody", "no checkpoint at runs/nobody: there is no such folder"),
        ("carrier/runs", "no checkpoint at carrier/runs, nor at {carrier}/runs: train one, or give its folder"),
    ],
)
def test_a_checkpoint_that_is_nowhere_ends_in_one_line(carrier: Path, path: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        find_checkpoint(Path(path))
    assert str(error.value) == line.format(carrier=carrier)
