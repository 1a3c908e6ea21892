"""The warning comes when a validation loss stays above its best, once, and names a checkpoint that is there."""

from pathlib import Path

import pytest

from gen1_train.training.checkpoint import checkpoints_dir
from gen1_train.training.customize import CustomizeConfig
from gen1_train.training.overfit import Overfit

MEANINGS = {"val_loss": "it forgets", "subject_loss": "by heart"}


def heard(
    run: Path, losses: list[float], column: str = "val_loss", past=(), **settings
) -> tuple[list[str], list[float]]:
    """What is said of losses at steps 0, 50, …, and each one's share above the best."""
    said: list[str] = []
    overfit = Overfit(CustomizeConfig(**settings), MEANINGS, run, said.append, past)
    first = len(past)
    rows = [overfit.heard({column: loss}, 50 * (first + i)) for i, loss in enumerate(losses)]
    return said, [row[f"{column}_above_best"] for row in rows]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (100, 200, 300):
        (checkpoints_dir(tmp_path) / f"step-{step:08d}").mkdir(parents=True)
    return tmp_path


def test_a_loss_that_falls_is_not_warned_of(run):
    said, shares = heard(run, [1.0, 0.9, 0.8, 0.81, 0.83, 0.7])
    assert said == [] and shares[:3] == [0, 0, 0] and shares[4] == pytest.approx(0.0375)


def test_a_loss_that_stays_above_its_best_is_warned_of_once(run):
    said, _ = heard(run, [1.0, 0.9, 0.8, 0.85, 0.86, 0.9, 0.95])
    assert len(said) == 1
    assert "val_loss was 0.8 at step 100 and is 0.86 at step 200" in said[0] and "it forgets" in said[0]
    assert said[0].endswith(f"that of step 100: gen1-edit checkpoint={checkpoints_dir(run) / 'step-00000100'}")


def test_a_rise_for_a_moment_is_none(run):
    assert heard(run, [0.8, 0.9, 0.8, 0.9, 0.82, 0.9])[0] == []
    assert len(heard(run, [0.8, 0.9, 0.8, 0.9, 0.82, 0.9], patience=1)[0]) == 1
    assert heard(run, [0.8, 0.9, 0.9, 0.9], rise=0.2)[0] == []


def test_a_new_best_is_watched_anew(run):
    said, _ = heard(run, [1.0, 0.8, 0.9, 0.9, 0.7, 0.8, 0.8])
    assert [line.partition(" at step ")[2].split()[0] for line in said] == ["50", "200"]


def test_the_nearest_checkpoint_is_named_if_the_best_has_none(run, tmp_path_factory):
    said, _ = heard(run, [1.0, 0.5, 0.9, 0.9])
    assert f"that of step 100 (the nearest that checkpoint.keep has left): gen1-edit checkpoint={run}" in said[0]
    said, _ = heard(run, [0.5, 0.9, 0.9])
    assert "no step has made it better: read more prior data (data.root=" in said[0]
    said, _ = heard(tmp_path_factory.mktemp("none"), [1.0, 0.5, 0.9, 0.9])
    assert "no checkpoint is there yet: train anew with stage.steps=50" in said[0]


def test_a_resumed_run_remembers(run):
    losses = [1.0, 0.8, 0.9]
    past = [{"step": str(50 * i), "val_loss": str(loss), "lr": ""} for i, loss in enumerate(losses)]
    assert heard(run, [0.9], past=past) == (heard(run, [*losses, 0.9])[0], [pytest.approx(0.125)])
    assert len(heard(run, [0.9], past=past)[0]) == 1


def test_what_is_not_watched_is_left_alone(run):
    overfit = Overfit(CustomizeConfig(), MEANINGS, run, pytest.fail)
    assert overfit.heard({"val_loss_t1": 1.0, "lr": 2.0}, 0) == {}
