"""The experiment: its commands fit together, and finished ones are not run again."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from miniature import experiment
from miniature.experiment import EVALUATIONS, Evaluation, Experiment, write_texture
from miniature.world.scene import sample_scene
from miniature.world.world import SCENES_PER_SEED, World
from tests.running import run_well

FEW = ("methods=[gen1]", "omega_t=[1]", "t_s=[0]")


def test_pictures_of_a_texture_are_of_the_training_split(tmp_path: Path) -> None:
    write_texture(tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 15
    scenes = [sample_scene(experiment.TEXTURE_SEED * SCENES_PER_SEED + number, "train") for number in range(15)]
    assert len({solid.color for scene in scenes for solid in scene.solids}) > 5  # they have only the texture in common


def test_every_evaluation_uses_a_run_that_a_step_trains() -> None:
    assert {evaluation.run for evaluation in EVALUATIONS.values()} == {
        *(f"miniature/stage{stage}" for stage in (3, 4, 5)),
        "no-images/stage4",
        "texture/customize",
    }


@pytest.mark.parametrize(
    ("arguments", "message"), [(["stages", "bake"], "no step 'bake'; choose from data"), (["-x"], "-x")]
)
def test_a_wrong_argument_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["experiment", "--output", str(tmp_path / "out"), *arguments])
    with pytest.raises(SystemExit) as end:
        experiment.main()
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_of_the_experiment_works_on_the_results_of_the_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole experiment with one step of training per stage. Called again, it trains nothing."""
    small = {
        "TRAIN": World(clips=4, images=32, split="train", frames=32, height=64, width=112),
        "STEPS": dict.fromkeys(experiment.STEPS, 1),
        "PAIRS": 2,
        "EVALUATIONS": {
            "time": Evaluation("miniature/stage5", settings=FEW),
            "stage3": Evaluation("miniature/stage3", settings=FEW),
            "no-images": Evaluation("no-images/stage4", pairs="pairs-text.csv", settings=FEW),
            "texture-before": Evaluation("miniature/stage5", cases="texture-cases", settings=FEW),
            "texture-after": Evaluation("texture/customize", cases="texture-cases", settings=FEW),
        },
    }
    for name, value in small.items():
        monkeypatch.setattr(experiment, name, value)
    outputs = []

    def run_command(module: str, arguments: Sequence[str]) -> int:
        outputs.append(run_well(module, *arguments, *quick(module, arguments)))
        return 0

    whole = Experiment(tmp_path, run_command)
    whole.run([])
    page = (tmp_path / "docs" / "results.md").read_text()
    assert all(part in page for part in ("stage 3", "no images", "Customization")) and "nan" not in page
    for picture in ("results.jpg", "customization.jpg"):
        assert (tmp_path / "docs" / picture).stat().st_size > 1000

    outputs.clear()
    whole.stages()
    assert "".join(outputs).count("finished") >= 5 and len(list(tmp_path.glob("runs/*/stage*"))) == 7


def quick(module: str, arguments: Sequence[str]) -> list[str]:
    """Settings that make a command fast. One evaluation uses two workers, and one stage W&B, as in the experiment."""
    if module == "gen1_train.evaluate":
        return [
            "steps=1",
            *([] if any(argument.endswith("evaluation/time") for argument in arguments) else ["workers=1"]),
        ]
    if module != "gen1_train.train" or "stage=1" in arguments:
        return []
    if "stage=prior" in arguments:
        return ["stage.steps=1", "data.batch=8", "log.wandb=disabled"]
    settings = ["stage.steps=1", "data.batch_clips=2", "validation.clips=2"]
    return settings if "stage=5" in arguments else [*settings, "log.wandb=disabled"]
