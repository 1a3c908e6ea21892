"""A sequence of commands: each is printed and timed, and a failure ends it with the command's exit code."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from gen1_train.errors import INCOMPLETE
from gen1_train.system.console import console
from miniature.workflow import Workflow


def test_a_command_runs_in_a_process_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The process has the output of this one, and a failure of it ends the workflow in one more line."""
    workflow = Workflow(tmp_path, "make demo")
    world = str(tmp_path / "world")
    with console("demo"):
        workflow.call("world", "miniature.world", world, "--clips=0", "--images=1", "--size=32x32")
        with pytest.raises(SystemExit) as ended:
            workflow.call("bad", "miniature.world", world, "--clips=-1")
    output, errors = capfd.readouterr()
    assert ended.value.code == 2
    assert f"\n== world\n$ python -m miniature.world {world} --clips=0" in output
    assert "python -m miniature.world: error: clips=-1 is out of range" in errors
    assert output.endswith("\ndemo: stopped at: bad. Fix it and call make demo again: it continues from here.\n")
    assert (tmp_path / "world" / "image-0000.png").is_file()


def test_seconds_are_summed_over_the_calls_of_a_step(tmp_path: Path) -> None:
    calls = []

    def run(module: str, arguments: Sequence[str]) -> int:
        calls.append((module, *arguments))
        return INCOMPLETE  # unreadable files are no failure

    Workflow(tmp_path, run=run).call("data", "data_tools.main", "recipe=tiny")
    first = Workflow(tmp_path).timings()
    again = Workflow(tmp_path, run=run)
    again.call("data", "data_tools.main", "recipe=tiny")
    assert calls == [("data_tools.main", "recipe=tiny")] * 2
    assert first.keys() == again.timings().keys() == {"data"} and again.timings()["data"] > first["data"]


def test_our_commands_are_printed_by_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with console("demo"):
        Workflow(tmp_path, run=lambda module, arguments: 0).call("stage 2", "gen1_train.train", "stage=2", "seed=1")
    assert capsys.readouterr().out == "\n== stage 2\n$ gen1-train stage=2 seed=1\n"
