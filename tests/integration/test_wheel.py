"""The wheel carries the config values and works away from the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.running import REPOSITORY


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built and unpacked as pip installs it; its dependencies come from the tests' environment."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*build, str(REPOSITORY)], check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
def test_every_config_file_is_in_the_wheel(installed):
    wanted = {path.relative_to(REPOSITORY) for path in (REPOSITORY / "conf").rglob("*.yaml")}
    packed = {
        path.relative_to(installed / "gen1_train") for path in (installed / "gen1_train" / "conf").rglob("*.yaml")
    }
    assert packed == wanted
    assert not (installed / "tests").exists()
    assert (installed / "gen1_train" / "py.typed").exists()


@pytest.mark.slow
def test_the_miniature_s_networks_are_in_the_wheel(installed):
    """With the released checkpoint: `gen1-edit checkpoint=miniature` needs nothing but the package."""
    for folder in ("weights", "released"):
        wanted = [path for path in (REPOSITORY / "miniature" / folder).rglob("*") if path.is_file()]
        for path in wanted:
            assert (installed / path.relative_to(REPOSITORY)).read_bytes() == path.read_bytes(), path
    assert {path.name for path in (installed / "miniature" / "weights").iterdir()} >= {"autoencoder", "clip", "depth"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "arguments", "shows"),
    [
        ("gen1_train.train", ["stage=4", "model=tiny", "--cfg", "job"], "predecessor: '3'"),
        ("data_tools.main", ["source=a", "output=b", "recipe=tiny", "--cfg", "job"], "stride: 4"),
        ("gen1_train.edit", ["--cfg", "job"], "image_share: 0.5"),
        ("gen1_train.evaluate", ["--cfg", "job"], "methods:"),
        ("gen1_train.export", ["--cfg", "job"], "checkpoint: null"),
    ],
)
def test_the_commands_find_their_config_from_another_folder(installed, tmp_path, module, arguments, shows):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    # -P and a folder elsewhere: the checkout must not be what is imported
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import runpy, sys; sys.path.insert(0, {str(installed)!r}); "
         f"sys.argv = ['x', *{arguments!r}]; runpy.run_module({module!r}, run_name='__main__')"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert shows in done.stdout
