"""The commands in the documentation can be pasted into a shell, and name settings that exist."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from data_tools.commands import COMMANDS as DATA_COMMANDS
from data_tools.main import ReportConfig
from data_tools.prepare import DataToolsConfig
from data_tools.sets.order import OrderConfig
from data_tools.sets.refresh import RefreshConfig
from data_tools.sets.verify import VerifyConfig
from gen1_train.cli.arguments import prepared
from gen1_train.cli.compose import compose_config
from gen1_train.editing.config import EditConfig
from gen1_train.evaluate import EvaluateConfig
from gen1_train.export import ExportConfig
from gen1_train.reporting.dashboard import DashboardConfig
from gen1_train.reporting.page import RunReportConfig
from gen1_train.training.config import TrainConfig
from gen1_train.training.prior.config import PriorTrainConfig
from gen1_train.training.replay import ReplayConfig
from tests.forkserver import REPOSITORY

PAGES = sorted(
    [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md"), *(REPOSITORY / "benchmarks").glob("*.md")]
)
SCHEMAS: dict[str, type] = {
    "data": DataToolsConfig,
    "report": ReportConfig,
    "verify": VerifyConfig,
    "order": OrderConfig,
    "refresh": RefreshConfig,
    "train": TrainConfig,
    "train_prior": PriorTrainConfig,
    "run_report": RunReportConfig,
    "replay": ReplayConfig,
    "dashboard": DashboardConfig,
    "edit": EditConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
}
CONFIGS = {"gen1-data": "data", "gen1-edit": "edit", "gen1-eval": "evaluate", "gen1-export": "export"}


def commands(page: Path) -> list[str]:
    """The calls of our commands in the code blocks of a page, without comments."""
    blocks = re.findall(r"^```(?:bash|sh)?\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+#.*", "", line).strip() for line in lines if re.match(r"gen1-\w+ +[^:]*(=|--)", line)]


CALLS = [(page.name, line) for page in PAGES for line in commands(page)]


def config_name(words: list[str]) -> str:
    """The config of a call, which its first word or a setting chooses."""
    if words[0] == "gen1-data" and words[1] in DATA_COMMANDS:
        return words.pop(1)
    if words[0] != "gen1-train":
        return CONFIGS[words[0]]
    names = {"report": "run_report", "replay": "replay", "dashboard": "dashboard"}
    chosen = [names[key] for key in (word.partition("=")[0] for word in words) if key in names]
    return chosen[0] if chosen else "train_prior" if "stage=prior" in words else "train"


def test_the_calls_are_found() -> None:
    assert len(CALLS) >= 40 and {page for page, _ in CALLS} >= {"README.md", "results.md", "editing.md", "data.md"}


@pytest.mark.slow
@pytest.mark.parametrize(("page", "line"), CALLS)
def test_a_call_can_be_pasted(page: str, line: str) -> None:
    """Brackets are patterns of file names to a shell: zsh refuses those without a file, and bash may find one."""
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", line)
    assert not set(bare) & set("[]{}*?<>|&;()…"), bare
    words = shlex.split(re.sub(r"\$[A-Z]\b", "1", line))  # of=$N
    name = config_name(words)
    if {"--help", "-sc"} & set(words):
        return
    if name == "train" and not any(word.startswith("stage=") for word in words):
        words.append("stage=2")  # plan_only=true, …
    words = prepared(words[1:], SCHEMAS[name], name)
    if not any("=" in word and "," in word and "[" not in word and "'" not in word for word in words):  # no sweep
        compose_config(name, SCHEMAS[name], words)


def test_no_text_installs_a_package_that_is_not_published() -> None:
    """A stranger could register the name."""
    wrong = re.compile(r"pip3? +install[^\n]*gen1[-_]train|gen1[-_]train\[")
    files = [path for kind in ("*.md", "*.py", "*.toml", "*.sh") for path in REPOSITORY.rglob(kind)]
    ours = [path for path in files if not {".venv", ".git", "tests"} & set(path.relative_to(REPOSITORY).parts)]
    assert len(ours) > 200 and [str(path) for path in ours if wrong.search(path.read_text())] == []


def test_the_extra_for_development_has_all_others() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    others = {package for name, packages in extras.items() if name != "dev" for package in packages}
    assert others and others <= set(extras["dev"])
