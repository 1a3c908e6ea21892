"""Stages on a real Slurm of two nodes. They equal local runs.

Importing takes most of the time of a start. So only those starts that a test ends in some way, and one that finishes,
have fresh processes, as users' do; the processes of the others are forked.
"""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from gen1_train.data.manifest import Manifest
from gen1_train.diffusion.structure import MAX_LEVEL
from gen1_train.frozen.levels import with_levels
from gen1_train.reporting.rows import read_metrics
from gen1_train.training.checkpoints.checkpoint import latest
from tests.made import make_sample_with_levels, make_shard_set, make_stable_diffusion
from tests.running import TRAIN, run_well
from tests.slurm.cluster import ENDED, SCRIPTS, Cluster
from tests.slurm.station import Station
from tests.tensors_of import assert_same_tensors, tensors_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STEPS = {2: 2, 3: 2, 4: 16, 5: 2}
SMALL = ["data.batch_clips=2", "ema.decays=[0.9]"]
NODES = ("--nodes=2", "--mincpus=1")
# A variable: the starts of a job, SCRIPT:RESTARTS, whose processes are fresh ones; those of all others are forked.
COLD = "GEN1_TEST_COLD"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, station: Station) -> Path:
    """A shard set, a random Stable Diffusion, a site.env, and a folder from which jobs are submitted."""
    root = tmp_path_factory.mktemp("work")
    make_shard_set(root / "set", make=make_sample_with_levels)
    manifest = Manifest.load(root / "set")
    manifest.estimators["autoencoder"] = with_levels(manifest.estimators["autoencoder"], MAX_LEVEL)
    manifest.save(root / "set")
    make_stable_diffusion(root / "sd")
    settings = [*TRAIN, *SMALL, f"data.root={root / 'set'}", "trainer.accelerator=cpu"]
    (root / "site.env").write_text(
        f"GEN1_OVERRIDES=({' '.join(settings)})\nexport OMP_NUM_THREADS=1\n"
        f'[[ " ${{{COLD}:-}} " == *" $stem:${{SLURM_RESTART_COUNT:-0}} "* ]] || GEN1_RUN=({station.prefix})\n'
    )
    (root / "elsewhere").mkdir()
    return root


class Jobs:
    """Jobs of the scripts, submitted from a folder that is not the repository."""

    def __init__(self, cluster: Cluster, work: Path) -> None:
        self.cluster = cluster
        self.work = work
        self.folder = work / "elsewhere"
        self.site = {"GEN1_SITE": str(work / "site.env"), "DS_ACCELERATOR": "cpu", "PATH": path_of_this_python()}

    def stage4(self, name: str, *options: str, settings: tuple[str, ...] = (), cold: int = 0) -> str:
        """Submits a stage 4 that starts from the chain's stage 3, with the output folder `name`; returns its job id.

        The processes of the first `cold` starts are fresh ones.
        """
        steps = f"stage.steps={STEPS[4]}"
        start = f"init.checkpoint={self.run('chain', 3)}"
        script = [*options, SCRIPTS / "stage4.sh", f"output={self.work / name}", steps, start, *settings]
        site = {**self.site, COLD: " ".join(f"stage4:{restarts}" for restarts in range(cold))}
        return self.cluster.submit(*script, folder=self.folder, **site)

    def run(self, name: str, stage: int = 4) -> Path:
        return self.work / name / "demo" / f"stage{stage}"

    def rows(self, name: str) -> int:
        return len(read_metrics(self.run(name) / "metrics.csv"))

    def log(self, job: str, stage: int = 4) -> str:
        return (self.folder / f"gen1-stage{stage}-{job}.log").read_text()

    def wait_for_rows(self, name: str, job: str, rows: int = 3, seconds: float = 180) -> None:
        """Waits until a run has this many rows of metrics."""
        until = time.monotonic() + seconds
        while self.rows(name) < rows:
            assert self.cluster.job(job)["JobState"] not in ENDED, self.log(job)
            assert time.monotonic() < until, self.log(job)
            time.sleep(0.1)

    def assert_equals(self, name: str, job: str, other: str = "chain", restarts: int = 0) -> None:
        """The job succeeded, and its run has the losses, weights, averages and moments of the other, to the bit."""
        ended = self.cluster.wait(job, seconds=300)
        assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", str(restarts)), self.log(job)
        assert_equal(self.run(name), self.run(other))


