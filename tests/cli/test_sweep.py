"""--multirun: each run has a place of its own, or none of them starts."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from data_tools.prepare import DataToolsConfig
from gen1_train.cli.app import run_app
from gen1_train.editing.config import EditConfig
from gen1_train.evaluate import EvaluateConfig
from gen1_train.reporting.page import RunReportConfig
from gen1_train.training.config import TrainConfig

SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "edit": EditConfig,
    "evaluate": EvaluateConfig,
    "data": DataToolsConfig,
    "run_report": RunReportConfig,
}
Sweep = Callable[..., list[Any]]


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Sweep]:
    """Calls a command with --multirun in an empty folder; returns the configs of the runs that it starts."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # run_app sets it; monkeypatch restores it
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path)

    def call(config_name: str, *arguments: str) -> list[Any]:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["command", "--multirun", *arguments])
        started: list[Any] = []
        run_app("command", config_name, SCHEMAS[config_name], started.append)
        return started

    yield call
    GlobalHydra.instance().clear()


CLASHES = [
    ("train", ["stage=4", "optim.lr=1e-5,3e-5"], "runs/gen1/stage4", "'name=gen1-${optim.lr}'"),
    ("train", ["stage=4", "seed=0,1", "optim.lr=1,2"], "runs/gen1/stage4", "'name=gen1-${seed}-${optim.lr}'"),
    ("train", ["stage=4", "model=tiny,small"], "runs/gen1/stage4", "'name=gen1-${hydra:runtime.choices.model}'"),
    ("edit", ["output=a/o.mp4", "omega_t=0.5,1"], "a/o.mp4", "'output=a/o-${omega_t}.mp4'"),
    (
        "edit",
        ["output=o-${t_s}.mp4", "structure_output=s.mp4", "t_s=0,1"],
        "s.mp4",
        "'structure_output=s-${t_s}.mp4'",
    ),
    ("evaluate", ["checkpoint=c", "data=d", "output=e", "omega=3,7"], "e", "'output=e-${omega}'"),
    ("data", ["source=a", "output=b", "recipe=tiny,paper"], "b", "'output=b-${hydra:runtime.choices.recipe}'"),
    ("run_report", ["report=a", "overwrite=true,false"], "a/report.html", "give each run its own"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("config_name", "arguments", "place", "remedy"), CLASHES)
def test_runs_that_would_share_a_place_are_refused_before_the_first(
    sweep: Sweep,
    capsys: pytest.CaptureFixture[str],
    config_name: str,
    arguments: list[str],
    place: str,
    remedy: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        sweep(config_name, *arguments)
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert f"--multirun would write {place} more than once: " in err and remedy in err


@pytest.mark.slow
@pytest.mark.parametrize(("config_name", "arguments", "place", "remedy"), CLASHES[:-1])
def test_the_remedy_works(sweep: Sweep, config_name: str, arguments: list[str], place: str, remedy: str) -> None:
    setting, _, _ = remedy.strip("'").partition("=")
    others = [argument for argument in arguments if not argument.startswith(f"{setting}=")]
    started = sweep(config_name, *others, remedy.strip("'"))
    assert len({str(config.destinations()) for config in started}) == len(started) >= 2


@pytest.mark.slow
def test_runs_with_places_of_their_own_start(sweep: Sweep) -> None:
    assert [config.stage.name for config in sweep("train", "stage=2,3", "data.root=x")] == ["2", "3"]
    assert len(sweep("train", "stage=4", "plan_only=true", "trainer.nodes=1,2,4")) == 3  # they write nothing
    assert len(sweep("evaluate", "checkpoint=c", "data=d", "output=e", "of=3", "task=0,1,2")) == 3  # shares of one
    assert len(sweep("data", "source=a", "output=b", "step=task", "of=2", "task=0,1")) == 2
