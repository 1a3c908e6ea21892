"""slurm/data.sh on two nodes makes the set of one process, whatever happens to its jobs."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gen1_train.errors import INCOMPLETE
from tests.digests import set_digests
from tests.running import ENVIRONMENT, REPOSITORY, command
from tests.slurm.cluster import SCRIPTS, Cluster
from tests.video.files import make_video

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SCRIPT = SCRIPTS / "data.sh"
# six tasks of one video each; share 1 of 4 has two of them
SETTINGS = ["source=videos", "recipe=tiny", "recipe.task_seconds=0.1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder where jobs are submitted, with five videos, a long one, a file that is no video, and a site.env."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(6):
        make_video(videos / f"{number}.mp4", frames=300 if number == 1 else 45, width=112, height=64)
    (videos / "broken.mp4").write_text("I am no video")
    (tmp_path / "site.env").write_text(
        f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={REPOSITORY} CUDA_VISIBLE_DEVICES=\n"
        "export OMP_NUM_THREADS=1\n"
        "DATA_TASK=(--gpus=1 --cpus-per-task=1)\n"  # a node has two, which are none
    )
    return tmp_path


def submit(cluster: Cluster, folder: Path, *settings: str) -> str:
    return cluster.submit("--mincpus=1", SCRIPT, *settings, folder=folder, GEN1_SITE=str(folder / "site.env"))


def planned(cluster: Cluster, folder: Path) -> tuple[str, str, str]:
    """Submits the set and waits for the plan. Returns the job of the array, its shares, and the job that freezes."""
    job = submit(cluster, folder, *SETTINGS, "output=sets/made", "of=4")
    ended = cluster.wait(job)
    log = (folder / f"gen1-data-{job}.log").read_text()
    assert ended["JobState"] == "COMPLETED", log
    found = re.search(r"job (\d+) does the tasks: shares (\S+) of 4\n.*job (\d+) freezes the set after it\n", log)
    assert found, log
    return found[1], found[2], found[3]


def stop_in_a_task(output: Path, tasks: str) -> None:
    """Stops the process that works on one of these tasks as soon as it begins; its id is in the name of a folder."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        for building in (output / ".staging").glob(f".task-0000[{tasks}].*.tmp"):
            os.kill(int(building.name.split(".")[2].partition("-")[0]), signal.SIGSTOP)
            return
        time.sleep(0.01)
    raise AssertionError(f"no process has begun with tasks {tasks}")


def test_an_array_with_a_cancelled_element_makes_the_set_of_one_process(cluster: Cluster, folder: Path) -> None:
    straight = [*command("data_tools.main", *SETTINGS), "output=sets/straight"]
    with open(folder / "straight.log", "wb") as log:
        one_process = subprocess.Popen(straight, cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log)
    array, shares, freezing = planned(cluster, folder)
    assert shares == "0-3"
    output = folder / "sets" / "made"

    stop_in_a_task(output, "15")
    busy = submit(cluster, folder, *SETTINGS, "output=sets/../sets/made")
    cluster.call("scancel", f"{array}_1")
    elements = [cluster.wait(f"{array}_{share}") for share in range(4)]
    states = ["COMPLETED", "CANCELLED", "COMPLETED", "COMPLETED"]
    assert [element["JobState"] for element in elements] == states
    assert {element["BatchHost"] for element in elements} == {"node1", "node2"}
    assert cluster.wait(freezing)["JobState"] == "CANCELLED"
    assert cluster.wait(busy)["ExitCode"] == "2:0"
    refusal = f"data: error: jobs {array} {freezing} are working on output=sets/../sets/made: "
    assert (folder / f"gen1-data-{busy}.log").read_text().startswith(refusal)
    assert not (output / "manifest.json").exists()

    array, shares, freezing = planned(cluster, folder)
    assert shares == "1"
    assert cluster.wait(freezing)["JobState"] == "COMPLETED"  # although a file is broken
    assert cluster.job(f"{array}_1")["JobState"] == "COMPLETED"
    assert "lists what did not become samples" in (folder / f"gen1-data-freeze-{freezing}.log").read_text()
    assert one_process.wait(120) == INCOMPLETE, (folder / "straight.log").read_text()
    made = set_digests(output)
    assert made == set_digests(folder / "sets" / "straight")
    assert {"manifest.json", "shards/video-112x64-000000.tar"} <= made.keys()

    again = submit(cluster, folder, *SETTINGS, "output=sets/made", "retry=transient")
    assert cluster.wait(again)["JobState"] == "COMPLETED"
    lines = (folder / f"gen1-data-{again}.log").read_text().splitlines()
    assert [line.split(": ")[1] for line in lines] == ["retry=transient", "already frozen"]


def test_wrong_settings_end_the_plan_and_nothing_is_submitted(cluster: Cluster, folder: Path) -> None:
    settings = {
        "source=nowhere": "source=nowhere does not exist",
        "precision=fp61": "precision=fp61 is not one of",
        "of=some": "of=some is not a number",
    }
    jobs = {submit(cluster, folder, *SETTINGS, "output=made", wrong): words for wrong, words in settings.items()}
    for job, words in jobs.items():
        ended = cluster.wait(job)
        assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0")
        (line,) = (folder / f"gen1-data-{job}.log").read_text().splitlines()
        assert "error: " in line and words in line
    assert not cluster.call("squeue", "--noheader").stdout
    assert not (folder / "made").exists()
