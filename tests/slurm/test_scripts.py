"""What can be tested of the scripts without Slurm."""

import os
import subprocess

import pytest

from tests.slurm.cluster import SCRIPTS

CALLED = sorted(SCRIPTS.glob("*.sh"))


@pytest.mark.parametrize("script", sorted(SCRIPTS.iterdir()), ids=lambda path: path.name)
def test_every_script_is_valid_bash(script):
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""
    assert os.access(script, os.X_OK) == (script in CALLED)


def test_the_stages_differ_in_their_resources_alone():
    """A job finds the folder of its script by the name of the script, which is written in it."""
    bodies = set()
    for name in (*(f"stage{number}" for number in range(1, 6)), "prior", "customize"):
        text = (SCRIPTS / f"{name}.sh").read_text()
        assert f"#SBATCH --job-name=gen1-{name}\n" in text
        stage = name.removeprefix("stage")
        bodies.add(text[text.index("stem=") :].replace(f'" {stage} "', '" N "').replace(name, "stageN"))
    assert len(bodies) == 1


def test_the_prior_is_one_process_with_only_those_settings_of_the_site_that_it_has(tmp_path):
    """In a job of two nodes with 8 GPUs; the answers of Slurm are fakes."""
    fakes = {
        "scontrol": f'case "$*" in *job*) echo "Command={SCRIPTS}/prior.sh x" ;; *) echo localhost ;; esac',
        "getent": "true",
        "srun": f'echo "$@" >{tmp_path}/started',
        "gen1-train": f'echo "$@" >{tmp_path}/checked',
    }
    for name, body in fakes.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    spooled = tmp_path / "slurm_script"
    spooled.write_text((SCRIPTS / "prior.sh").read_text())
    (tmp_path / "site.env").write_text(
        "GEN1_OVERRIDES=(output=/runs strategy=zero3 data.cache=/local)\nGEN1_RUN=(env)\n"
    )
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_ON_NODE": "64"}
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "GEN1_"))},
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "GEN1_SITE": str(tmp_path / "site.env"),
        "SLURM_JOB_NODELIST": "n[1-2]",
        **job,
    }
    done = subprocess.run(
        ["bash", spooled, "data.root=/set"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    wanted = "stage=prior trainer.nodes=1 trainer.devices=1 output=/runs data.root=/set"
    assert (tmp_path / "checked").read_text() == f"{wanted} check_only=true\n"
    started = (tmp_path / "started").read_text()
    assert "--nodes=1 --ntasks=1 " in started and started.endswith(f" {wanted}\n")
    for left_out in ("strategy=zero3", "data.cache=/local"):
        assert f"prior: {left_out} of site.env applies to the stages only and is ignored" in done.stdout


@pytest.mark.parametrize("script", CALLED, ids=lambda path: path.name)
def test_without_slurm_a_script_ends_with_one_line(script, tmp_path):
    """And exit code 2, if it is called by hand where there is no sbatch."""
    for name in ("bash", "dirname", "basename", "mkdir"):
        found = subprocess.run(["which", name], capture_output=True, text=True).stdout.strip()
        (tmp_path / name).symlink_to(found)
    done = subprocess.run(
        ["bash", script, "stage.steps=1"], env={"PATH": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "sbatch" in done.stderr, done.stderr
