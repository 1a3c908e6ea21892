"""What a start of a run writes into its folder: the resolved config, where its weights came from, and who it is."""

import json
import os
import platform
import socket
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gen1_train.files import clear_killed, write_atomically
from gen1_train.model.pretrained import WeightReport
from gen1_train.training.agreement import code_hash
from gen1_train.training.prior_config import AnyTrainConfig

STARTS = "starts.jsonl"  # a line for each start of the run
PACKAGES = ("torch", "pytorch-lightning", "deepspeed", "webdataset", "wandb")


def open_run(config: AnyTrainConfig, run: Path, report: WeightReport | None, step: int, world: int) -> None:
    """For rank 0 alone; `report`: of a new run's weights. The config of an earlier start stands in its checkpoints."""
    run.mkdir(parents=True, exist_ok=True)
    clear_killed(run)
    write_atomically(run / "config.yaml", config.to_yaml().encode())
    if report is not None:
        write_atomically(run / "weights.json", report.to_json().encode())
    with open(run / STARTS, "a") as stream:
        stream.write(json.dumps(start_line(step, world)) + "\n")


def start_line(step: int, world: int) -> dict[str, Any]:
    """One start: when, from which step, where, on how many ranks, by which code, for which job; nothing secret."""
    job = {"job": os.environ["SLURM_JOB_ID"]} if "SLURM_JOB_ID" in os.environ else {}
    if job:
        job |= {
            "restarts": os.environ.get("SLURM_RESTART_COUNT", "0"),
            "nodes": os.environ.get("SLURM_JOB_NODELIST", ""),
        }
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "step": step,
        "ranks": world,
        "host": socket.gethostname(),
        **job,
        "code": code_hash(),
        **git_commit(),
        "python": platform.python_version(),
        **{name: found for name in PACKAGES if (found := _version(name))},
    }


def git_commit() -> dict[str, Any]:
    """The commit of a checkout, and whether files of it were changed since; empty for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return {"version": _version("gen1-train")}
    asked = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        print(f"gen1-train: warning: the commit is not recorded: {error}", file=sys.stderr, flush=True)
        return {}
    return {"commit": said.removesuffix("-dirty"), "changed": said.endswith("-dirty")}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
