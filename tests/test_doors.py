"""Who may import whom. The layout may be changed on purpose, here and in the code; it may not drift."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("gen1_train", "data_tools", "miniature")

LEAVES = {
    f"gen1_train.{name}"
    for name in (
        *(
            "errors",
            "exits",
            "files",
            "stop",
            "children",
            "keyed",
            "batch",
            "frozen",
            "remote",
            "resources",
            "page",
            "sheet",
            "spool",
        ),
    )
}
ENTRY = {
    f"gen1_train.{name}"
    for name in (
        *(
            "train",
            "edit",
            "edit_files",
            "edit_variants",
            "editor",
            "masks",
            "ui",
            "ui_form",
            "ui_page",
            "cli",
            "config",
            "evaluate",
        ),
        *("export", "exporter"),
    )
}

# A room is the longest prefix of a module's name that stands here; it may import itself, the package that it lies in,
# and what begins with one of these.
MAY_IMPORT: dict[str, set[str]] = {
    "gen1_train.errors": set(),
    "gen1_train.files": set(),
    "gen1_train.keyed": set(),
    "gen1_train.batch": set(),
    "gen1_train.page": set(),
    "gen1_train.sheet": set(),
    "gen1_train.stop": set(),
    "gen1_train.children": {"gen1_train.errors"},
    "gen1_train.exits": set(),
    "gen1_train.resources": set(),
    "gen1_train.frozen": {"gen1_train.errors", "gen1_train.resources"},
    "gen1_train.remote": {"gen1_train.errors"},
    "gen1_train.spool": {"gen1_train.errors"},
    "gen1_train.cli": {"gen1_train.errors", "gen1_train.exits", "gen1_train.cli_help"},
    "gen1_train.cli_help": set(),
    "gen1_train.model": LEAVES,
    "gen1_train.diffusion": LEAVES,
    "gen1_train.estimators": LEAVES,
    "gen1_train.video": LEAVES,
    "gen1_train.networks": LEAVES | {"gen1_train.estimators", "gen1_train.model.autoencoder"},
    "gen1_train.data": LEAVES,
    "gen1_train.subject": LEAVES | {"gen1_train.networks", "gen1_train.video", "gen1_train.data"},
    "gen1_train.training": LEAVES
    | {"gen1_train.model", "gen1_train.diffusion", "gen1_train.data", "gen1_train.config"}
    | {"gen1_train.subject"}
    | {"gen1_train.video.encode", "gen1_train.video.probe"},  # previews are files that people look at
    "gen1_train.evaluation": LEAVES | {"gen1_train.video", "gen1_train.diffusion.structure"},
    **{name: {"gen1_train"} for name in ENTRY - {"gen1_train.cli"}},
    "data_tools": LEAVES
    | {
        "gen1_train.cli",
        "gen1_train.data.index",
        "gen1_train.data.opened",
        "gen1_train.data.pack",
        "gen1_train.data.schedule",
        "gen1_train.data.shards",
        "gen1_train.data.state",
        "gen1_train.diffusion.structure",
        "gen1_train.estimators",
        "gen1_train.model.autoencoder",
        "gen1_train.networks",
        "gen1_train.video",
    },
    # the miniature stands outside: it may use anything, and only tests use it
    "miniature": {"gen1_train", "data_tools"},
}

# Libraries that only some rooms may say.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "hydra": ("gen1_train.cli",),
    "pytorch_lightning": ("gen1_train.training",),
    "lightning": ("gen1_train.training",),
    "lightning_fabric": ("gen1_train.training",),
    "deepspeed": ("gen1_train.training",),
    "wandb": ("gen1_train.training",),
    "wandb_workspaces": ("gen1_train.training.dashboard",),
    "decord": ("gen1_train.video",),
    "av": ("gen1_train.video", "miniature"),
    "open_clip": ("gen1_train.estimators.clip", "miniature"),
    "transformers": ("gen1_train.estimators.depth", "miniature"),
    "diffusers": ("gen1_train.model.autoencoder", "gen1_train.diffusion.sampler", "gen1_train.exporter", "miniature"),
    "webdataset": ("data_tools", "gen1_train.data"),
    "cv2": (
        "gen1_train.estimators.edges",
        "gen1_train.evaluation.metrics",
        "gen1_train.video.decord_reader",
        "miniature.measure",
        "miniature.texture",
        "data_tools.cut",
        "data_tools.shots",
    ),
    "scenedetect": ("data_tools.shots",),
    "peft": ("gen1_train.training.lora",),
    "pyarrow": ("data_tools.rows",),
    "matplotlib": ("gen1_train.evaluation.plots",),
    "torchmetrics": ("gen1_train.evaluation.metrics",),
    "fsspec": ("gen1_train.remote",),
    "gradio": ("gen1_train.ui_page",),
    "starlette": ("gen1_train.ui_page",),
}


def is_below(module: str, prefixes: set[str] | tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name; a package's is that of its folder."""
    found = {}
    for path in sorted(file for package in OURS for file in (ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(module: str, path: Path) -> Iterator[str]:
    """Everything that a module imports, wherever in the file: `from a import b` gives a.b if that is a module."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module if path.name == "__init__.py" else module.rpartition(".")[0]
                package = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
                base = f"{package}.{base}".rstrip(".")
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield name if name in MODULES else base
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield ast.literal_eval(node.args[0])


def room_of(module: str) -> str | None:
    return max((room for room in MAY_IMPORT if is_below(module, (room,))), key=len, default=None)


def forbidden(module: str, path: Path) -> list[str]:
    room = room_of(module)
    arrows = []
    for target in imports(module, path):
        if target.partition(".")[0] in OURS:
            if room is not None and not is_below(target, {room} | MAY_IMPORT[room]):
                arrows.append(f"{module} -> {target}")
        elif not is_below(module, ONLY_IN.get(target.partition(".")[0], (module,))):
            arrows.append(f"{module} -> {target}")
    return arrows


def test_every_module_stands_in_a_room() -> None:
    """A file in a new place has to be given its doors here before it can be used."""
    assert "gen1_train.model.unet" in MODULES
    assert [module for module in MODULES if room_of(module) is None] == ["gen1_train"]
    assert list(imports("gen1_train", MODULES["gen1_train"])) == []  # the package itself: every import passes it


def test_no_arrow_goes_through_a_wall() -> None:
    assert [arrow for module, path in MODULES.items() for arrow in forbidden(module, path)] == []


def test_the_editor_alone_of_the_entry_points_is_reached_from_another() -> None:
    """Entry points are thin: nothing but another entry point builds on them (training takes the config's classes)."""
    apps = ENTRY - {"gen1_train.cli", "gen1_train.config"}
    reached = {
        f"{module} -> {target}"
        for module, path in MODULES.items()
        for target in imports(module, path)
        if is_below(target, apps) and not is_below(module, ENTRY | {"miniature"})
    }
    assert reached == set()


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("gen1_train.batch", "from gen1_train.errors import UserError"),
        ("gen1_train.keyed", "from . import errors"),
        ("gen1_train.model.unet", "from gen1_train.diffusion.loss import per_sample_loss"),
        ("gen1_train.model.unet", "import gen1_train.data"),
        ("gen1_train.diffusion.loss", "from ..model import unet"),
        ("gen1_train.diffusion.loss", "from gen1_train import cli"),
        ("gen1_train.estimators.clip", "def f():\n    from gen1_train.model.autoencoder import to_signed"),
        ("gen1_train.data.loader", "from gen1_train.training.draws import draw"),
        ("gen1_train.training.run", "from gen1_train.editor import Gen1Editor"),
        ("gen1_train.training.run", "import data_tools.freeze"),
        ("gen1_train.editor", "from data_tools.recipe import RecipeConfig"),
        ("gen1_train.editor", "from miniature.tiny import autoencoder"),
        ("gen1_train.editor", "import pytorch_lightning"),
        ("gen1_train.config", "from hydra import compose"),
        ("data_tools.prepare", "from gen1_train.training import stages"),
        ("data_tools.prepare", "from gen1_train.data.loader import DataConfig"),
        ("data_tools.prepare", "import hydra"),
        ("data_tools.task", "import importlib\nimportlib.import_module('miniature')"),
    ],
)
def test_the_walls_hold(tmp_path: Path, module: str, line: str) -> None:
    """The test of the test: each of these lines would be found."""
    path = tmp_path / "module.py"
    path.write_text(f"{line}\n")
    assert len(forbidden(module, path)) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("gen1_train.model.unet", "from gen1_train.model.layers import Attention\nimport torch"),
        ("gen1_train.model.pretrained", "from gen1_train.errors import UserError"),
        ("gen1_train.training.run", "from gen1_train.model import SpatioTemporalUNet\nimport deepspeed"),
        ("gen1_train.editor", "from gen1_train import keyed"),
        ("data_tools.prepare", "from gen1_train.cli import run_app"),
        ("gen1_train.data.loader", "from . import shards"),
    ],
)
def test_the_doors_are_open(tmp_path: Path, module: str, line: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(f"{line}\n")
    assert forbidden(module, path) == []
