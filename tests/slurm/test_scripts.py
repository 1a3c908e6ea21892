"""What can be said of the scripts without a Slurm."""

import os
import subprocess

import pytest

from tests.slurm.cluster import SCRIPTS

CALLED = sorted(SCRIPTS.glob("*.sh"))


@pytest.mark.parametrize("script", sorted(SCRIPTS.iterdir()), ids=lambda path: path.name)
def test_they_are_bash(script):
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""
    assert os.access(script, os.X_OK) == (script in CALLED)


def test_the_stages_differ_in_what_they_ask_for_alone():
    """A job finds the folder by its script's name, which is written in it."""
    bodies = set()
    for number in range(1, 6):
        text = (SCRIPTS / f"stage{number}.sh").read_text()
        assert f"#SBATCH --job-name=gen1-stage{number}\n" in text
        bodies.add(text[text.index("stem=") :].replace(f"stage{number}", "stageN").replace(f'" {number} "', '" N "'))
    assert len(bodies) == 1


@pytest.mark.parametrize("script", CALLED, ids=lambda path: path.name)
def test_without_slurm_they_say_what_to_do(script, tmp_path):
    """Called by hand where there is no sbatch: one line and exit code 2."""
    for name in ("bash", "dirname", "basename", "mkdir"):
        found = subprocess.run(["which", name], capture_output=True, text=True).stdout.strip()
        (tmp_path / name).symlink_to(found)
    done = subprocess.run(
        ["bash", script, "stage.steps=1"], env={"PATH": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "sbatch" in done.stderr, done.stderr
