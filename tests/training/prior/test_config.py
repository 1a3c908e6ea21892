"""The settings of `gen1-train stage=prior`: files compose, --help is complete, impossible values are refused."""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from gen1_train.cli.app import conf_dir, quoted, settings
from gen1_train.cli.help import help_text
from gen1_train.errors import UserError
from gen1_train.model.prior import PriorNetwork
from gen1_train.train import COMMANDS, train_stage
from gen1_train.training.prior.config import PriorTrainConfig
from gen1_train.training.stages import run_folder

SIZES = sorted(path.stem for path in (conf_dir() / "prior_model").glob("*.yaml"))


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    ConfigStore.instance().store(name="train_prior_schema", node=PriorTrainConfig)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield


def composed(*arguments: str) -> PriorTrainConfig:
    config: Any = OmegaConf.to_object(compose("train_prior", [quoted(each, PriorTrainConfig) for each in arguments]))
    assert isinstance(config, PriorTrainConfig)
    return config


@pytest.mark.parametrize("size", SIZES)
def test_every_size_composes_and_runs(size: str) -> None:
    """On the meta device: shapes only."""
    config = composed("stage=prior", f"prior_model={size}")
    config.check()
    assert asdict(config.prior) == yaml.safe_load((conf_dir() / "prior_model" / f"{size}.yaml").read_text())
    with torch.device("meta"):
        network = PriorNetwork(config.prior, 768)
        assert network(torch.zeros(2, 768), torch.zeros(2), torch.zeros(2, 768)).shape == (2, 768)


def test_the_default_has_the_documented_size() -> None:
    with torch.device("meta"):
        network = PriorNetwork(composed("stage=prior").prior, 768)
    assert round(sum(weight.numel() for weight in network.parameters()) / 1e6) == 156


def test_the_stage_has_its_own_settings_and_folder() -> None:
    config = composed("stage=prior", "name=x", "stage.steps=7", "prior.layers=2")
    assert (config.stage.name, config.stage.steps, config.prior.layers) == ("prior", 7, 2)
    assert run_folder(config.tree, config.stage.name).name == "prior"
    assert run_folder(config.tree, "4").name == "stage4"


def test_the_resolved_config_reads_back_as_it_was() -> None:
    config = composed("stage=prior", "name=4", "data.root=/a: b")
    assert PriorTrainConfig.from_yaml(config.to_yaml()) == config


def test_help_lists_every_setting() -> None:
    text = help_text("gen1-train", conf_dir() / "train_prior.yaml", PriorTrainConfig)
    listed = {line.split()[0] for line in text.partition("settings (KEY=VALUE):")[2].splitlines() if line}
    assert listed == set(settings(PriorTrainConfig))
    assert "base, sd21, tiny" in text
    words = next(line.split() for line in text.splitlines() if line.startswith("  optim.lr "))
    assert words[2] == str(composed("stage=prior").optim.lr)
    assert all(len(line.split()) > 3 for line in text.splitlines() if line.startswith("  optim."))  # inherited, too


@pytest.mark.parametrize(
    "argument",
    [
        "stage.steps=0",
        "prior.layers=0",
        "prior.heads=3",  # does not divide the width
        "data.batch=0",
        "data.held_out=0",
        "data.max_pairs=-1",
        "diffusion.drop_text=1.5",
        "diffusion.steps=0",
        "sampling.steps=0",
        "sampling.steps=2000",  # more than there are
        "sampling.candidates=0",
        "sampling.omega=-1",
        "validation.every=-1",
        "optim.lr=0",
        "optim.betas=[0.9]",
        "ema.decays=[1.0]",
        "trainer.precision=16",
        "trainer.devices=2",
        "trainer.nodes=4",
        "trainer.accumulate=2",
        "trainer.compile=true",
    ],
)
def test_values_that_types_allow_are_checked(argument: str) -> None:
    with pytest.raises(UserError) as error:
        composed("stage=prior", argument).check()
    assert argument.partition("=")[0].rpartition(".")[2] in str(error.value) and "\n" not in str(error.value)


def test_the_command_knows_the_prior(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gen1-train", "stage=prior", "--help"])
    train_stage(prior=True)
    printed = capsys.readouterr().out
    assert "sampling.candidates" in printed and "strategy" not in printed
    assert "stage=prior" in COMMANDS
