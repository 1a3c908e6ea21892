"""slurm/eval.sh on two nodes writes the report of one process."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gen1_train.evaluate import EvaluateConfig, run_evaluation
from tests.evaluation.fake import write_pairs
from tests.made_checkpoint import write_checkpoint
from tests.running import REPOSITORY
from tests.slurm.cluster import SCRIPTS, Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SETTINGS = ["checkpoint=runs/stage5", "data=pairs.csv", "methods=[gen1]", "omega_t=[1]", "t_s=[0]", "steps=1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder where jobs are submitted, with a run, two pairs and a site.env."""
    write_checkpoint(tmp_path / "runs" / "stage5")
    write_pairs(tmp_path, 2, image="picture.png", frames=2)
    Image.new("RGB", (40, 40), "teal").save(tmp_path / "picture.png")
    (tmp_path / "site.env").write_text(
        f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={REPOSITORY} CUDA_VISIBLE_DEVICES=\n"
        f'GEN1_RUN=(bash -c \'shift; exec "{sys.executable}" -m gen1_train.evaluate "$@"\' gen1)\n'
        "export OMP_NUM_THREADS=1\n"
    )
    return tmp_path


def job(cluster: Cluster, folder: Path, *settings: str) -> tuple[str, str]:
    """Runs a job of two nodes; returns its final state and its log."""
    options = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-gpu=1"]
    number = cluster.submit(*options, SCRIPTS / "eval.sh", *settings, folder=folder, GEN1_SITE=str(folder / "site.env"))
    return cluster.wait(number)["JobState"], (folder / f"gen1-eval-{number}.log").read_text()


def results(output: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_two_nodes_write_the_report_of_one_process(cluster: Cluster, folder: Path) -> None:
    state, log = job(cluster, folder, *SETTINGS, "output=spread")
    assert state == "COMPLETED" and "2 nodes x 1 ranks" in log and "index.html" in log, log
    run = {"checkpoint": str(folder / "runs" / "stage5"), "data": str(folder / "pairs.csv")}
    few = {"methods": ["gen1"], "omega_t": [1.0], "t_s": [0], "steps": 1, "device": "cpu"}
    run_evaluation(EvaluateConfig(**run, **few, output=str(folder / "alone")))
    assert results(folder / "spread") == results(folder / "alone") and len(results(folder / "alone")) == 4


def test_a_setting_of_the_script_itself_is_refused(cluster: Cluster, folder: Path) -> None:
    state, log = job(cluster, folder, *SETTINGS, "output=spread", "step=run")
    assert state == "FAILED" and log.count("\n") == 1 and "this script sets step itself: leave step=run out" in log, log
