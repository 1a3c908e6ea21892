"""Two gen1-data in one output."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from data_tools.prepare import DataToolsConfig, alone
from gen1_train.errors import UserError
from gen1_train.system.locks import LOCK, this_process


def config(output: Path, step: str) -> DataToolsConfig:
    return DataToolsConfig(source="videos", output=str(output), step=step)


@pytest.mark.parametrize("step", ["all", "plan", "freeze"])
def test_one_process_at_a_time_plans_and_freezes(tmp_path: Path, step: str) -> None:
    output = tmp_path / "set"
    words = r"set is in use by pid .*: wait until it has ended, or choose another output="
    with alone(config(output, "all")), pytest.raises(UserError, match=words), alone(config(output, step)):
        pass
    assert not output.exists()
    with alone(config(output, step)):
        assert [path.name for path in output.iterdir()] == [LOCK]


@pytest.mark.parametrize("step", ["task", "missing", "report"])
def test_tasks_are_done_by_many(tmp_path: Path, step: str) -> None:
    with alone(config(tmp_path, "all")), alone(config(tmp_path, step)), alone(config(tmp_path, step)):
        pass


def test_a_frozen_set_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with alone(config(tmp_path, "all")):
        assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_the_lock_of_a_killed_freeze_is_removed_from_a_frozen_set(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    gone = replace(this_process(), started="1", token="0" * 32)
    (tmp_path / LOCK).write_text(json.dumps(asdict(gone)))
    with alone(config(tmp_path, "all")):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_frozen_set_whose_lock_is_held_is_read(tmp_path: Path) -> None:
    with alone(config(tmp_path, "all")):
        (tmp_path / "manifest.json").write_text("{}")
        with alone(config(tmp_path, "all")):
            assert (tmp_path / LOCK).exists()
        assert (tmp_path / LOCK).exists()
