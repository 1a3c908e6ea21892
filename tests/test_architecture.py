"""The layout of the project: the floors of the rooms, their imports, and that tests/ mirrors them."""

import subprocess
import sys
from pathlib import Path

import pytest

import gen1_train
from tests.architecture import MODULES, OURS, ROOMS, forbidden, import_cycles, imports, room_of, with_table
from tests.running import REPOSITORY

MAX_FILES = 16  # Python files in a folder, including __init__.py
NOT_MIRRORED = {
    "integration",  # whole runs across several rooms
    "slurm",  # mirrors slurm/
    "cluster",  # whole runs on several hosts
    "fuzzing",  # files for the readers of all rooms
}


def test_every_module_belongs_to_a_room() -> None:
    """A file in a new folder needs an entry in architecture.toml."""
    assert "gen1_train.model.unet" in MODULES
    assert [module for module in MODULES if room_of(module) is None] == ["gen1_train"]


def test_every_room_exists() -> None:
    names = set(ROOMS) | {name for room in ROOMS.values() for name in room.imports}
    assert [name for name in sorted(names) if name not in MODULES and name not in OURS] == []


def test_no_room_may_import_from_its_own_floor_or_above() -> None:
    """Parts of one room are the exception: they may import each other as declared."""
    upward = [
        f"{room.name} -> {name}"
        for room in ROOMS.values()
        for name in room.imports
        if name in ROOMS and ROOMS[name].floor >= room.floor and ROOMS[name].whole != room.whole
    ]
    assert upward == []


def test_every_import_is_declared() -> None:
    assert [line for module, path in MODULES.items() for line in forbidden(module, path)] == []


def test_every_declared_import_is_used() -> None:
    """A permission that is no longer needed is removed."""
    used = {
        (room.name, other.name)
        for module, path in MODULES.items()
        for target in imports(module, path)
        if (room := room_of(module)) and (other := room_of(target))
    }
    unused = [
        f"{room.name} -> {name}"
        for room in ROOMS.values()
        for name in room.imports
        if name not in OURS and (room.name, name) not in used
    ]
    assert unused == []


def test_files_do_not_import_each_other_in_a_cycle() -> None:
    graph = {module: {name for name in imports(module, path) if name in MODULES} for module, path in MODULES.items()}
    assert import_cycles(graph) == []
    assert import_cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b -> c -> b"]


def test_parts_of_a_room_do_not_import_each_other_in_a_cycle() -> None:
    assert import_cycles({name: {*room.imports} - set(OURS) for name, room in ROOMS.items()}) == []


def test_no_folder_has_too_many_files() -> None:
    folders = {path.parent for path in MODULES.values()}
    files = {str(folder.relative_to(REPOSITORY)): len(list(folder.glob("*.py"))) for folder in folders}
    assert {name: count for name, count in files.items() if count > MAX_FILES} == {}
    assert len([path for path in (REPOSITORY / "gen1_train").iterdir() if path.is_file()]) <= 10


def test_the_table_in_contributing_is_current() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    assert with_table(text) == text, "run `python -m tests.architecture`"


def test_tests_mirror_the_tree() -> None:
    """A test file is tests/ROOM/test_MODULE.py, test_MODULE_ASPECT.py or, for the room as a whole, test_ROOM.py."""
    strays = []
    for path in sorted((REPOSITORY / "tests").rglob("test_*.py")):
        folder = path.relative_to(REPOSITORY / "tests").parent
        if (folder.parts and folder.parts[0] in NOT_MIRRORED) or path == Path(__file__):
            continue
        root = REPOSITORY if folder.parts[:1] and folder.parts[0] in OURS else REPOSITORY / "gen1_train"
        package = root / folder
        names = {folder.name, *(file.stem for file in package.glob("*.py"))} - {"", "__init__"}
        subject = path.stem.removeprefix("test_")
        if not any(subject == name or subject.startswith(f"{name}_") for name in names):
            strays.append(str(path.relative_to(REPOSITORY)))
    assert strays == []


def test_the_package_is_light_to_import() -> None:
    """Commands print `--help` and refuse mistakes before the seconds that torch takes."""
    code = "import sys, gen1_train; print(sorted({'torch', 'numpy', 'gen1_train.editing'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_package_exports_the_editor_and_nothing_else() -> None:
    from gen1_train import Gen1Editor
    from gen1_train.editing.editor import Gen1Editor as imported_directly

    assert Gen1Editor is imported_directly and gen1_train.__all__ == ["Gen1Editor"]
    with pytest.raises(AttributeError, match="module 'gen1_train' has no attribute 'Gen2Editor'"):
        _ = gen1_train.Gen2Editor


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("gen1_train.batch", "from gen1_train.errors import UserError"),
        ("gen1_train.keyed", "from . import errors"),
        ("gen1_train.model.unet", "from gen1_train.diffusion.loss import per_sample_loss"),
        ("gen1_train.model.unet", "import gen1_train.data"),
        ("gen1_train.model.unet", "from gen1_train import Gen1Editor"),
        ("gen1_train.diffusion.loss", "from ..model import unet"),
        ("gen1_train.diffusion.loss", "from gen1_train import cli"),
        ("gen1_train.frozen.clip", "def f():\n    from gen1_train.model.unet import UNetConfig"),
        ("gen1_train.data.loader", "from gen1_train.training.draws import draw"),
        ("gen1_train.training.run", "from gen1_train.editing.editor import Gen1Editor"),
        ("gen1_train.training.run", "import data_tools.freeze"),
        ("gen1_train.training.checkpoints.ema", "from gen1_train.training.callbacks.saving import RestoreState"),
        ("gen1_train.training.callbacks.saving", "from gen1_train.training.prior.config import PriorTrainConfig"),
        ("gen1_train.reporting.page", "from gen1_train.training.config import TrainConfig"),
        ("gen1_train.editing.editor", "from gen1_train.edit import main"),
        ("gen1_train.editing.editor", "from data_tools.recipe import RecipeConfig"),
        ("gen1_train.editing.editor", "from miniature.tiny import autoencoder"),
        ("gen1_train.editing.editor", "import pytorch_lightning"),
        ("gen1_train.training.config", "from hydra import compose"),
        ("data_tools.prepare", "from gen1_train.training import stages"),
        ("data_tools.prepare", "import hydra"),
        ("data_tools.source.lists", "from data_tools.sets.report import write_report"),
        ("data_tools.task", "import importlib\nimportlib.import_module('miniature')"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, module: str, line: str) -> None:
    """Checks the check: each of these lines is reported."""
    path = tmp_path / "module.py"
    path.write_text(f"{line}\n")
    assert len(forbidden(module, path)) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("gen1_train.model.unet", "from gen1_train.model.layers import Attention\nimport torch"),
        ("gen1_train.model.pretrained", "from gen1_train.errors import UserError"),
        ("gen1_train.training.run", "from gen1_train.model import SpatioTemporalUNet\nimport deepspeed"),
        ("gen1_train.training.run", "from gen1_train.training.callbacks.saving import RestoreState"),
        ("gen1_train.training.callbacks.saving", "from gen1_train.training.network import NetworkModule"),
        ("data_tools.prepare", "from gen1_train.cli.app import run_app"),
        ("miniature.demo", "from gen1_train import Gen1Editor"),
        ("gen1_train.data.loader", "from . import shards"),
    ],
)
def test_an_allowed_import_is_accepted(tmp_path: Path, module: str, line: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(f"{line}\n")
    assert forbidden(module, path) == []
