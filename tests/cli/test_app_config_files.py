"""conf/: every file composes into the typed config, describes itself, and has the values of the paper."""

import re
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from functools import cache
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from gen1_train.cli.app import conf_dir, quoted, settings
from gen1_train.editing.config import EditConfig
from gen1_train.errors import UserError
from gen1_train.evaluate import EvaluateConfig
from gen1_train.export import ExportConfig
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.config import TrainConfig
from gen1_train.training.stages import StageConfig, stage_unet
from gen1_train.training.strategies.config import AUTO, StrategyConfig
from gen1_train.training.strategies.strategy import build_strategy

CONF = conf_dir()
FILES = sorted(path.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml"))
GROUPS: dict[str, Any] = {"stage": StageConfig, "model": UNetConfig, "strategy": StrategyConfig}
MEMBERS = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
MEMBERS.remove(("stage", "prior"))  # it has its own settings, see tests/training/prior/test_config.py


def values(file: str) -> dict[str, Any]:
    """The values in a file; from a group member that sets several sections (`# @package _global_`), its own section."""
    content = yaml.safe_load((CONF / file).read_text())
    group = file.partition("/")[0]
    return content[group] if group in GROUPS and group in content else content


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@cache
def resolved(*arguments: str) -> DictConfig:
    return compose("train", [quoted(argument, TrainConfig) for argument in arguments])


def composed(*arguments: str) -> TrainConfig:
    config = OmegaConf.to_object(resolved(*arguments))
    assert isinstance(config, TrainConfig)
    return config


def changed(argument: str) -> TrainConfig:
    """Stage 4 with one more setting; composing every config from scratch would be slow."""
    config = resolved("stage=4").copy()
    key, _, value = argument.partition("=")
    OmegaConf.update(config, key, yaml.safe_load(value))
    return OmegaConf.to_object(config)  # type: ignore[return-value]


def test_the_files_are_listed() -> None:
    assert len(MEMBERS) >= 13 and {"train.yaml", "edit.yaml", "export.yaml"} <= set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_every_file_begins_with_a_description(file: str) -> None:
    lines = (CONF / file).read_text().splitlines()
    if lines[0].startswith("# @package"):  # a directive for Hydra has to come first
        lines = lines[1:]
    assert lines[0].startswith("# ") and len(lines[0]) > 30


@pytest.mark.parametrize("schema", [EditConfig, EvaluateConfig, ExportConfig])
def test_no_group_has_the_name_of_a_setting(schema: type) -> None:
    """Hydra would read `prior=PATH` as a choice among the files of conf/prior if there were such a folder."""
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    assert groups & settings(schema).keys() == set()


@pytest.mark.parametrize("file", FILES)
def test_files_contain_values_and_no_class_paths(file: str) -> None:
    text = (CONF / file).read_text()
    assert "_target_" not in text and "gen1_train.training" not in text


@pytest.mark.parametrize(("group", "name"), MEMBERS)
def test_every_member_of_a_group_composes(group: str, name: str) -> None:
    images = ["images=FOLDER"] if name == "customize" else []
    config = composed("stage=4", f"{group}={name}", *images)
    section = asdict(getattr(config, group))
    expected = values(f"{group}/{name}.yaml")
    assert set(expected) <= {field.name for field in fields(GROUPS[group])}
    assert {key: section[key] for key in expected} == expected
    config.check()


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
@pytest.mark.parametrize("stage", "15")
def test_every_experiment_composes_with_a_stage(name: str, stage: str) -> None:
    content = (CONF / "experiment" / f"{name}.yaml").read_text()
    if own := re.search('override /stage: "(.*)"', content):  # an experiment of one stage
        stage = own[1]
        assert composed(f"experiment={name}").stage.name == stage
    config = composed(f"stage={stage}", f"experiment={name}", *(["images=x"] if stage == "customize" else []))
    config.check()
    assert config.stage.name == stage and config != composed(f"stage={stage}")


def test_a_stage_sets_every_field() -> None:
    for stage in (*"12345", "customize"):
        assert set(values(f"stage/{stage}.yaml")) == {field.name for field in fields(StageConfig)}


def test_names_equal_the_file_names() -> None:
    for group in ("stage", "strategy"):
        for path in (CONF / group).glob("*.yaml"):
            assert values(f"{group}/{path.name}")["name"] == path.stem


def test_each_stage_continues_the_one_before() -> None:
    chain = {stage: values(f"stage/{stage}.yaml")["predecessor"] for stage in (*"12345", "customize")}
    assert chain == {"1": None, "2": "1", "3": "2", "4": "3", "5": "4", "customize": "5"}


def test_stages_follow_the_paper() -> None:
    """The paper gives the steps, the share of image batches, the layers and t_s, so they are not ours to tune."""
    stages = [composed(f"stage={stage}").stage for stage in "12345"]
    assert [stage.steps for stage in stages] == [0, 15_000, 75_000, 25_000, 10_000]
    assert [stage.image_ratio for stage in stages] == [1, 1, 0.125, 0.125, 0.125]
    assert [stage.temporal for stage in stages] == [False, False, True, True, True]
    assert [stage.structure for stage in stages] == [False, False, False, True, True]
    assert [stage.max_level for stage in stages] == [0, 0, 0, 0, 7]


def test_a_customization_is_short_and_small_by_default() -> None:
    config = composed("stage=customize", "images=FOLDER")
    assert (config.stage.steps, config.data.batch_clips, config.stage.image_ratio) == (400, 1, 0.5)
    assert config.checkpoint.keep * config.checkpoint.every >= config.stage.steps  # so that the best one is kept
    other = composed(
        "stage=customize", "images=FOLDER", "data.batch_clips=3", "experiment=demo", "customize.lora_rank=16"
    )
    assert (other.data.batch_clips, other.model.channels) == (3, composed("stage=5", "experiment=demo").model.channels)
    other.check()


def test_the_defaults_follow_the_paper() -> None:
    config = composed("stage=5")
    assert config.data.batch_clips == 1152 and config.data.image_ratio is None
    assert asdict(config.model) == asdict(UNetConfig())  # Stable Diffusion 1.x
    noise = config.diffusion.noise
    assert (noise.steps, noise.beta_start, noise.beta_end) == (1000, 0.00085, 0.012)


@pytest.mark.parametrize("model", sorted(path.stem for path in (CONF / "model").glob("*.yaml")))
def test_every_model_runs(model: str) -> None:
    """On the meta device, which checks all shapes: heads that do not divide a width, groups, skips."""
    config = composed("stage=5", f"model={model}")
    with torch.device("meta"):
        unet = SpatioTemporalUNet(stage_unet(config.model, config.stage))
        latents = torch.zeros(1, config.model.max_frames, 12, 16, 24)
        output = unet(latents, torch.zeros(1), torch.zeros(1, 2, config.model.content_dim))
    assert output.shape == (1, config.model.max_frames, 4, 16, 24)


def test_a_stage_has_the_unet_that_it_needs() -> None:
    unets = {stage: stage_unet(UNetConfig(), StageConfig(**values(f"stage/{stage}.yaml"))) for stage in "12345"}
    assert {stage: (c.in_channels, c.temporal) for stage, c in unets.items()} == {
        "1": (4, False),
        "2": (4, False),
        "3": (4, True),
        "4": (12, True),  # z_t, encoded structure, t_s
        "5": (12, True),
    }


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "strategy").glob("*.yaml")))
def test_every_strategy_can_be_built(name: str) -> None:
    config = composed("stage=4", f"strategy={name}").strategy
    if name != AUTO:  # which the plan replaces with one of the others
        build_strategy(config, processes=1, micro_batch=1, gpu=False)


