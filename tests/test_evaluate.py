"""gen1-eval on a real checkpoint: tiny, untrained, with the miniature's estimators."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gen1_train.editing.editor import Gen1Editor
from gen1_train.errors import UserError
from gen1_train.evaluate import EvaluateConfig, run_evaluation, share_of
from gen1_train.system.console import console
from tests.evaluation.fake import write_pairs
from tests.made_checkpoint import write_checkpoint, write_prior
from tests.pages import Page
from tests.running import run

FEW = {"omega_t": [1.0], "t_s": [0, 7], "init_strength": [0.5], "steps": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, and a list of two pairs whose content is an image."""
    folder = tmp_path_factory.mktemp("source")
    write_checkpoint(folder / "runs" / "stage5")
    write_pairs(folder, 2, image="picture.png", frames=3)
    Image.fromarray(np.full((40, 40, 3), (200, 80, 30), np.uint8)).save(folder / "picture.png")
    return folder


def config(source: Path, folder: Path, /, **change: Any) -> EvaluateConfig:
    paths = {"checkpoint": str(source / "runs" / "stage5"), "data": str(source / "pairs.csv"), "output": str(folder)}
    return EvaluateConfig(**{**paths, **FEW, **change})


def results(output: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.slow
def test_one_call_equals_separate_steps(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with console("gen1-eval"):
        run_evaluation(config(source, tmp_path / "once"))
    table = (tmp_path / "once" / "table.md").read_text()
    assert capsys.readouterr().out == f"{table}gen1-eval: 2 pairs, {tmp_path / 'once' / 'index.html'}\n"
    for step in ({"step": "check"}, {"task": 1, "of": 2}, {"task": 0, "of": 2}):
        run_evaluation(config(source, tmp_path / "steps", **step))
        assert not (tmp_path / "steps" / "results.jsonl").exists()
    run_evaluation(config(source, tmp_path / "steps", step="report"))
    rows = results(tmp_path / "once")
    assert len(rows) == 2 * 6 and rows == results(tmp_path / "steps")
    page = Page(tmp_path / "once" / "index.html")
    assert [row[0] for row in page.rows[1:]] == ["input", "gen1", "gen1", "per_frame", "per_frame", "sdedit"]
    edits = [row for row in rows if row["method"] != "input"]
    assert all(row["frames"] == 3 and 0 < row["structure_error"] < 1 and row["warp_error"] > 0 for row in edits)
    assert len({row["prompt_consistency"] for row in edits}) > 6  # the dials take effect


@pytest.mark.slow
def test_finished_results_are_kept(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_evaluation(config(source, tmp_path, methods=["per_frame"], t_s=[0]))
    before = results(tmp_path)
    monkeypatch.setattr("gen1_train.evaluate.load_editor", lambda *_: pytest.fail("the model was loaded again"))
    run_evaluation(config(source, tmp_path, methods=["per_frame"], t_s=[0]))
    assert results(tmp_path) == before
    for change, message in (({"steps": 3}, "steps= has changed"), ({"frames": 2, "seed": 1}, "seed= has changed")):
        with pytest.raises(UserError, match=message):
            run_evaluation(config(source, tmp_path, methods=["per_frame"], t_s=[0], **change))


def test_another_checkpoint_is_refused(source: Path, tmp_path: Path) -> None:
    run_evaluation(config(source, tmp_path / "out", methods=["per_frame"], t_s=[0], task=0, of=2))
    write_checkpoint(tmp_path / "runs" / "stage5", seed=1)
    with pytest.raises(UserError, match="checkpoint= has changed"):
        run_evaluation(
            config(tmp_path, tmp_path / "out", methods=["per_frame"], t_s=[0], data=str(source / "pairs.csv"))
        )


def test_a_prompt_without_a_prior_is_refused(source: Path, tmp_path: Path) -> None:
    data = write_pairs(tmp_path, 1)
    with pytest.raises(UserError, match=r"line 2 of data= .*no prior.*give prior=, or fill the column image"):
        run_evaluation(config(source, tmp_path / "out", data=str(data)))


@pytest.mark.slow
def test_prompts_use_the_prior_next_to_the_run(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source / "runs", tmp_path / "runs", symlinks=True)
    write_prior(tmp_path / "runs" / "prior")
    write_pairs(tmp_path, 2, frames=2)
    run_evaluation(config(tmp_path, tmp_path / "out", methods=["gen1"], t_s=[0]))
    edits = [row for row in results(tmp_path / "out") if row["method"] == "gen1"]
    assert len(edits) == 2 and edits[0]["prompt_consistency"] != edits[1]["prompt_consistency"]
    write_prior(tmp_path / "runs" / "prior", seed=1)
    with pytest.raises(UserError, match="prior= has changed"):
        run_evaluation(config(tmp_path, tmp_path / "out", methods=["gen1"], t_s=[0]))


@pytest.mark.slow
def test_a_stage_without_structure_is_evaluated_by_content_alone(source: Path, tmp_path: Path) -> None:
    """This is for comparing stages; the editor refuses it by default."""
    run = tmp_path / "stage3"
    write_checkpoint(run, stage="3")
    run_evaluation(config(source, tmp_path / "out", checkpoint=str(run), methods=["gen1", "sdedit"], t_s=[0], frames=2))
    assert {row["method"] for row in results(tmp_path / "out")} == {"input", "gen1", "sdedit"}
    with pytest.raises(UserError, match=r"is of stage 3, which has not learned structure yet: .*stage 4 or 5"):
        Gen1Editor.from_pretrained(run, "cpu")


@pytest.mark.parametrize("stage", ["3", "4"])
@pytest.mark.parametrize("step", ["check", "run", None])
def test_a_level_that_the_checkpoint_has_not_learned_is_refused_before_anything_is_loaded(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, step: str | None
) -> None:
    write_checkpoint(tmp_path / "run", stage=stage)
    monkeypatch.setattr("gen1_train.evaluate.load_editor", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(UserError, match=r"^t_s=2: this checkpoint has learned only t_s=0: give 0, or a checkpoint of"):
        run_evaluation(config(source, tmp_path / "out", checkpoint=str(tmp_path / "run"), t_s=[0, 2], step=step))
    assert not (tmp_path / "out").exists()


def test_a_stage_without_temporal_layers_is_refused(source: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "stage2", stage="2")
    with pytest.raises(UserError, match=r"is of stage 2, which has not learned structure yet: .*stage 3, 4 or 5"):
        run_evaluation(config(source, tmp_path / "out", checkpoint=str(tmp_path / "stage2"), step="check"))


def test_a_missing_video_is_named_with_its_row(source: Path, tmp_path: Path) -> None:
    with open(tmp_path / "pairs.csv", "w", newline="") as stream:
        rows = [["video", "prompt"], [source / "0.mp4", "fog"], ["absent.mp4", "fog"]]
        csv.writer(stream).writerows(rows)
    with pytest.raises(UserError, match=r"line 3 of data=: .*absent\.mp4 does not exist"):
        run_evaluation(config(source, tmp_path / "out", data=str(tmp_path / "pairs.csv")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
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
def test_a_wrong_setting_is_one_line(source: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        run_evaluation(config(source, tmp_path / "out", **change))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_shares_are_those_of_slurm_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    assert share_of(EvaluateConfig()) == (0, 1) and share_of(EvaluateConfig(task=2, of=3)) == (2, 3)
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert share_of(EvaluateConfig()) == (3, 8) and share_of(EvaluateConfig(task=2, of=3)) == (2, 3)


@pytest.mark.slow
def test_the_command_reports_a_mistake_with_exit_code_2(source: Path, tmp_path: Path) -> None:
    process = run(
        "gen1_train.evaluate", f"checkpoint={source}/runs/stage5", "data=absent.csv", f"output={tmp_path}/out"
    )
    assert process.returncode == 2 and process.stderr.count("\n") == 1, process.stderr
    assert process.stderr.startswith("gen1-eval: error: data=absent.csv does not exist")


def test_the_list_of_pairs_is_never_a_file_that_the_evaluation_writes(tmp_path: Path) -> None:
    rows = tmp_path / "results.jsonl"
    rows.write_text("pairs")
    mistaken = EvaluateConfig(checkpoint="c", data=str(rows), output=str(tmp_path / "x" / ".."), **FEW)
    with pytest.raises(UserError, match=r"^data=.*results.jsonl would be replaced .* another output="):
        run_evaluation(mistaken)
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"] and rows.read_text() == "pairs"
