"""The whole experiment, a step of everything: its commands fit together and are not done again."""

from pathlib import Path

import pytest

from miniature import experiment
from miniature.experiment import EVALUATIONS, Evaluation, Experiment, write_texture
from miniature.scene import sample_scene
from miniature.world import SEEDS, World

FEW = ("methods=[gen1]", "omega_t=[1]", "t_s=[0]")


def test_pictures_of_a_texture_come_from_the_training_split(tmp_path: Path) -> None:
    write_texture(tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 15
    scenes = [sample_scene(experiment.TEXTURE_SEED * SEEDS + number, "train") for number in range(15)]
    assert len({solid.colour for scene in scenes for solid in scene.solids}) > 5  # they share the texture alone


def test_every_evaluation_is_of_a_run_that_a_step_trains() -> None:
    assert {evaluation.run for evaluation in EVALUATIONS.values()} == {
        *(f"miniature/stage{stage}" for stage in (3, 4, 5)),
        "no-images/stage4",
        "texture/customize",
    }


@pytest.mark.parametrize(("given", "said"), [(["stages", "bake"], "no step 'bake'; choose from data"), (["-x"], "-x")])
def test_a_wrong_argument_is_one_line(
    given: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["experiment", "--output", str(tmp_path / "out"), *given])
    with pytest.raises(SystemExit) as end:
        experiment.main()
    error = capsys.readouterr().err
    assert end.value.code == 2 and said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_experiment_with_a_step_of_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    few = {
        "TRAIN": World(clips=8, images=64, split="train", frames=32, height=128, width=224),
        "STEPS": dict.fromkeys(experiment.STEPS, 1),
        "PRIOR": [*experiment.PRIOR, "stage.steps=1"],
        "CUSTOM": [*experiment.CUSTOM, "stage.steps=1"],
        "PAIRS": 2,
        "SAMPLING": [*experiment.SAMPLING, "steps=1", "workers=1"],
        "EVALUATIONS": {
            "time": Evaluation("miniature/stage5", settings=FEW),
            "stage3": Evaluation("miniature/stage3", settings=FEW),
            "no-images": Evaluation("no-images/stage4", pairs="pairs-text.csv", settings=FEW),
            "texture-before": Evaluation("miniature/stage5", cases="texture-cases", settings=FEW),
            "texture-after": Evaluation("texture/customize", cases="texture-cases", settings=FEW),
        },
    }
    for name, value in few.items():
        monkeypatch.setattr(experiment, name, value)
    for step in (whole := Experiment(tmp_path)).steps.values():
        step()
    page = (tmp_path / "docs" / "results.md").read_text()
    assert all(part in page for part in ("stage 3", "no images", "Customization")) and "nan" not in page
    for picture in ("results.jpg", "customization.jpg"):
        assert (tmp_path / "docs" / picture).stat().st_size > 1000

    capfd.readouterr()
    whole.stages()
    assert capfd.readouterr().out.count("finished") >= 5 and len(list(tmp_path.glob("runs/*/stage*"))) == 7