def test_the_resolved_config_can_be_read_back() -> None:
    config = composed("stage=4", "init.from=/a: b", "name=4", "data.root=null")
    again = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), yaml.safe_load(config.to_yaml())))
    assert again == config


REFUSED = [
    "trainer.accelerator=tpu",
    "trainer.precision=16",
    "log.wandb=on",
    "data.batch_clips=0",
    "data.image_ratio=1.5",
    "data.image_ratio=-0.1",
    "data.mix=shuffled",
    "data.lanes=0",
    "data.order=random",
    "data.window=0",
    "data.stall_seconds=0",
    "data.stall_seconds=1000",
    "trainer.collective_seconds=0",
    "trainer.collective_seconds=500",  # data.stall_seconds is 300
    "trainer.step_deadline=-1",
    "trainer.step_deadline=1",  # half of all steps take longer than the median
    "trainer.step_deadline_seconds=0",
    "trainer.step_deadline_seconds=1800",  # so is trainer.collective_seconds
    "trainer.health=on",
    "data.cache_gigabytes=0",
    "data.workers=-1",  # DataLoader's ValueError, with a traceback
    "trainer.accumulate=0",
    "trainer.nodes=0",
    "trainer.compile_backend=tvm",
    "trainer.devices=0",  # neither a number of processes nor "all"
    "checkpoint.every=0",
    "checkpoint.keep=0",
    "log.every=0",
    "optim.lr=0",
    "optim.schedule=linear",
    "optim.final_lr_share=-0.1",
    "optim.warmup_steps=-1",
    "optim.betas=[0.9]",  # an IndexError when the optimizer is built
    "diffusion.drop_content=1.1",
    "diffusion.noise.steps=0",
    "stage.steps=-1",  # means "without end" to Lightning and no batch to the loader
    "stage.max_level=8",  # editing takes 0..7
    "stage.image_ratio=2",
    "model.heads=[8,8]",  # one for each resolution
    "model.heads=[7,8,8,8]",  # does not divide 320
    "model.groups=7",
    "plan.gigabytes=0",
    "plan.tflops=-1",
    "plan.mfu=0",
]


@pytest.mark.parametrize("argument", REFUSED)
def test_values_that_the_types_allow_are_checked(argument: str) -> None:
    with pytest.raises(UserError) as error:
        changed(argument).check()
    key, _, _ = argument.partition("=")
    assert key.rpartition(".")[2] in str(error.value) and "\n" not in str(error.value)


def test_compiling_and_zero3_are_refused_together() -> None:
    config = composed("stage=4", "strategy=zero3", "trainer.compile=true")
    with pytest.raises(UserError, match=r"trainer\.compile=true does not go with strategy=zero3"):
        config.check()
    replace(config, strategy=StrategyConfig("zero2")).check()


@pytest.mark.parametrize(
    "argument", ["data.image_ratio=0", "data.image_ratio=1", "data.workers=0", "optim.clip_norm=0"]
)
def test_bounds_are_inclusive(argument: str) -> None:
    changed(argument).check()
