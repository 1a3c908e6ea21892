"""W&B: a run stays one run, whole and without repetition, and a server that is away does no harm."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gen1_train.errors import UserError
from gen1_train.training.loggers import WandbRows, loggers
from gen1_train.training.metrics import MetricsCSV
from tests.training.wandb_life import KEY, config, live, records, rows
from tests.training.wandb_server import wandb_server

wandb = pytest.importorskip("wandb")


def files(run: Path) -> list[Path]:
    """The .wandb files of the offline lives, in their order."""
    return sorted(run.glob("wandb/offline-run-*/*.wandb"))


def assert_no_key(run: Path) -> None:
    held = [path for path in run.rglob("*") if path.is_file()]
    assert held and not any(KEY.encode() in path.read_bytes() for path in held)


def expected(last: int, validated: list[int]) -> list[dict[str, Any]]:
    """The rows 1..last; W&B has what metrics.csv has, to the nine digits in which it does."""
    return [
        {"_step": step, "loss": pytest.approx(1 / step, rel=1e-8), **({"val_loss": 2.0} if step in validated else {})}
        for step in range(1, last + 1)
    ]


@pytest.mark.slow
def test_offline_each_life_holds_the_whole_run(tmp_path: Path) -> None:
    """The first life is killed at step 5, two steps after its checkpoint."""
    run = tmp_path / "run"
    assert live(run, 0, 5, killed=True, wandb="offline").returncode == 9
    done = live(run, 3, 6, wandb="offline")
    assert done.returncode == 0, done.stderr
    first, second = files(run)
    assert first.name == second.name == f"run-{(run / 'wandb.id').read_text()}.wandb"
    assert f"`wandb sync {second.parent}` sends them" in done.stdout and "warning" not in done.stdout
    assert rows(second) == expected(6, validated=[6])
    (started,) = [record.run for record in records(second) if record.WhichOneof("record_type") == "run"]
    settings = {item.key: json.loads(item.value_json) for item in started.config.update}
    assert settings["optim"]["lr"] == config().optim.lr and settings["stage"]["name"] == "3"
    assert (started.project, started.display_name) == ("gen1-train", "gen1-stage3")
    assert_no_key(run)


@contextmanager
def silent_server() -> Iterator[str]:
    """Takes every connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        held: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:  # it is closed
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_waited_for_and_no_longer(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with silent_server() as url:
        done = live(run, 0, 3, wandb="online", wandb_seconds=3, environment={"WANDB_BASE_URL": url})
    assert done.returncode == 0, done.stderr
    warning, where = done.stdout.splitlines()
    assert warning.startswith("warning: W&B does not answer within 3 s, this run goes on offline: ")
    (file,) = files(run)
    assert f"`wandb sync {file.parent}` sends them" in where
    assert rows(file) == expected(3, validated=[3])
    assert_no_key(run)


@pytest.mark.slow
def test_online_a_run_that_was_killed_goes_on_as_the_same_run(tmp_path: Path) -> None:
    """Its last checkpoint is of step 3, and the server had got steps 1 and 2 before it was killed at 5."""
    with wandb_server() as server:
        there = {"wandb": "online", "environment": {"WANDB_BASE_URL": server.url}}
        assert live(tmp_path / "run", 0, 2, **there).returncode == 0
        assert server.rows == expected(2, validated=[2])
        assert live(tmp_path / "run", 2, 5, wandb="offline", killed=True).returncode == 9
        done = live(tmp_path / "run", 3, 7, **there)
        assert (done.returncode, done.stdout) == (0, "")
        assert server.rows == expected(7, validated=[2, 7])
    assert_no_key(tmp_path / "run")


@pytest.mark.slow
def test_a_server_that_falls_silent_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with wandb_server() as server:
        server.silent = True
        done = live(tmp_path / "run", 0, 3, wandb="online", wandb_seconds=3, environment={"WANDB_BASE_URL": server.url})
    assert done.returncode == 0, done.stderr
    warning, where = done.stdout.splitlines()
    assert warning.startswith("warning: W&B has not got all: ")
    (file,) = (tmp_path / "run").glob("wandb/run-*/*.wandb")
    assert f"`wandb sync {file.parent}` sends them" in where
    assert rows(file) == expected(3, validated=[3])


class StandIn:
    """W&B's run, as far as it is used; it has the steps before `starting_step` already."""

    def __init__(self, folder: Path, starting_step: int) -> None:
        self.starting_step, self.dir = starting_step, str(folder / "files")
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.finished: list[int] = []
        self.error: Exception | None = None

    def log(self, values: dict[str, Any], step: int) -> None:
        if self.error:
            raise self.error
        self.logged.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.finished.append(exit_code)
        if self.error:
            raise self.error


@pytest.fixture
def said() -> list[str]:
    return []


def logger(run: Path, resume_step: int, online: StandIn, said: list[str], patch: pytest.MonkeyPatch) -> WandbRows:
    patch.setattr(wandb, "login", lambda **more: True)
    patch.setattr(wandb, "init", lambda **more: online)
    _, made = loggers(config(wandb="online"), run, resume_step, said.append)
    assert isinstance(made, WandbRows) and made.experiment is online
    return made


@pytest.mark.parametrize(("has", "sent"), [(0, [1, 2, 3, 4, 5]), (3, [3, 4, 5]), (4, [4, 5]), (5, [5])])
def test_online_nothing_is_sent_twice_or_left_out(tmp_path, said, monkeypatch, has, sent) -> None:
    """From step 3 on again, of 5 that were done; W&B has some of them."""
    log = MetricsCSV(tmp_path / "metrics.csv", 0)
    for step in range(1, 6):
        log.log_metrics({"loss": 1 / step}, step=step)
    online = StandIn(tmp_path, has)
    made = logger(tmp_path, 3, online, said, monkeypatch)
    for step in (4, 5):
        made.log_metrics({"loss": 1 / step, "epoch": 0}, step=step)
    assert [step for step, _ in online.logged] == sent
    assert all(values == {"loss": pytest.approx(1 / step)} for step, values in online.logged)
    made.finalize("failed")
    made.finalize("success")
    assert online.finished == [1] and said == []


def test_what_w_and_b_does_not_take_is_said_once_and_ends_nothing(tmp_path, said, monkeypatch) -> None:
    online = StandIn(tmp_path, 0)
    made = logger(tmp_path, 0, online, said, monkeypatch)
    online.error = ConnectionError("it is gone\nand more")
    for step in (1, 2):
        made.log_metrics({"loss": 1.0}, step=step)
        made.log_videos(step, {"edited": tmp_path / "none.mp4"})
    assert len(said) == 1 and said[0].startswith("warning: W&B does not take") and said[0].endswith("it is gone")
    made.finalize("success")
    assert "W&B has not got all: it is gone" in said[1] and f"`wandb sync {tmp_path}` sends them" in said[2]
    made.log_metrics({"loss": 1.0}, step=3)
    assert made.experiment is None and len(said) == 3


def test_videos_go_as_files(tmp_path, said, monkeypatch) -> None:
    online = StandIn(tmp_path, 0)
    made = logger(tmp_path, 0, online, said, monkeypatch)
    (tmp_path / "edited.mp4").write_bytes(b"a film")
    taken: dict[str, Any] = {}
    monkeypatch.setattr(wandb, "Video", lambda path, format: taken.setdefault(path, SimpleNamespace(format=format)))
    made.log_videos(7, {"edited": tmp_path / "edited.mp4"})
    assert online.logged == [(7, {"edited": taken[str(tmp_path / "edited.mp4")]})]
    assert taken[str(tmp_path / "edited.mp4")].format == "mp4"


def test_online_without_a_login_is_refused_and_auto_is_offline(tmp_path, said, monkeypatch) -> None:
    monkeypatch.setattr(wandb, "login", lambda **more: False)
    with pytest.raises(UserError, match=r"run `wandb login`, or set log\.wandb=offline"):
        loggers(config(wandb="online"), tmp_path, 0, said.append)
    _, made = loggers(config(wandb="auto"), tmp_path, 0, said.append)
    assert isinstance(made, WandbRows) and not made.online
    assert len(loggers(config(wandb="disabled"), tmp_path, 0, said.append)) == 1
