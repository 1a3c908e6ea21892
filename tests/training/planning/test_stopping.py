"""What a run needs from the signal to a whole checkpoint."""

from pathlib import Path

import pytest

from gen1_train.training.planning import stopping
from gen1_train.training.planning.stopping import Rates, grace, grace_lines, measure, saving_seconds
from tests.running import REPOSITORY

SLOW = Rates(written=2e8, hashed=1e9)


def lines(monkeypatch: pytest.MonkeyPatch, size: int, world: int, step: float | None, rates: Rates = SLOW) -> list[str]:
    monkeypatch.setattr(stopping, "measure", lambda *_: rates)
    return list(grace_lines(size, world, step, Path("runs/gen1/stage4")))


def test_ranks_copy_and_hash_at_once_and_share_the_disk() -> None:
    assert saving_seconds(16 * 10**9, 1, SLOW) == pytest.approx(8 + 16 + 80)
    assert saving_seconds(16 * 10**9, 8, SLOW) == pytest.approx(1 + 2 + 80)


def test_the_grace_has_a_margin_and_two_steps() -> None:
    assert grace(saving=83.0, step=20.0) == 200  # 1.5 * 123 + 15 = 199.5
    assert grace(saving=0.0, step=0.0) == 20


def test_a_slow_disk_needs_more_than_the_scripts_and_slurm_give(monkeypatch: pytest.MonkeyPatch) -> None:
    first, limit, preemption = lines(monkeypatch, 60 * 10**9, 8, 20.0)
    assert first == (
        "grace: a checkpoint takes 311 s (the disk: 0.2 GB/s, measured here with 0.27 GB), after up to 2 steps of "
        "20 s: allow 550 s, with a margin"
    )
    assert "--signal=B:USR1@550" in limit and "300 s" in limit
    assert "GraceTime=550" in preemption


def test_what_is_enough_is_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = lines(monkeypatch, 10**6, 1, 0.1)
    assert line.endswith("allow 20 s, with a margin")
    _, preemption = lines(monkeypatch, 16 * 10**9, 8, 1.0)
    assert "GraceTime=" in preemption


def test_without_the_time_of_a_step_only_the_checkpoint_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = lines(monkeypatch, 10**9, 1, None)
    assert line.endswith("after up to 2 steps, whose time is not known yet")


def test_the_disk_is_measured_where_the_run_will_be_and_nothing_is_left(tmp_path: Path) -> None:
    rates = measure(tmp_path / "not" / "yet", 2**20)
    assert rates.written > 0 and rates.hashed > 0
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> Rates:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(stopping, "measure", refuse)
    (line,) = grace_lines(10**9, 1, 1.0, tmp_path)
    assert line == f"grace: not known, because nothing can be written for {tmp_path} (Permission denied)"


@pytest.mark.parametrize("stage", range(2, 6))
def test_the_scripts_give_what_the_plan_says_of_them(stage: int) -> None:
    script = (REPOSITORY / "slurm" / f"stage{stage}.sh").read_text()
    assert f"#SBATCH --signal=B:USR1@{stopping.SCRIPTS}\n" in script
