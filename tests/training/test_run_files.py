"""What a start of a run reports about its settings."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from gen1_train.cli.app import conf_dir
from gen1_train.diffusion.schedule import NoiseConfig
from gen1_train.errors import UserError
from gen1_train.model.pretrained import WeightReport
from gen1_train.training import run_files
from gen1_train.training.checkpoints.checkpoint import UNET, Checkpoint, CheckpointConfig, CheckpointInfo
from gen1_train.training.checkpoints.writing import begin, commit
from gen1_train.training.config import TrainConfig, TrainerConfig
from gen1_train.training.prior.config import PriorDiffusionConfig, PriorStageConfig, PriorTrainConfig
from gen1_train.training.run import train
from gen1_train.training.run_files import changed_settings, open_run, report_changes
from gen1_train.training.stages import InitConfig, StageConfig
from tests.training.callbacks.test_metrics import fail_first


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    stage = yaml.safe_load((conf_dir() / "stage" / "4.yaml").read_text())
    return TrainConfig(stage=StageConfig(**stage), output=str(tmp_path / "runs"))


def stored(config: TrainConfig, text: str | None = None) -> Checkpoint:
    """The finished checkpoint of a run with these settings."""
    run = Path(config.output) / "gen1" / "stage4"
    info = CheckpointInfo("4", config.stage.steps, True)
    path = commit(begin(run, config.stage.steps), {UNET: {}}, text or config.to_yaml(), info, CheckpointConfig())
    return Checkpoint(path, info)


def test_only_settings_that_change_the_run_are_named(config: TrainConfig) -> None:
    resume = stored(config)
    assert changed_settings(resume, config) == []
    given = replace(
        config,
        output="elsewhere",
        check_only=True,
        plan=replace(config.plan, mfu=0.5),
        trainer=TrainerConfig(nodes=2),
        stage=replace(config.stage, steps=30_000),
        init=InitConfig(from_="a folder"),
        ema=replace(config.ema, decays=[0.9, 0.99]),
    )
    assert changed_settings(resume, given) == [
        "stage.steps: 25000 -> 30000",
        "init.from: null -> a folder",
        "ema.decays: [0.9999] -> [0.9, 0.99]",
        "trainer.nodes: 1 -> 2",
    ]


def test_credentials_are_masked(config: TrainConfig) -> None:
    config.data.root = "s3://user:secret@bucket/set"
    resume = stored(config)
    config.data.root = "https://host/set?signature=hidden"
    [line] = changed_settings(resume, config)
    assert line.startswith("data.root: s3://***@bucket/set -> https://host/set") and "hidden" not in line


def test_no_setting_stores_credentials(config: TrainConfig, tmp_path: Path) -> None:
    secret = "https://user:hidden@host/x?signature=hidden"
    config.data.root = config.validation.root = config.output = config.images = secret
    config.init.checkpoint = config.init.from_ = config.log.project = secret
    config.seed = 7
    report = WeightReport(secret, [], [], [], {})
    open_run(config, tmp_path / "run", report, 0, 1)
    stored_text = "".join(file.read_text() for file in (tmp_path / "run").iterdir() if file.is_file())
    assert "hidden" not in stored_text and "https://***@host/x" in stored_text
    loaded = TrainConfig.from_yaml(config.to_yaml())
    assert loaded.validation.root == "https://***@host/x?***" and loaded.seed == 7


def test_a_config_of_an_older_version_with_credentials_differs_in_nothing(config: TrainConfig) -> None:
    config.validation.root = "https://user:hidden@host/x"
    text = config.to_yaml().replace("***", "user:hidden")
    assert "hidden" in text and changed_settings(stored(config, text), config) == []


def test_a_config_from_before_the_choice_of_kernels_differs_in_nothing(config: TrainConfig) -> None:
    text = "".join(line for line in config.to_yaml().splitlines(keepends=True) if "kernels:" not in line)
    assert text != config.to_yaml() and changed_settings(stored(config, text), config) == []
    assert TrainConfig.from_yaml(text).model.kernels == "auto"


@pytest.mark.parametrize("text", ["optim: {lr: 1e-9, gone: 3}\n", "[]", "optim: 3", "{not yaml", ""])
def test_the_config_of_another_version_does_not_stop_a_run(config: TrainConfig, text: str) -> None:
    resume = stored(config, text or " ")
    names = [line.partition(":")[0] for line in changed_settings(resume, config)]
    assert names == (["optim.lr"] if "lr" in text else [])


@pytest.mark.parametrize("finished", [True, False])
def test_the_warning_is_one_line(config: TrainConfig, caplog: pytest.LogCaptureFixture, finished: bool) -> None:
    resume = stored(config)
    with caplog.at_level(logging.INFO):
        report_changes(resume, config, finished)
        assert caplog.messages == []
        report_changes(resume, replace(config, seed=1), finished)
    remedy = "name= starts another run with those given now" if finished else "those given now apply from here on"
    assert caplog.messages == [f"settings differ from those of {resume.path} ({remedy}): seed: 0 -> 1"]


def test_a_run_does_not_continue_with_another_noise_schedule(
    config: TrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    resume = stored(config)
    noise = replace(config.diffusion.noise, beta_end=0.02)
    changed = replace(config, seed=1, diffusion=replace(config.diffusion, noise=noise))
    with pytest.raises(
        UserError, match=r"^diffusion.noise.beta_end: 0.012 -> 0.02: the weights of .* start another run"
    ):
        report_changes(resume, changed, finished=False)
    report_changes(resume, changed, finished=True)  # nothing is trained
    assert "beta_end" in caplog.text


def test_a_run_of_a_version_without_other_predictions_continues_with_its_own(config: TrainConfig) -> None:
    recorded = yaml.safe_load(config.to_yaml())
    for name in ("prediction", "zero_terminal_snr", "shared", "offset"):
        del recorded["diffusion"]["noise"][name]
    resume = stored(config, yaml.safe_dump(recorded))
    report_changes(resume, config, finished=False)
    changed = replace(config, diffusion=replace(config.diffusion, noise=NoiseConfig(prediction="eps")))
    with pytest.raises(UserError, match=r"^diffusion.noise.prediction: v -> eps: the weights of"):
        report_changes(resume, changed, finished=False)


def test_a_changed_range_of_structure_levels_is_reported(config: TrainConfig, caplog: pytest.LogCaptureFixture) -> None:
    changed = replace(config, stage=replace(config.stage, max_level=7 - config.stage.max_level))
    report_changes(stored(config), changed, finished=False)
    assert f"stage.max_level: {config.stage.max_level} -> {changed.stage.max_level}" in caplog.text


def test_the_prior_does_not_continue_with_another_noise_schedule(tmp_path: Path) -> None:
    prior = PriorTrainConfig(stage=PriorStageConfig("prior", 10), output=str(tmp_path))
    stage = TrainConfig(stage=StageConfig(**yaml.safe_load((conf_dir() / "stage" / "4.yaml").read_text())))
    resume = stored(replace(stage, output=str(tmp_path)), prior.to_yaml())
    with pytest.raises(UserError, match=r"^diffusion.steps: 1000 -> 500"):
        report_changes(resume, replace(prior, diffusion=PriorDiffusionConfig(steps=500)), finished=False)


def test_a_finished_stage_reports_it(config: TrainConfig, caplog: pytest.LogCaptureFixture) -> None:
    changed: Any = replace(config, optim=replace(config.optim, lr=3e-5))
    stored(config)
    with caplog.at_level(logging.INFO):
        assert train(changed) == 0
    warning, info = caplog.messages
    assert warning.endswith("optim.lr: 1e-05 -> 3e-05") and info.startswith("stage 4 is finished already")


@pytest.mark.parametrize("name", ["write_atomically", "append_line", "make_way"])
def test_a_start_waits_for_the_disk(config: TrainConfig, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Path(config.output) / "gen1" / "stage4"
    waits = fail_first(run_files, name, monkeypatch)
    open_run(config, run, None, 0, world=1)
    assert waits.count(10) == 1  # git is waited for too
    assert (run / "config.yaml").read_text() == config.to_yaml()
    assert [json.loads(line)["step"] for line in (run / "starts.jsonl").read_text().splitlines()] == [0]


def test_a_start_on_a_disk_that_stays_full_ends_in_one_line(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.checkpoint.patience_seconds = 0
    fail_first(run_files, "append_line", monkeypatch)
    with pytest.raises(UserError, match=r"stage4 cannot be written to \(Stale file handle\): free some space"):
        open_run(config, Path(config.output) / "gen1" / "stage4", None, 0, world=1)
