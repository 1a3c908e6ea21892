"""A name that does not exist is answered with the setting that is meant: by spelling, and by meaning."""

import pytest

from data_tools.prepare import DataToolsConfig
from gen1_train.cli.names import SYNONYMS, as_typed, groups, settings, suggestion
from gen1_train.editing.config import EditConfig
from gen1_train.evaluate import EvaluateConfig
from gen1_train.export import ExportConfig
from gen1_train.training.config import TrainConfig
from gen1_train.training.prior.config import PriorTrainConfig

SCHEMAS = {
    "train": TrainConfig,
    "train_prior": PriorTrainConfig,
    "edit": EditConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "data": DataToolsConfig,
}
MEANT = [
    ("train", "optim.learning_rate", "optim.lr"),
    ("train", "learning-rate", "optim.lr"),
    ("train", "lr", "optim.lr"),
    ("train", "optimizer.lr", "optim.lr"),
    ("train", "optim.wieght_decay", "optim.weight_decay"),
    ("train", "batch_size", "data.batch_clips"),
    ("train", "data.batch_size", "data.batch_clips"),
    ("train", "epochs", "stage.steps"),
    ("train", "gpus", "trainer.devices"),
    ("train", "trainer.gpus", "trainer.devices"),
    ("train", "num_workers", "data.workers"),
    ("train", "precision", "trainer.precision"),
    ("train", "output_dir", "output"),
    ("train", "init.form", "init.from"),
    ("train", "experimnt", "experiment"),  # a group without a section
    ("train", "recipe", None),  # a group of another command
    ("train_prior", "batch_size", "data.batch"),
    ("edit", "guidance_scale", "omega"),
    ("edit", "num_inference_steps", "steps"),
    ("edit", "video", "input"),
    ("edit", "promt", "prompt"),
    ("edit", "ckpt", "checkpoint"),
    ("edit", "learning_rate", None),
    ("evaluate", "video", "data"),
    ("evaluate", "gpus", "workers"),
    ("export", "output_dir", "output"),
    ("data", "input", "source"),
    ("data", "num_workers", "workers"),
]


@pytest.mark.parametrize(("config_name", "typed", "meant"), MEANT)
def test_a_name_is_answered_with_what_is_meant(config_name: str, typed: str, meant: str | None) -> None:
    assert suggestion(typed, SCHEMAS[config_name], config_name) == meant


def test_all_that_is_suggested_exists() -> None:
    known = {as_typed(name) for schema in SCHEMAS.values() for name in settings(schema)}
    assert {name for names in SYNONYMS.values() for name in names.split()} <= known


def test_no_setting_is_answered_with_another() -> None:
    for config_name, schema in SCHEMAS.items():
        for name in map(as_typed, settings(schema)):
            assert suggestion(name, schema, config_name) == name


def test_groups_are_those_of_the_command() -> None:
    assert set(groups("train")) == {"stage", "model", "strategy", "experiment"}
    assert groups("data") == {"recipe": ["paper", "sd21", "tiny"]} and groups("edit") == {}
