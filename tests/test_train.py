"""What `gen1-train` does instead of a stage."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra

from gen1_train import train
from gen1_train.cli.app import conf_dir, settings
from gen1_train.cli.help import help_text
from gen1_train.reporting.dashboard import DashboardConfig
from gen1_train.reporting.page import RunReportConfig
from gen1_train.training.config import TrainConfig
from tests.reporting.made_runs import write_run
from tests.running import run, run_well


def run_folder(folder: Path) -> Path:
    return write_run(folder, {"loss": np.ones(3)}, np.arange(3))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["report=runs/gen1"], "run_report"),
        (["output=page.html", "report=runs/gen1"], "run_report"),
        (["--help", "report=x"], "run_report"),
        (["dashboard=a/b"], "dashboard"),
        (["stage=4"], "train"),
        (["stage=4", "name=report=x"], "train"),
        (["report"], "train"),
        ([], "train"),
    ],
)
def test_a_setting_chooses_the_command(arguments: list[str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[tuple[str, str, bool]] = []

    def run_app(app: str, config: str, schema: type, task: object, ranks: bool = False, **more: object) -> None:
        chosen.append((app, config, ranks))

    monkeypatch.setattr(sys, "argv", ["gen1-train", *arguments])
    monkeypatch.setattr(train, "run_app", run_app)
    train.main()
    assert chosen == [("gen1-train", name, name == "train")]  # only training has ranks


def test_no_setting_of_a_stage_has_the_name_of_a_command() -> None:
    words = {setting.partition("=")[0] for setting in train.COMMANDS if not setting.startswith("stage=")}
    assert words == {"replay", "report", "dashboard"} and not words & {
        key.partition(".")[0] for key in settings(TrainConfig)
    }


def test_help_tells_of_the_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gen1-train", "--help"])
    train.main()
    out = capsys.readouterr().out
    assert "optim.lr" in out and all(setting in out for setting in train.COMMANDS)
    assert "images=FOLDER" in out and "customize.lora_rank" in out and "optim.betas" not in out


@pytest.mark.parametrize(("name", "schema"), [("run_report", RunReportConfig), ("dashboard", DashboardConfig)])
def test_each_has_a_help_of_its_own(name: str, schema: type) -> None:
    text = help_text("gen1-train", conf_dir() / f"{name}.yaml", schema)
    assert all(f"  {key} " in text for key in settings(schema)) and "stage=" not in text


def test_a_report_is_written_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_folder(tmp_path / "my run" / "stage4")
    for more, page in (([], folder / "report.html"), ([f"output={tmp_path}/a page.html"], tmp_path / "a page.html")):
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["gen1-train", f"report={folder}", *more])
        train.main()
        assert capsys.readouterr().out == f"{page}\n" and page.stat().st_size > 5000


def test_a_page_replaces_a_named_file_only_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_folder(tmp_path / "run" / "stage4")
    page = tmp_path / "page.html"
    page.write_text("old")

    def report(*arguments: str) -> tuple[int, str]:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["gen1-train", f"report={folder}", *arguments])
        try:
            train.main()
        except SystemExit as ended:
            return int(str(ended.code)), capsys.readouterr().err
        return 0, capsys.readouterr().out

    assert report() == report() == (0, f"{folder / 'report.html'}\n")  # its own page always shows the newest state
    for output, words in (
        (page, "exists already: give another name, or add overwrite=true"),
        (
            folder / "metrics.csv",
            "must end with .html",
        ),
    ):
        before = output.read_bytes()
        code, line = report(f"output={output}")
        assert code == 2 and line.count("\n") == 1 and words in line
        assert output.read_bytes() == before
    assert report(f"output={page}", "overwrite=true") == (0, f"{page}\n") and page.stat().st_size > 5000


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    done = run("gen1_train.train", f"report={tmp_path}/nothing")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"gen1-train: error: report={tmp_path}/nothing: there is no such folder")


def test_the_command_works_away_from_the_checkout(tmp_path: Path) -> None:
    run_folder(tmp_path / "stage4")
    assert run_well("gen1_train.train", "report=stage4", cwd=tmp_path) == "stage4/report.html\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stage4"]  # Hydra leaves no folders behind


def test_a_report_needs_no_torch() -> None:
    """Looking at a run does not import what trains it, which takes seconds."""
    code = "import sys, gen1_train.train, gen1_train.reporting.page; assert not {'torch', 'wandb'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