def assert_equal(run: Path, other: Path) -> None:
    losses = [[(row["step"], row["loss"]) for row in read_metrics(folder / "metrics.csv")] for folder in (run, other)]
    assert losses[0] == losses[1] and len(losses[0]) == STEPS[4]
    checkpoints = [latest(folder) for folder in (run, other)]
    finished = [found.path for found in checkpoints if found and found.info.finished]
    assert len(finished) == 2 and len(tensors_of(finished[0])) == 3
    assert_same_tensors(*finished)


def path_of_this_python() -> str:
    """A PATH on which the scripts find this environment's commands if the checkout has no .venv."""
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@pytest.fixture(scope="module")
def jobs(cluster: Cluster, work: Path) -> Jobs:
    """Jobs, after the five stages have been run as one chain on both nodes, without loader workers."""
    jobs = Jobs(cluster, work)
    settings = [f"output={work / 'chain'}", f"1:init.from={work / 'sd'}", "data.workers=0"]
    settings += [f"{stage}:stage.steps={count}" for stage, count in STEPS.items()]
    cold = {COLD: "stage4:0"}
    result = cluster.call(SCRIPTS / "all.sh", *NODES, *settings, folder=jobs.folder, **jobs.site, **cold)
    assert result.returncode == 0, result.stderr
    chain = re.findall(r"stage (\d): job (\d+)", result.stdout)
    assert [stage for stage, _ in chain] == ["1", "2", "3", "4", "5"]
    for stage, job in chain:
        assert cluster.wait(job, seconds=300)["JobState"] == "COMPLETED", jobs.log(job, int(stage))
    return jobs


def test_two_nodes_make_what_two_processes_make(jobs: Jobs):
    """All processes of stage 4 of the chain are fresh ones; the local ones are forks, and have loader workers."""
    for stage in range(1, 6):
        checkpoint = latest(jobs.run("chain", stage))
        assert checkpoint is not None and checkpoint.info.finished
    nodes = jobs.cluster.call("scontrol", "show", "node", "--oneliner").stdout
    assert nodes.count("NodeName=") == 2
    settings = [*SMALL, f"data.root={jobs.work / 'set'}", f"init.checkpoint={jobs.run('chain', 3)}"]
    steps = f"stage.steps={STEPS[4]}"
    run_well("gen1_train.train", "stage=4", *TRAIN, *settings, steps, f"output={jobs.work / 'local'}")
    assert_equal(jobs.run("local"), jobs.run("chain"))


def test_a_job_is_stopped_before_its_time_limit_and_resumes(jobs: Jobs):
    """Two ranks on the two GPUs of one node; the signal is the one that --signal sends to the batch shell."""
    job = jobs.stage4("signalled", "--gpus-per-node=2", "--cpus-per-gpu=1", cold=1)
    jobs.wait_for_rows("signalled", job)
    assert jobs.cluster.call("scancel", "--batch", "--signal=USR1", job).returncode == 0
    jobs.assert_equals("signalled", job, restarts=1)
    log = jobs.log(job)
    assert "1 nodes x 2 ranks" in log and "asked to stop by SIGUSR1" in log and f"job {job} is requeued" in log
    starts = (jobs.run("signalled") / "starts.jsonl").read_text().splitlines()
    assert [re.search(rf'"job": "{job}", "restarts": "(\d)"', start)[1] for start in starts] == ["0", "1"]  # type: ignore[index]


def test_a_real_time_limit_and_scancel(jobs: Jobs, station: Station):
    endless = ("stage.steps=100000", "checkpoint.every=1000")
    job = jobs.stage4("endless", *NODES, "--time=60", "--signal=B:USR1@60", settings=endless)
    jobs.wait_for_rows("endless", job)
    assert jobs.cluster.call("scontrol", "update", f"JobId={job}", "EndTime=now+65").returncode == 0
    jobs.cluster.wait(job, "PENDING", "COMPLETING", seconds=90)
    rows = jobs.rows("endless")
    jobs.wait_for_rows("endless", job, rows + 2)
    assert jobs.cluster.job(job)["Restarts"] == "1"
    assert jobs.cluster.call("scancel", job).returncode == 0
    assert jobs.cluster.wait(job)["JobState"] == "CANCELLED"
    checkpoint = latest(jobs.run("endless"))
    assert checkpoint is not None and checkpoint.info.step > rows and not ranks_of(job) and not station.running(job)
    assert jobs.log(job).count("asked to stop by SIGUSR1") == jobs.log(job).count("asked to stop by SIGTERM") == 1


