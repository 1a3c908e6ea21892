"""The results in a folder of gen1-eval are all of one precision, which its plan records."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gen1_train.errors import UserError
from gen1_train.evaluate import EvaluateConfig, load_editor, run_evaluation, with_precision
from tests.evaluation.fake import FakeEditor, write_pairs
from tests.made_checkpoint import write_checkpoint

FEW: dict[str, Any] = {"methods": ["per_frame"], "t_s": [0], "steps": 1, "device": "cpu", "step": "run"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    write_checkpoint(folder / "stage5")
    write_pairs(folder, 1, image="picture.png", frames=2)
    Image.fromarray(np.full((40, 40, 3), (200, 80, 30), np.uint8)).save(folder / "picture.png")
    return folder


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """The precisions, and whether in TF32, of the editors that were loaded; they are fakes."""
    loaded: list[tuple[str, bool]] = []

    def load(config: EvaluateConfig, rank: int) -> FakeEditor:
        loaded.append((config.precision, config.tf32))
        return FakeEditor()

    monkeypatch.setattr("gen1_train.evaluate.load_editor", load)
    return loaded


def config(source: Path, output: Path, **change: Any) -> EvaluateConfig:
    paths = {"checkpoint": str(source / "stage5"), "data": str(source / "pairs.csv"), "output": str(output)}
    return EvaluateConfig(**{**paths, **FEW, **change})


def plan_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "evaluation.json").read_text())


def remove_a_result(output: Path) -> None:
    next((output / "results").rglob("per_frame*.json")).unlink()


def test_results_of_another_precision_are_not_mixed(source: Path, tmp_path: Path, made: list[Any]) -> None:
    run_evaluation(config(source, tmp_path, precision="bf16"))
    assert plan_of(tmp_path)["precision"] == "bf16" and made == [("bf16", True)]
    with pytest.raises(UserError) as error:
        run_evaluation(config(source, tmp_path, precision="fp32"))
    assert str(error.value) == (
        f"output={tmp_path} holds results of another evaluation: precision= or the device (bf16 then, fp32 now) has "
        "changed since; give another output=, or the earlier settings"
    )


def test_auto_continues_with_the_precision_of_earlier_results(source: Path, tmp_path: Path, made: list[Any]) -> None:
    """The call that completes an evaluation may run on another machine."""
    run_evaluation(config(source, tmp_path, precision="bf16"))
    remove_a_result(tmp_path)
    run_evaluation(config(source, tmp_path))
    assert [precision for precision, _ in made] == ["bf16", "bf16"] and plan_of(tmp_path)["precision"] == "bf16"


@pytest.mark.slow
def test_a_report_takes_the_results_as_they_are_on_any_machine(source: Path, tmp_path: Path, made: list[Any]) -> None:
    run_evaluation(config(source, tmp_path, precision="bf16"))
    for changes in ({}, {"precision": "fp32"}):
        run_evaluation(config(source, tmp_path, step="report", device="cuda", **changes))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["precision"] == "bf16" and "bf16" in (tmp_path / "index.html").read_text() and len(made) == 1


def test_results_of_earlier_versions_are_of_fp32(source: Path, tmp_path: Path, made: list[Any]) -> None:
    run_evaluation(config(source, tmp_path))
    plan = plan_of(tmp_path)
    assert plan.pop("precision") == "fp32"
    (tmp_path / "evaluation.json").write_text(json.dumps(plan))
    remove_a_result(tmp_path)
    run_evaluation(config(source, tmp_path))
    assert [precision for precision, _ in made] == ["fp32", "fp32"]
    with pytest.raises(UserError, match=r"\(fp32 then, bf16 now\)"):
        run_evaluation(config(source, tmp_path, precision="bf16"))


def test_results_in_tf32_are_continued_on_gpus_only(source: Path, tmp_path: Path, made: list[Any]) -> None:
    run_evaluation(config(source, tmp_path))
    plan = plan_of(tmp_path) | {"precision": "tf32"}
    (tmp_path / "evaluation.json").write_text(json.dumps(plan))
    with pytest.raises(UserError, match=r"\(tf32 then, fp32 now\)"):
        run_evaluation(config(source, tmp_path))
    assert plan_of(tmp_path)["precision"] == "tf32"


@pytest.mark.parametrize("plan", ["[]", "{", '{"precision": ["a"]}', '{"precision": "' + "x" * 99 + '"}', "null"])
def test_a_damaged_plan_is_one_line(source: Path, tmp_path: Path, made: list[Any], plan: str) -> None:
    run_evaluation(config(source, tmp_path))
    (tmp_path / "evaluation.json").write_text(plan)
    with pytest.raises(UserError) as error:
        run_evaluation(config(source, tmp_path))
    assert len(str(error.value).splitlines()) == 1 and "give another output=" in str(error.value) and len(made) == 1


def test_a_precision_that_the_device_does_not_have_is_refused_before_anything_is_written(
    source: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="precision=fp16 needs a GPU"):
        run_evaluation(config(source, tmp_path / "out", precision="fp16"))
    assert not (tmp_path / "out").exists()


def test_the_editor_of_a_worker_computes_in_the_precision(source: Path, tmp_path: Path) -> None:
    resolved, recorded = with_precision(config(source, tmp_path, precision="bf16", prior=None), None)
    editor: Any = load_editor(resolved, 0)
    assert editor.formats.precision == recorded == "bf16"


def test_tf32_is_for_fp32_so_that_metrics_of_half_precision_do_not_depend_on_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed: list[bool] = []
    monkeypatch.setattr("gen1_train.system.device.set_tf32", allowed.append)
    monkeypatch.setattr("gen1_train.editing.editor.Gen1Editor.from_pretrained", lambda *_, **__: None)
    for precision, tf32 in (("fp32", True), ("fp32", False), ("bf16", True)):
        load_editor(config(source, tmp_path, precision=precision, tf32=tf32), 0)
    assert allowed == [True, False, False]
