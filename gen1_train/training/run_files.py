"""Files that a start of a run writes: the resolved config, the origin of its weights, and a line about the start."""

import json
import logging
import os
import platform
import socket
import subprocess
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from gen1_train.diffusion.schedule import NoiseConfig
from gen1_train.errors import UserError
from gen1_train.model.pretrained import WeightReport
from gen1_train.system.files import append_line, patiently, remove_leftovers, write_atomically
from gen1_train.system.records import read_yaml
from gen1_train.system.remote import without_secrets
from gen1_train.training.callbacks.agreement import code_hash
from gen1_train.training.checkpoints.checkpoint import Checkpoint
from gen1_train.training.checkpoints.resuming import STARTS, make_way
from gen1_train.training.config import RunConfig, masked
from gen1_train.training.strategies.config import AUTO

CALL = (
    "name",
    "output",
    "check_only",
    "plan_only",
    "plan",
    "restart",
    "trainer.profile",
)  # settings of a call that change nothing in a run
UNCHOSEN = ("strategy.name", "data.order", "stage.degradation", "stage.drop_planes")  # where they are AUTO, or null
NOISE = ("diffusion.noise.", "diffusion.steps:")  # settings of the noise schedule, of a stage and of the prior
BEFORE = {f"diffusion.noise.{name}": value for name, value in asdict(NoiseConfig()).items()}
logger = logging.getLogger(__name__)
PACKAGES = ("torch", "pytorch-lightning", "deepspeed", "webdataset", "wandb")


def open_run(config: RunConfig, run: Path, report: WeightReport | None, step: int, world: int) -> None:
    """Writes them, on rank 0 only, which holds the run's lock. `step`: the one that the run resumes from, or 0.

    `report`: of a new run's weights. Checkpoints keep the config of earlier starts. Raises UserError when the disk is
    full or unreachable for `checkpoint.patience_seconds`.
    """
    line = json.dumps(start_line(step, world))

    def write() -> None:
        run.mkdir(parents=True, exist_ok=True)
        make_way(run, step)
        remove_leftovers(run)
        write_atomically(run / "config.yaml", config.to_yaml().encode())
        if report is not None:
            write_atomically(run / "weights.json", without_secrets(report.to_json()).encode())
        append_line(run / STARTS, line)

    patiently(write, f"{run} cannot be written to", config.checkpoint.patience_seconds)


def changed_settings(resume: Checkpoint, config: RunConfig) -> list[str]:
    """Describes the settings that differ from those that a checkpoint was trained with: `name: old -> new`.

    Settings that only one version of the code knows, those of CALL, and those of UNCHOSEN, which the plan has yet to
    choose, are left out. Settings of the noise are not: what an older version did is their default. Credentials in URLs
    are masked.
    """
    try:
        old = {**BEFORE, **_flat(masked(read_yaml(resume.config)))}
    except (OSError, ValueError, AttributeError):
        return []  # what needs it reports it
    new = _flat(yaml.safe_load(config.to_yaml()))
    compared = [name for name in new if not {name, name.partition(".")[0]} & set(CALL)]
    compared = [name for name in compared if not (name in UNCHOSEN and new[name] in (AUTO, None))]
    differing = [name for name in compared if name in old and old[name] != new[name]]
    # init.from_ is the field of init.from, since `from` is a keyword of Python
    return [f"{name.removesuffix('_')}: {_short(old[name])} -> {_short(new[name])}" for name in differing]


def is_finished(title: str, resume: Checkpoint | None, config: RunConfig) -> bool:
    """Whether a run has done all of its steps; reports it, and the settings that differ from those so far."""
    if resume is None:
        return False
    finished = resume.info.finished and resume.info.step >= config.stage.steps
    report_changes(resume, config, finished)
    if finished:
        logger.info(f"{title} is finished already: {resume.path}")
    return finished


def report_changes(resume: Checkpoint, config: RunConfig, finished: bool) -> None:
    """Warns in one line about `changed_settings`, if there are any.

    Raises UserError if a run would continue with another noise schedule than the one that its weights were learned for.
    """
    if not (changes := changed_settings(resume, config)):
        return
    noise = [change for change in changes if change.startswith(NOISE)]
    if noise and not finished:
        raise UserError(
            f"{', '.join(noise)}: the weights of {resume.path} were learned for the first: give it, or start "
            "another run with name="
        )
    remedy = "name= starts another run with those given now" if finished else "those given now apply from here on"
    logger.warning("settings differ from those of %s (%s): %s", resume.path, remedy, ", ".join(changes))


def warn_of_another_noise(start: Checkpoint, config: RunConfig) -> None:
    """Warns if a stage starts from weights that were learned for another noise schedule."""
    noise = [change for change in changed_settings(start, config) if change.startswith(NOISE)]
    if noise:
        logger.warning("%s: the weights of %s were learned for the first", ", ".join(noise), start.path)


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Maps the dotted names of all values of a config to the values."""
    values: dict[str, Any] = {}
    for name, value in section.items():
        values |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return values


def _short(value: Any) -> str:
    """A value as users write it on the command line."""
    return json.dumps(value, ensure_ascii=False).strip('"')


def start_line(step: int, world: int) -> dict[str, Any]:
    """Describes a start: time, step, host, number of ranks, versions of code and packages, job. It has no secrets."""
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
    """Returns a checkout's commit and whether its files were changed since; an installed package's version."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return {"version": _version("gen1-train")}
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning(f"the commit is not recorded: {error}")
        return {}
    return {"commit": described.removesuffix("-dirty"), "changed": described.endswith("-dirty")}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
