"""The text of `--help`."""

import importlib
import re
import sys

import pytest

from data_tools.prepare import DataToolsConfig
from gen1_train.cli.app import conf_dir, run_app, settings
from gen1_train.cli.help import comments, help_text, sections
from gen1_train.cli.names import as_typed
from gen1_train.editing.config import EditConfig
from gen1_train.evaluate import EvaluateConfig
from gen1_train.export import ExportConfig
from gen1_train.training.config import TrainConfig
from gen1_train.training.prior.config import PriorTrainConfig

COMMANDS = {"train": TrainConfig, "data": DataToolsConfig, "edit": EditConfig, "export": ExportConfig}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_is_listed_under_the_name_that_users_type(command):
    text = help_text(f"gen1-{command}", conf_dir() / f"{command}.yaml", COMMANDS[command])
    listed = {line.split()[0] for line in text.partition("settings (KEY=VALUE):")[2].splitlines() if line}
    assert listed == {key.replace("from_", "from") for key in settings(COMMANDS[command])}
    assert text.startswith(f"gen1-{command}:")


def test_the_choices_of_groups_and_the_comments_of_settings_are_listed():
    text = help_text("gen1-train", conf_dir() / "train.yaml", TrainConfig)
    assert "1, 2, 3, 4, 5" in text and "zero2" in text and "recipe" not in text
    assert "global batch of a video step, in clips" in text
    assert comments(EditConfig)["start"] == "first frame of the input"


def test_inherited_settings_have_comments():
    descriptions = comments(EvaluateConfig)
    assert descriptions.keys() >= {name for name in settings(EvaluateConfig) if "." not in name}
    assert descriptions["omega_t"] == "gen1: consistency over time"


@pytest.fixture
def help_of(monkeypatch, capsys):
    """Calls a command, which must print and run nothing, and returns what it has printed."""

    def call(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        importlib.import_module(module).main()
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return call


MODULES = {
    "gen1_train.train": TrainConfig,
    "gen1_train.edit": EditConfig,
    "gen1_train.evaluate": EvaluateConfig,
    "gen1_train.export": ExportConfig,
    "data_tools.main": DataToolsConfig,
}


@pytest.mark.parametrize("module", MODULES)
def test_help_fits_a_screen_or_two_and_names_the_rest(help_of, module):
    text = help_of(module, "--help")
    found = re.findall(r"^  ([\w.]+) +(?:str|int|float|bool|list)", text, re.MULTILINE)
    names = [as_typed(name) for name in settings(MODULES[module])]
    assert set(found) <= set(names) and (len(found) <= 14 or module == "gen1_train.export")
    assert text.count("\n") < 65
    if len(found) < len(names):
        assert f"all {len(names)} settings: " in text and "--help all" in text and "--help SECTION" in text
        assert all(f"\n  {section.name} " in text for section in sections(MODULES[module]))


@pytest.mark.parametrize("module", MODULES)
def test_help_all_lists_every_setting(help_of, module):
    listed = [line.split()[0] for line in help_of(module, "--help", "all").splitlines()]
    assert sorted(listed) == sorted(as_typed(name) for name in settings(MODULES[module]))


@pytest.mark.parametrize(("module", "schema"), [*MODULES.items(), ("prior", PriorTrainConfig)])
def test_every_section_has_a_line(module, schema):
    assert [section.name for section in sections(schema) if not section.title] == []


def test_help_on_a_section_shows_its_settings(help_of):
    lines = help_of("gen1_train.train", "--help", "optim").splitlines()
    assert [line.split()[0] for line in lines] == [name for name in settings(TrainConfig) if name.startswith("optim.")]
    assert help_of("gen1_train.train", "--help=optim").splitlines() == lines
    assert help_of("gen1_train.train", "stage=4", "-h", "optim").splitlines() == lines
    assert len(help_of("data_tools.main", "--help", "recipe.cut").splitlines()) > 5
    assert help_of("gen1_train.edit", "--help", "start").startswith("  start ")
    assert "init.from " in help_of("gen1_train.train", "--help", "init")
    assert help_of("gen1_train.train", "--help", "strategy").startswith("strategy=NAME: auto, ddp, fsdp, single, zero1")


def test_help_on_another_command_is_its_help(help_of):
    assert help_of("data_tools.main", "--help", "verify") == help_of("data_tools.main", "verify", "--help")
    assert "gen1-data verify:" in help_of("data_tools.main", "--help", "verify")
    assert help_of("gen1_train.train", "--help", "report") == help_of("gen1_train.train", "report=x", "--help")
    assert help_of("gen1_train.train", "--help", "prior") == help_of("gen1_train.train", "stage=prior", "--help")


def test_help_on_what_does_not_exist_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gen1-train", "--help", "optm"])
    with pytest.raises(SystemExit) as ended:
        run_app("gen1-train", "train", TrainConfig, lambda config: pytest.fail("the task was run"))
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "gen1-train: error: there is no section and no setting optm; did you mean optim?\n"
    )


def test_help_needs_no_stage_and_runs_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gen1-train", "--help"])
    run_app("gen1-train", "train", TrainConfig, lambda config: pytest.fail("the task was run"))
    assert "usage: gen1-train KEY=VALUE" in capsys.readouterr().out
