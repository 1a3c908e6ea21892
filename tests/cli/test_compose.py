"""Configs for Python callers are those of the command line, and their mistakes are UserErrors."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from gen1_train.cli.compose import compose_config
from gen1_train.cli.names import conf_dir
from gen1_train.errors import UserError
from gen1_train.training.config import TrainConfig


def composed(*settings: str) -> TrainConfig:
    return compose_config("train", TrainConfig, settings)


def test_settings_are_those_of_the_command_line() -> None:
    config = composed("stage=4", "model=tiny", "data.root=a folder, with [brackets]", "init.from=sd", "optim.lr=1e-3")
    assert config.stage.name == "4" and config.data.root == "a folder, with [brackets]"
    assert config.init.from_ == "sd" and config.optim.lr == 1e-3
    assert composed("stage=4", "model=tiny") == composed("stage=4", "model=tiny")  # twice in a row


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["stage=4", "optim.learning_rate=1"], r"there is no setting optim\.learning_rate; did you mean optim\.lr"),
        (["stage=4", "optim.lr=fast"], r"optim\.lr=fast"),
        (["stage=9"], "there is no stage=9"),
        ([], "stage is not given|stage"),
        (["stage=4", "--help"], "'--help' is not a setting: write 'KEY=VALUE'"),
        (["stage=4", "+extra=1"], "there is no setting extra"),
    ],
)
def test_mistakes_are_one_line(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        composed(*settings)
    assert "\n" not in str(error.value)
    assert not GlobalHydra.instance().is_initialized()


def test_a_caller_who_uses_hydra_is_not_disturbed() -> None:
    with initialize_config_dir(str(conf_dir().absolute()), version_base="1.3"):
        composed("stage=3", "model=tiny")
        assert GlobalHydra.instance().is_initialized()
        assert compose("train", ["stage='4'", "model=tiny"]).stage.name == "4"