def test_preemption_and_a_dead_node_put_a_job_back_into_the_queue(jobs: Jobs):
    """First, the only checkpoint is the one that is written within the time that Slurm leaves.

    Then slurmd, its step and its rank on the second node are killed at once; the node comes back later.
    """
    job = jobs.stage4("preempted", *NODES, settings=("checkpoint.every=5",), cold=2)
    jobs.wait_for_rows("preempted", job)
    assert jobs.cluster.call("scontrol", "requeue", job).returncode == 0
    stopped = re.compile(r"was stopped after step (\d+)")
    jobs.wait_for_rows("preempted", job, 11)
    start, slurmd = time.monotonic(), int((jobs.cluster.base / "run" / "slurmd.node2.pid").read_text())
    for pid in [slurmd, *ranks_of(job, "node2")]:
        os.kill(pid, signal.SIGKILL)
    jobs.cluster.wait(job, "PENDING", seconds=120)
    assert time.monotonic() - start < 120
    assert re.search(r"rank 1 .*is gone", jobs.log(job)), jobs.log(job)
    jobs.cluster.start()
    jobs.assert_equals("preempted", job, restarts=2)
    assert len(stopped.findall(jobs.log(job))) == 1


def ranks_of(job: str, node: str | None = None) -> list[int]:
    """The process ids of a job's processes on this machine, and of Slurm's own, which are their parents."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        of_job = f"SLURM_JOB_ID={job}".encode() in environment and b"SLURM_PROCID=0" not in environment
        if of_job and (node is None or f"SLURMD_NODENAME={node}".encode() in environment):
            pids += [int(folder.name), parent]
    return sorted(set(pids))


MISTAKES = {  # a setting, or a variable of the job's environment, by the words of the error
    "there is no setting optim.lrr; did you mean optim.lr?": ("optim.lrr=1", {}),
    "nowhere": ("data.root=nowhere", {}),
    "the host no-such-host.invalid cannot be resolved": ("seed=0", {"MASTER_ADDR": "no-such-host.invalid"}),
}


@pytest.fixture(scope="module")
def mistaken_jobs(jobs: Jobs) -> dict[str, str]:
    """A job for each of MISTAKES, submitted together."""
    script = [*NODES, SCRIPTS / "stage4.sh", f"output={jobs.work / 'wrong'}", "stage.steps=2"]
    start = f"init.checkpoint={jobs.run('chain', 3)}"
    return {
        words: jobs.cluster.submit(*script, start, setting, folder=jobs.folder, **{**jobs.site, **variables})
        for words, (setting, variables) in MISTAKES.items()
    }


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_reported_before_srun(jobs: Jobs, mistaken_jobs: dict[str, str], words: str):
    job = mistaken_jobs[words]
    ended = jobs.cluster.wait(job)
    errors = [line for line in jobs.log(job).splitlines() if "error" in line]
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0"), jobs.log(job)
    assert len(errors) == 1 and words in errors[0], jobs.log(job)
    assert not (jobs.work / "wrong").exists()


def test_a_chain_with_a_mistake_is_not_submitted(jobs: Jobs):
    call = [SCRIPTS / "all.sh", "--stages=4,5", f"output={jobs.work / 'wrong'}", "5:stage.stepps=3"]
    result = jobs.cluster.call(*call, folder=jobs.folder, **jobs.site)
    assert result.returncode == 2 and "did you mean stage.steps?" in result.stderr and not result.stdout
    assert not jobs.cluster.call("squeue", "--noheader").stdout


@pytest.mark.parametrize(("script", "options"), [("stage1.sh", []), ("stage4.sh", []), ("all.sh", ["--stages=1,2"])])
def test_scripts_can_be_tried_without_a_job(
    cluster: Cluster, station: Station, tmp_path: Path, script: str, options: list[str]
):
    site = cluster.base / "site.env"
    site.write_text(f"GEN1_RUN=({station.prefix})\nexport DS_ACCELERATOR=cpu OMP_NUM_THREADS=1\n")
    call = [SCRIPTS / script, "--test-only", *options, "data.root=somewhere"]
    result = cluster.call(*call, folder=tmp_path, GEN1_SITE=str(site))
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("to start at") == (2 if options else 1)
    assert not list(tmp_path.iterdir())
