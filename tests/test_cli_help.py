import sys

import pytest

from data_tools.prepare import DataToolsConfig
from gen1_train.cli import conf_dir, run_app, settings
from gen1_train.cli_help import comments, help_text
from gen1_train.config import TrainConfig
from gen1_train.edit import EditConfig
from gen1_train.evaluate import EvaluateConfig
from gen1_train.export import ExportConfig

COMMANDS = {"train": TrainConfig, "data": DataToolsConfig, "edit": EditConfig, "export": ExportConfig}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_is_told_and_may_be_written_as_told(command):
    text = help_text(f"gen1-{command}", conf_dir() / f"{command}.yaml", COMMANDS[command])
    told = {line.split()[0] for line in text.partition("settings (KEY=VALUE):")[2].splitlines() if line}
    assert told == {key.replace("from_", "from") for key in settings(COMMANDS[command])}
    assert text.startswith(f"gen1-{command}:")


def test_choices_of_groups_and_the_meaning_of_a_setting():
    text = help_text("gen1-train", conf_dir() / "train.yaml", TrainConfig)
    assert "1, 2, 3, 4, 5" in text and "zero2" in text and "recipe" not in text
    assert "global batch of a video step, in clips" in text
    assert comments(EditConfig)["t_s"] == "structure: 0 keeps all of it, 7 is freest"


def test_the_meaning_of_inherited_settings_is_told_too():
    told = comments(EvaluateConfig)
    assert told.keys() >= settings(EvaluateConfig).keys() and told["omega_t"] == "gen1: consistency over time"


def test_help_needs_no_stage_and_runs_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gen1-train", "--help"])
    run_app("gen1-train", "train", TrainConfig, lambda config: pytest.fail("it ran"))
    assert "usage: gen1-train KEY=VALUE" in capsys.readouterr().out
