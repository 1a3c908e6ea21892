"""What a start resolves: the predecessor once, and the same whether the run is new or resumed."""

from dataclasses import replace
from pathlib import Path

import pytest

from gen1_train.diffusion.loss import LossConfig
from gen1_train.diffusion.schedule import NoiseConfig
from gen1_train.errors import UserError
from gen1_train.reporting.rows import read_metrics
from gen1_train.training.checkpoints.checkpoint import Checkpoint, latest
from gen1_train.training.draws import TimestepConfig
from gen1_train.training.module import DiffusionConfig
from gen1_train.training.ready import prepare
from gen1_train.training.run import train
from gen1_train.training.stage_callbacks import trained_lengths
from gen1_train.training.stages import RESETS, read_recorded
from tests.made import make_shard_set
from tests.tensors_of import assert_same_tensors
from tests.training.alone import config, last, make_start


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ready")
    make_start(root)
    return root


@pytest.mark.slow
def test_a_run_verifies_its_predecessor_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verifying reads every byte, which is gigabytes at full size."""
    verified: list[Path] = []
    verify = Checkpoint.verify

    def record(checkpoint: Checkpoint, which: str | None = None) -> None:
        verified.append(checkpoint.path)
        verify(checkpoint, which)

    monkeypatch.setattr(Checkpoint, "verify", record)
    train(config(root, "once", steps=1))
    assert len([path for path in verified if path.is_relative_to(root / "start")]) == 1


@pytest.mark.slow
def test_a_new_run_takes_weights_and_what_the_stage_does_not_reset(root: Path) -> None:
    settings = config(root, "new", steps=1)
    run = Path(settings.output) / settings.name / "stage3"
    ready = prepare(settings, run, None)
    assert ready.predecessor is not None and ready.predecessor.info.stage == "2"
    assert (ready.start, ready.source, ready.keeps, ready.new_changes) == (0, None, (), ())
    settings.stage.resets = ["ema"]
    settings.init.weights = "raw"
    ready = prepare(settings, run, None)
    assert ready.source == ready.predecessor and ready.keeps == ("optimizer",)
    assert not run.exists()


def test_a_resumed_run_continues_with_its_own_checkpoint(root: Path) -> None:
    settings = config(root, "resumed", steps=2)
    train(settings)
    settings.stage.steps = 3
    run = Path(settings.output) / settings.name / "stage3"
    resume = latest(run)
    assert resume is not None
    ready = prepare(settings, run, resume)
    assert (ready.start, ready.source, ready.predecessor, ready.keeps) == (2, resume, None, RESETS)
    assert resume.info.frames == 4  # of the set's clips; the model has positions for 8


def test_clips_that_are_shorter_than_the_model_could_take_are_reported(root: Path, caplog, tmp_path: Path) -> None:
    settings = config(root, "short", steps=1)
    line = "clips have 4 frames and the model has positions for 8: edits will take 4 frames at once"
    with caplog.at_level("INFO"):
        prepare(settings, tmp_path / "run", None)
    assert [record.getMessage() for record in caplog.records].count(line) == 1
    caplog.clear()
    settings.model.max_frames = 4
    with caplog.at_level("INFO"):
        prepare(settings, tmp_path / "run", None)
    assert line not in caplog.text and "edits will take" not in caplog.text


def test_a_run_of_images_alone_inherits_the_length_of_its_predecessors_clips(root: Path, tmp_path: Path) -> None:
    settings = config(root, "images", steps=1)
    ready = prepare(settings, tmp_path / "run", None)
    assert trained_lengths(ready) == [4]
    settings.data.image_ratio = 1.0
    ready = prepare(settings, tmp_path / "run", None)
    assert ready.predecessor is not None and trained_lengths(ready) == []  # of stage 2, which has seen no clip
    info = replace(ready.predecessor.info, frames=6)
    assert trained_lengths(replace(ready, predecessor=replace(ready.predecessor, info=info))) == [6]


def test_a_missing_set_is_reported_before_a_missing_predecessor(root: Path, tmp_path: Path) -> None:
    settings = config(root, "missing", steps=1)
    settings.init.checkpoint = None
    with pytest.raises(UserError, match="gen1-train stage=2"):
        prepare(settings, tmp_path / "run", None)
    settings.data.root = None
    with pytest.raises(UserError, match=r"data\.root is not given"):
        prepare(settings, tmp_path / "run", None)


def test_another_noise_schedule_than_the_predecessors_is_reported(root: Path, caplog) -> None:
    settings = config(root, "noise", steps=1)
    settings.diffusion.noise.beta_end = 0.02
    prepare(settings, Path(settings.output) / settings.name / "stage3", None)
    [line] = [record.getMessage() for record in caplog.records if "noise" in record.getMessage()]
    assert (
        line.startswith("diffusion.noise.beta_end: 0.012 -> 0.02: the weights of ") and "learned for the first" in line
    )


@pytest.mark.slow
def test_the_dials_of_a_run_are_recorded_and_its_resume_follows_them(root: Path) -> None:
    settings = config(root, "dials", steps=2)
    noise = NoiseConfig(zero_terminal_snr=True, shared=0.5, offset=0.1, prediction="x0")
    settings.diffusion = DiffusionConfig(noise, LossConfig("min_snr"), TimestepConfig("shifted"))
    settings.optim.lr_scales = ["*temporal*:10"]
    train(settings)
    settings.stage.steps = 3
    train(settings)
    run = Path(settings.output) / settings.name / "stage3"
    checkpoint = latest(run)
    assert checkpoint is not None and checkpoint.info.step == 3 and read_recorded(checkpoint).noise == noise
    losses = [float(row["loss"]) for row in read_metrics(run / "metrics.csv")]
    assert len(losses) == 3 and all(0 < loss < 10 for loss in losses)
    straight = config(root, "dials-straight", steps=3)
    straight.diffusion, straight.optim = settings.diffusion, settings.optim
    train(straight)
    assert_same_tensors(checkpoint.path, last(root, "dials-straight"))


@pytest.mark.slow
def test_a_stage_may_have_longer_clips_than_its_predecessor(root: Path, tmp_path: Path) -> None:
    train(config(root, "short", steps=1))
    longer = config(tmp_path, "long", steps=1)
    longer.stage = replace(longer.stage, name="4", predecessor="3", new=["positions"])
    longer.model = replace(longer.model, max_frames=12)
    longer.data.root = str(make_shard_set(tmp_path / "set", images=60, frames=12))
    longer.init.checkpoint = str(last(root, "short"))
    train(longer)
    found = latest(Path(longer.output) / longer.name / "stage4")
    assert found is not None and read_recorded(found).window == 12
    longer.name, longer.stage.resets = "kept", ["ema"]
    longer.init.weights = "raw"
    with pytest.raises(
        UserError, match=r"model\.max_frames=12, but .* has fewer: .* use stage\.resets=\[optimizer,ema\]"
    ):
        train(longer)
