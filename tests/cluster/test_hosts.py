"""Runs on several hosts: they make what one host makes, over any network; and they end if a host is cut off."""

import re
import subprocess
from pathlib import Path

import pytest

from gen1_train.errors import LOST
from gen1_train.training.checkpoints.checkpoint import latest
from tests.cluster.hosts import hosts
from tests.cluster.rank import HELD, SILENCE, STEP
from tests.cluster.runs import EVERY, PORT, Ranks, settings
from tests.forkserver import ColdPopen
from tests.running import ENVIRONMENT, REPOSITORY, command
from tests.training.runs import assert_equal_to_the_bit, assert_same_run, folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SECONDS = 6.0  # without a heartbeat, after which a machine counts as gone
BOUND = SECONDS + 30.0  # within which all ranks have ended


def test_torchrun_on_two_hosts_makes_what_two_processes_make_even_over_a_poor_network(root: Path) -> None:
    """All processes are fresh ones here, and torchrun has the store in which the ranks meet.

    A queue that is too short for what a rank sends at once loses packets; TCP sends them again.
    """
    with hosts(2) as made:
        launched = []
        for host in made:
            host.shape("tbf", "rate", "100mbit", "burst", "16kb", "latency", "2ms")
            launcher = [f"--nnodes={len(made)}", f"--node-rank={host.number}", "--nproc-per-node=1"]
            launcher += [f"--master-addr={made[0].name}", f"--master-port={PORT}", "-m", "gen1_train.train"]
            line = host.enter(*command("torch.distributed.run", *launcher, *settings(root, "torchrun", hosts=2)))
            output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            launched.append(ColdPopen(line, cwd=REPOSITORY, env=ENVIRONMENT, **output))
        outputs = [process.communicate(timeout=200)[0] for process in launched]
        assert [process.returncode for process in launched] == [0, 0], "\n".join(outputs)
        dropped = [int(re.search(r"dropped (\d+)", host.counts())[1]) for host in made]  # type: ignore[index]
    assert all(dropped)
    assert_equal_to_the_bit(root, "torchrun", "straight")


def test_delay_and_loss_change_nothing(root: Path, tmp_path: Path, netem: None) -> None:
    with hosts(2) as made:
        for host in made:
            host.shape("netem", "delay", "5ms", "loss", "1%")
        ranks = Ranks(made, settings(root, "lossy", hosts=2), tmp_path).start()
        assert ranks.codes(seconds=250) == [0, 0], ranks.outputs()
    assert_equal_to_the_bit(root, "lossy", "straight")


def test_hosts_that_cannot_reach_each_other_end(root: Path, tmp_path: Path) -> None:
    with hosts(2) as made:
        made[1].cut_off()
        ranks = Ranks(made, [*settings(root, "apart", hosts=2), "trainer.rendezvous_seconds=5"], tmp_path).start()
        assert ranks.codes(BOUND) == [1, 1], ranks.outputs()
    wanted = f"error: the 2 ranks have not met at host0:{PORT} within 5 s: look at the output of the other ranks"
    for rank in range(2):
        assert wanted in ranks.output(rank) and "Traceback" not in ranks.output(rank)


@pytest.mark.parametrize("place, lost", [("start", 2), ("training", 2), ("checkpoint", 2), ("training", 0)])
def test_all_ranks_end_if_a_host_is_cut_off_and_a_restart_without_it_goes_on(
    root: Path, tmp_path: Path, place: str, lost: int
) -> None:
    """The rank of the host is cut off while it is held at the place; then it runs on.

    Rank 0 has the store in which the ranks meet. The other side is named on both sides of the cut.
    """
    run = f"{place}-{lost}"
    with hosts(3) as made:
        ranks = Ranks(made, settings(root, run, hosts=3), tmp_path)
        for rank in range(3):
            held = {HELD: f"{place}:{tmp_path}"} if rank == lost else {}
            ranks.start_rank(rank, **{SILENCE: f"{SECONDS}"}, **held)
        ranks.wait_for(f"the {place}", (tmp_path / "held").exists)
        if place != "start":
            ranks.wait_for("a checkpoint", lambda: latest(folder(root, run)))
        made[lost].cut_off()
        (tmp_path / "go").touch()
        codes = ranks.codes(BOUND)
        assert codes == [1 if place == "start" else LOST] * 3, ranks.outputs()
        reporter = 1 if lost == 0 else 0
        assert re.search(rf"error: rank {lost} \(host{lost}[,)].* is gone: ", ranks.output(reporter)), ranks.outputs()
        assert "Traceback" not in ranks.outputs() and "error" not in ranks.output(3 - lost - reporter)
        checkpoint = latest(folder(root, run))
        if place == "start":
            assert checkpoint is None
            return
        assert checkpoint is not None and checkpoint.info.step == EVERY < STEP
        others = [host for host in made if host.number != lost]
        again = Ranks(others, settings(root, run, hosts=2), tmp_path / "again").start()
        assert again.codes(seconds=100) == [0, 0], again.outputs()
    assert f"steps {EVERY} to " in again.output(0)
    assert_same_run(root, run, "straight")
