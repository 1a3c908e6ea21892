"""W&B: a run stays one run, complete and without repetition, and an unreachable server does no harm."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gen1_train.errors import UserError
from gen1_train.training.callbacks.loggers import WandbRows, loggers
from gen1_train.training.callbacks.metrics import MetricsCSV
from tests.training.callbacks.wandb_life import KEY, config, live, records, rows
from tests.training.callbacks.wandb_server import wandb_server

wandb = pytest.importorskip("wandb")


def files(run: Path) -> list[Path]:
    """Returns the .wandb files of the offline starts, in order."""
    return sorted(run.glob("wandb/offline-run-*/*.wandb"))


def assert_no_key(run: Path) -> None:
    held = [path for path in run.rglob("*") if path.is_file()]
    assert held and not any(KEY.encode() in path.read_bytes() for path in held)


def expected(last: int, validated: list[int]) -> list[dict[str, Any]]:
    """Returns the rows 1..last; W&B gets the nine digits that metrics.csv has."""
    return [
        {"_step": step, "loss": pytest.approx(1 / step, rel=1e-8), **({"val_loss": 2.0} if step in validated else {})}
        for step in range(1, last + 1)
    ]


@pytest.mark.slow
def test_offline_each_start_holds_the_whole_run(tmp_path: Path) -> None:
    """The first start is killed at step 5, two steps after its checkpoint."""
    run = tmp_path / "run"
    assert live(run, 0, 5, killed=True, wandb="offline").returncode == 9
    done = live(run, 3, 6, wandb="offline")
    assert done.returncode == 0, done.stderr
    first, second = files(run)
    assert first.name == second.name == f"run-{(run / 'wandb.id').read_text()}.wandb"
    assert f"send them with `wandb sync {second.parent}`" in done.stdout and "warning" not in done.stdout
    assert rows(second) == expected(6, validated=[6])
    (started,) = [record.run for record in records(second) if record.WhichOneof("record_type") == "run"]
    settings = {item.key: json.loads(item.value_json) for item in started.config.update}
    assert settings["optim"]["lr"] == config().optim.lr and settings["stage"]["name"] == "3"
    assert (started.project, started.display_name) == ("gen1-train", "gen1-stage3")
    assert_no_key(run)


@contextmanager
def silent_server() -> Iterator[str]:
    """Accepts every connection and never answers."""
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
def test_waiting_for_a_server_that_does_not_answer_is_limited(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with silent_server() as url:
        done = live(run, 0, 3, wandb="online", wandb_seconds=3, environment={"WANDB_BASE_URL": url})
    assert done.returncode == 0, done.stderr
    warning, where = done.stdout.splitlines()
    assert warning.startswith("gen1-train: warning: W&B does not answer within 3 s, the run continues offline: ")
    (file,) = files(run)
    assert f"send them with `wandb sync {file.parent}`" in where
    assert rows(file) == expected(3, validated=[3])
    assert_no_key(run)


@pytest.mark.slow
def test_online_a_killed_run_resumes_as_the_same_run(tmp_path: Path) -> None:
    """Its last checkpoint is of step 3, and the server received steps 1 and 2 before the run was killed at step 5."""
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
def test_a_server_that_stops_answering_does_not_delay_the_end(tmp_path: Path) -> None:
    with wandb_server() as server:
        server.silent = True
        done = live(tmp_path / "run", 0, 3, wandb="online", wandb_seconds=3, environment={"WANDB_BASE_URL": server.url})
    assert done.returncode == 0, done.stderr
    warning, where = done.stdout.splitlines()
    assert warning.startswith("gen1-train: warning: W&B did not receive all rows: ")
    (file,) = (tmp_path / "run").glob("wandb/run-*/*.wandb")
    assert f"send them with `wandb sync {file.parent}`" in where
    assert rows(file) == expected(3, validated=[3])


class StandIn:
    """Stands in for W&B's run; it has the steps before `starting_step` already."""

    def __init__(self, folder: Path, starting_step: int) -> None:
        self.starting_step = starting_step
        self.dir = str(folder / "files")
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


