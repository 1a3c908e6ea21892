"""The warning is logged once when a validation loss stays above its best, and names an existing checkpoint."""

from pathlib import Path

import pytest

from gen1_train.training.checkpoints.checkpoint import checkpoints_dir
from gen1_train.training.customization.customize import CustomizeConfig
from gen1_train.training.customization.overfit import Overfit

MEANINGS = {"val_loss": "it forgets", "subject_loss": "by heart"}


class Watch:
    """Observes validation losses at steps 0, 50, …"""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, run: Path, losses: list[float], past=(), **settings) -> tuple[list[str], list[float]]:
        """Returns the lines that are printed, and by what share each loss exceeds the best."""
        self._capsys.readouterr()
        overfit = Overfit(CustomizeConfig(**settings), MEANINGS, run, past)
        rows = [overfit.observe({"val_loss": loss}, 50 * (len(past) + i)) for i, loss in enumerate(losses)]
        return self._capsys.readouterr().out.splitlines(), [row["val_loss_above_best"] for row in rows]


@pytest.fixture
def watch(capsys: pytest.CaptureFixture[str]) -> Watch:
    return Watch(capsys)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (100, 200, 300):
        (checkpoints_dir(tmp_path) / f"step-{step:08d}").mkdir(parents=True)
    return tmp_path


def test_there_is_no_warning_about_a_falling_loss(run, watch):
    lines, shares = watch(run, [1.0, 0.9, 0.8, 0.81, 0.83, 0.7])
    assert lines == [] and shares[:3] == [0, 0, 0] and shares[4] == pytest.approx(0.0375)


def test_there_is_one_warning_about_a_loss_that_stays_above_its_best(run, watch):
    lines, _ = watch(run, [1.0, 0.9, 0.8, 0.85, 0.86, 0.9, 0.95])
    assert len(lines) == 1
    assert "warning: over-fitting: val_loss was 0.8 at step 100 and is 0.86 at step 200" in lines[0]
    assert "it forgets" in lines[0]
    assert lines[0].endswith(
        f"use the checkpoint of step 100: gen1-edit checkpoint={checkpoints_dir(run) / 'step-00000100'}"
    )


def test_there_is_no_warning_about_a_short_rise(run, watch):
    assert watch(run, [0.8, 0.9, 0.8, 0.9, 0.82, 0.9])[0] == []
    assert len(watch(run, [0.8, 0.9, 0.8, 0.9, 0.82, 0.9], patience=1)[0]) == 1
    assert watch(run, [0.8, 0.9, 0.9, 0.9], rise=0.2)[0] == []


def test_there_can_be_another_warning_after_a_new_best(run, watch):
    lines, _ = watch(run, [1.0, 0.8, 0.9, 0.9, 0.7, 0.8, 0.8])
    assert [line.partition(" at step ")[2].split()[0] for line in lines] == ["50", "200"]


def test_the_nearest_checkpoint_is_named_if_the_best_has_none(run, watch, tmp_path_factory):
    lines, _ = watch(run, [1.0, 0.5, 0.9, 0.9])
    assert f"of step 100 (the nearest one that was kept, see checkpoint.keep): gen1-edit checkpoint={run}" in lines[0]
    lines, _ = watch(run, [0.5, 0.9, 0.9])
    assert "no step has improved it: read more prior data (data.root=" in lines[0]
    lines, _ = watch(tmp_path_factory.mktemp("none"), [1.0, 0.5, 0.9, 0.9])
    assert "there is no checkpoint yet: train again with stage.steps=50" in lines[0]


def test_a_resumed_run_remembers_the_best(run, watch):
    losses = [1.0, 0.8, 0.9]
    past = [{"step": str(50 * i), "val_loss": str(loss), "lr": ""} for i, loss in enumerate(losses)]
    assert watch(run, [0.9], past=past) == (watch(run, [*losses, 0.9])[0], [pytest.approx(0.125)])
    assert len(watch(run, [0.9], past=past)[0]) == 1


def test_other_columns_are_ignored(run):
    overfit = Overfit(CustomizeConfig(), MEANINGS, run)
    assert overfit.observe({"val_loss_t1": 1.0, "lr": 2.0}, 0) == {}
