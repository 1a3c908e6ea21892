"""gen1-eval on a real checkpoint: tiny, untrained, with the miniature's estimators."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gen1_train.editor import Gen1Editor
from gen1_train.errors import UserError
from gen1_train.evaluate import EvaluateConfig, evaluate, share_of
from tests.evaluation.fake import write_pairs
from tests.made_checkpoint import write_checkpoint, write_prior
from tests.pages import Page
from tests.running import run

FEW = {"omega_t": [1.0], "t_s": [0, 7], "init_strength": [0.5], "steps": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and a list of two pairs whose content is a picture."""
    folder = tmp_path_factory.mktemp("made")
    write_checkpoint(folder / "runs" / "stage5")
    write_pairs(folder, 2, image="picture.png", frames=3)
    Image.fromarray(np.full((40, 40, 3), (200, 80, 30), np.uint8)).save(folder / "picture.png")
    return folder


def config(made: Path, folder: Path, /, **change: Any) -> EvaluateConfig:
    given = {"checkpoint": str(made / "runs" / "stage5"), "data": str(made / "pairs.csv"), "output": str(folder)}
    return EvaluateConfig(**{**given, **FEW, **change})


def results(output: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_in_one_go_and_by_steps_is_the_same(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(config(made, tmp_path / "once"))
    printed = capsys.readouterr().out
    assert (tmp_path / "once" / "table.md").read_text() in printed and "index.html" in printed
    for step in ({"step": "check"}, {"task": 1, "of": 2}, {"task": 0, "of": 2}):
        evaluate(config(made, tmp_path / "steps", **step))
        assert not (tmp_path / "steps" / "results.jsonl").exists()
    evaluate(config(made, tmp_path / "steps", step="report"))
    rows = results(tmp_path / "once")
    assert len(rows) == 2 * 6 and rows == results(tmp_path / "steps")
    page = Page(tmp_path / "once" / "index.html")
    assert [row[0] for row in page.rows[1:]] == ["input", "gen1", "gen1", "per_frame", "per_frame", "sdedit"]
    edits = [row for row in rows if row["method"] != "input"]
    assert all(row["frames"] == 3 and 0 < row["structure_error"] < 1 and row["warp_error"] > 0 for row in edits)
    assert len({row["prompt_consistency"] for row in edits}) > 6  # the dials reach the model


def test_nothing_is_done_again(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate(config(made, tmp_path, methods=["per_frame"], t_s=[0]))
    before = results(tmp_path)
    monkeypatch.setattr("gen1_train.evaluate.load_editor", lambda *_: pytest.fail("the model was loaded again"))
    evaluate(config(made, tmp_path, methods=["per_frame"], t_s=[0]))
    assert results(tmp_path) == before
    for change, said in (({"steps": 3}, "steps= has changed"), ({"frames": 2, "seed": 1}, "seed= has changed")):
        with pytest.raises(UserError, match=said):
            evaluate(config(made, tmp_path, methods=["per_frame"], t_s=[0], **change))


def test_another_checkpoint_is_refused(made: Path, tmp_path: Path) -> None:
    evaluate(config(made, tmp_path / "out", methods=["per_frame"], t_s=[0], task=0, of=2))
    write_checkpoint(tmp_path / "runs" / "stage5", seed=1)
    with pytest.raises(UserError, match="checkpoint= has changed"):
        evaluate(config(tmp_path, tmp_path / "out", methods=["per_frame"], t_s=[0], data=str(made / "pairs.csv")))


def test_a_prompt_without_prior_offers_the_image_column(made: Path, tmp_path: Path) -> None:
    data = write_pairs(tmp_path, 1)
    with pytest.raises(UserError, match=r"line 2 of data= .*no prior.*give prior=, or fill the column image"):
        evaluate(config(made, tmp_path / "out", data=str(data)))


def test_a_prompt_is_the_content_by_the_prior_beside_the_run(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "runs", tmp_path / "runs", symlinks=True)
    write_prior(tmp_path / "runs" / "prior")
    write_pairs(tmp_path, 2, frames=2)
    evaluate(config(tmp_path, tmp_path / "out", methods=["gen1"], t_s=[0]))
    edits = [row for row in results(tmp_path / "out") if row["method"] == "gen1"]
    assert len(edits) == 2 and edits[0]["prompt_consistency"] != edits[1]["prompt_consistency"]
    write_prior(tmp_path / "runs" / "prior", seed=1)
    with pytest.raises(UserError, match="prior= has changed"):
        evaluate(config(tmp_path, tmp_path / "out", methods=["gen1"], t_s=[0]))


def test_a_stage_without_structure_makes_videos_of_the_content_alone(made: Path, tmp_path: Path) -> None:
    """For comparing stages; gen1-edit and the editor refuse it."""
    run = tmp_path / "stage3"
    write_checkpoint(run, stage="3")
    evaluate(config(made, tmp_path / "out", checkpoint=str(run), methods=["gen1"], frames=2))
    rows = [row for row in results(tmp_path / "out") if row["method"] == "gen1"]
    consistency = [[row["frame_consistency"] for row in rows if row["t_s"] == level] for level in (0, 7)]
    assert consistency[0] == consistency[1]  # there is no structure whose level could count
    with pytest.raises(UserError, match=r"is of stage 3, which has not learned structure yet: .*stage 4 or 5"):
        Gen1Editor.from_pretrained(run, "cpu")


def test_a_stage_without_temporal_layers_is_refused(made: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "stage2", stage="2")
    with pytest.raises(UserError, match=r"is of stage 2, which has not learned structure yet: .*stage 3, 4 or 5"):
        evaluate(config(made, tmp_path / "out", checkpoint=str(tmp_path / "stage2"), step="check"))


def test_a_video_that_is_not_there_is_named_with_its_row(made: Path, tmp_path: Path) -> None:
    with open(tmp_path / "pairs.csv", "w", newline="") as stream:
        rows = [["video", "prompt"], [made / "0.mp4", "fog"], ["absent.mp4", "fog"]]
        csv.writer(stream).writerows(rows)
    with pytest.raises(UserError, match=r"line 3 of data=: .*absent\.mp4 is not there"):
        evaluate(config(made, tmp_path / "out", data=str(tmp_path / "pairs.csv")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"checkpoint": None}, "checkpoint is not given"),
        ({"data": None}, "data is not given"),
        ({"output": None}, "output is not given"),
        ({"step": "plot"}, "step=plot"),
        ({"workers": 0}, "workers=0"),
        ({"frames": 0}, "frames=0"),
        ({"task": 2, "of": 2}, "task=2 of=2"),
        ({"task": 1}, "task=1 of=None"),
        ({"omega_t": [-0.5]}, "omega_t=-0.5"),
        ({"t_s": [0, 8]}, "t_s=8"),
        ({"init_strength": [0.0]}, "init_strength=0"),
        ({"steps": 0}, "steps=0"),
        ({"omega": 101.0}, "omega=101"),
        ({"solver": "euler"}, "solver=euler"),
        ({"checkpoint": "absent"}, "no checkpoint at absent"),
        ({"prior": "absent"}, "no checkpoint at absent"),
    ],
)
def test_a_wrong_setting_is_one_line(made: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        evaluate(config(made, tmp_path / "out", **change))
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_shares_are_those_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    assert share_of(EvaluateConfig()) == (0, 1) and share_of(EvaluateConfig(task=2, of=3)) == (2, 3)
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert share_of(EvaluateConfig()) == (3, 8) and share_of(EvaluateConfig(task=2, of=3)) == (2, 3)


@pytest.mark.slow
def test_the_command_ends_a_mistake_with_code_2(made: Path, tmp_path: Path) -> None:
    done = run("gen1_train.evaluate", f"checkpoint={made}/runs/stage5", "data=absent.csv", f"output={tmp_path}/out")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("gen1-eval: error: data=absent.csv is not there")