def logger(run: Path, resume_step: int, online: StandIn, patch: pytest.MonkeyPatch) -> WandbRows:
    patch.setattr(wandb, "login", lambda **more: True)
    patch.setattr(wandb, "init", lambda **more: online)
    _, made = loggers(config(wandb="online"), run, resume_step)
    assert isinstance(made, WandbRows) and made.experiment is online
    return made


@pytest.mark.parametrize(("has", "sent"), [(0, [1, 2, 3, 4, 5]), (3, [3, 4, 5]), (4, [4, 5]), (5, [5])])
def test_online_every_row_is_sent_exactly_once(tmp_path, capsys, monkeypatch, has, sent) -> None:
    """The run resumes from step 3 of the 5 steps done; W&B has some of them."""
    log = MetricsCSV(tmp_path / "metrics.csv", 0)
    for step in range(1, 6):
        log.log_metrics({"loss": 1 / step}, step=step)
    online = StandIn(tmp_path, has)
    made = logger(tmp_path, 3, online, monkeypatch)
    for step in (4, 5):
        made.log_metrics({"loss": 1 / step, "epoch": 0}, step=step)
    assert [step for step, _ in online.logged] == sent
    assert all(values == {"loss": pytest.approx(1 / step)} for step, values in online.logged)
    made.finalize("failed")
    made.finalize("success")
    assert online.finished == [1] and capsys.readouterr().out == ""


def test_a_failing_server_is_reported_once_and_ends_nothing(tmp_path, capsys, monkeypatch) -> None:
    online = StandIn(tmp_path, 0)
    made = logger(tmp_path, 0, online, monkeypatch)
    online.error = ConnectionError("it is gone\nand more")
    for step in (1, 2):
        made.log_metrics({"loss": 1.0}, step=step)
        made.log_videos(step, {"edited": tmp_path / "none.mp4"})
    (warning,) = capsys.readouterr().out.splitlines()
    assert warning.startswith("gen1-train: warning: W&B does not accept rows") and warning.endswith("it is gone")
    made.finalize("success")
    end, remedy = capsys.readouterr().out.splitlines()
    assert "W&B did not receive all rows: it is gone" in end and f"send them with `wandb sync {tmp_path}`" in remedy
    made.log_metrics({"loss": 1.0}, step=3)
    assert made.experiment is None and capsys.readouterr().out == ""


def test_videos_are_sent_as_files(tmp_path, monkeypatch) -> None:
    online = StandIn(tmp_path, 0)
    made = logger(tmp_path, 0, online, monkeypatch)
    (tmp_path / "edited.mp4").write_bytes(b"a film")
    taken: dict[str, Any] = {}
    monkeypatch.setattr(wandb, "Video", lambda path, format: taken.setdefault(path, SimpleNamespace(format=format)))
    made.log_videos(7, {"edited": tmp_path / "edited.mp4"})
    assert online.logged == [(7, {"edited": taken[str(tmp_path / "edited.mp4")]})]
    assert taken[str(tmp_path / "edited.mp4")].format == "mp4"


def test_online_without_a_login_is_refused_and_auto_is_offline(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(wandb, "login", lambda **more: False)
    with pytest.raises(UserError, match=r"run `wandb login`, or set log\.wandb=offline"):
        loggers(config(wandb="online"), tmp_path, 0)
    _, made = loggers(config(wandb="auto"), tmp_path, 0)
    assert isinstance(made, WandbRows) and not made.online
    assert len(loggers(config(wandb="disabled"), tmp_path, 0)) == 1


@pytest.mark.parametrize("theirs", ["../../elsewhere", "a/b", "", "x" * 101, "a\n"])
def test_the_id_of_a_wandb_run_is_a_plain_name(tmp_path: Path, theirs: str) -> None:
    """It is a part of the paths of W&B's files, and may come from others with the run folder."""
    (tmp_path / "wandb.id").write_text(theirs)
    identity = WandbRows(config(), tmp_path, 0)._identity()
    assert re.fullmatch(r"[0-9a-f]{8}", identity)
    assert WandbRows(config(), tmp_path, 0)._identity() == identity == (tmp_path / "wandb.id").read_text()
