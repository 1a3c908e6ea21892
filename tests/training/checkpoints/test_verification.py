"""One process hashes a checkpoint and tells the others."""

import json
import os
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.distributed import DistStoreError, HashStore, Store, TCPStore

from benchmarks.ranks import environment, free_ports, in_ranks
from gen1_train.errors import UserError
from gen1_train.system.processes import LAUNCHER
from gen1_train.training.checkpoints import checkpoint, verification
from gen1_train.training.checkpoints.checkpoint import UNET, Checkpoint, CheckpointConfig, CheckpointInfo
from gen1_train.training.checkpoints.verification import VERDICTS, Follower, Leader, Verdict, Verification, identify
from gen1_train.training.checkpoints.writing import begin, commit
from tests.running import ENVIRONMENT, REPOSITORY, command
from tests.training.alone import make_start
from tests.training.checkpoints.starting import count

PATIENCE = 60.0


def save(run: Path, step: int) -> Checkpoint:
    info = CheckpointInfo("3", step, finished=False)
    tensors = {UNET: {"w": torch.full((4,), float(step))}}
    return checkpoint.read_checkpoint(commit(begin(run, step), tensors, "stage: {}\n", info, CheckpointConfig()))


def flip(made: Checkpoint) -> None:
    data = bytearray((made.path / UNET).read_bytes())
    data[-1] ^= 1
    (made.path / UNET).write_bytes(data)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that have hashed a file."""
    names: list[str] = []
    verify = Checkpoint.verify

    def record(made: Checkpoint, which: str | None = None) -> None:
        names.append(threading.current_thread().name)
        verify(made, which)

    monkeypatch.setattr(Checkpoint, "verify", record)
    return names


def following(store: Store, patience: float = PATIENCE) -> Follower:
    return Follower(lambda: store, patience)


def test_a_follower_takes_the_verdicts_of_the_leader_and_reads_nothing(tmp_path: Path, hashed: list[str]) -> None:
    store = HashStore()
    leader, follower = Leader(store, 1), following(store)
    made, damaged = save(tmp_path, 1), save(tmp_path, 2)
    flip(damaged)
    for process in (leader, follower):
        with pytest.raises(UserError, match=rf"{damaged.path} is damaged: {UNET} is not what was written"):
            process.verify(damaged)
        process.verify(made)
        process.verify(made)
    assert len(hashed) == 2
    leader.close()


def test_a_follower_waits_until_there_is_a_verdict(tmp_path: Path, hashed: list[str]) -> None:
    store, made = HashStore(), save(tmp_path, 1)
    thread = threading.Thread(target=following(store).verify, args=(made,), name="follower")
    thread.start()
    time.sleep(0.2)
    assert thread.is_alive() and hashed == []
    Leader(store, 1).verify(made)
    thread.join(PATIENCE)
    assert hashed == ["MainThread"]


def test_what_the_leader_has_not_verified_a_follower_verifies_itself(tmp_path: Path, hashed: list[str]) -> None:
    """Its file system shows it another newest checkpoint, for example."""
    store = HashStore()
    leader, follower = Leader(store, 1), following(store)
    made, other = save(tmp_path, 1), save(tmp_path, 2)
    leader.verify(made)
    leader.verify(other, "raw")
    leader.close()
    follower.verify(other)
    follower.verify(made)
    assert len(hashed) == 3


@pytest.mark.parametrize("damage", ["elsewhere", "another"])
def test_a_verdict_is_about_one_folder_with_one_content(tmp_path: Path, hashed: list[str], damage: str) -> None:
    made = save(tmp_path / "run", 1)
    other = save(tmp_path / ("elsewhere" if damage == "elsewhere" else "run"), 1 if damage == "elsewhere" else 2)
    process = Verification([Verdict(identify(made, None))])
    process.verify(made)
    process.verify(other)
    assert len(hashed) == 1


def test_a_follower_of_a_leader_that_hangs_verifies_itself(tmp_path: Path, hashed: list[str]) -> None:
    made = save(tmp_path, 1)
    following(HashStore(), patience=0.1).verify(made)
    assert len(hashed) == 1


def test_a_follower_of_a_leader_that_ends_verifies_itself(tmp_path: Path, hashed: list[str]) -> None:
    made = save(tmp_path, 1)

    def connect() -> Store:
        raise DistStoreError("it is gone")

    Follower(connect, PATIENCE).verify(made)
    assert len(hashed) == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"about": 1}', '{"about": "x", "code": "y"}'])
def test_what_is_no_verdict_is_none(tmp_path: Path, hashed: list[str], text: str) -> None:
    store, made = HashStore(), save(tmp_path, 1)
    store.set(verification._key("0", 0), text)
    following(store).verify(made)
    assert len(hashed) == 1


def test_a_server_that_ends_does_not_keep_a_follower(tmp_path: Path, hashed: list[str]) -> None:
    server = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=PATIENCE), wait_for_workers=False)
    port = server.port
    follower = Follower(lambda: TCPStore("127.0.0.1", port, None, False, timedelta(seconds=PATIENCE)), PATIENCE)
    thread = threading.Thread(target=follower.verify, args=(save(tmp_path, 1),), name="follower")
    thread.start()
    time.sleep(0.5)
    del server
    thread.join(PATIENCE / 2)
    assert hashed == ["follower"]


def test_a_leader_that_trains_nothing_keeps_the_store_until_all_have_read_it(tmp_path: Path) -> None:
    store, made = HashStore(), save(tmp_path, 1)
    leader = Leader(store, 1)
    leader.verify(made)
    leader.close()
    ending = threading.Thread(target=leader.linger)
    ending.start()
    time.sleep(0.2)
    assert ending.is_alive()
    following(store).verify(made)
    ending.join(verification.LINGER / 2)
    assert not ending.is_alive()


@pytest.mark.parametrize("parent", ["mine", "another"])
def test_ranks_that_a_process_has_started_inherit_its_verdicts(
    tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch, parent: str
) -> None:
    made = save(tmp_path, 1)
    monkeypatch.setenv(LAUNCHER, str(os.getppid() + (parent == "another")))
    monkeypatch.setenv(VERDICTS, json.dumps([{"about": identify(made, None)}]))
    with verification.verification(1, 2, PATIENCE) as shared:
        shared.verify(made)
    assert len(hashed) == (parent == "another")
    assert VERDICTS not in os.environ


@pytest.mark.parametrize("text", ["", "{", "[1]", "5", '[{"about": 5}]'])
def test_what_is_no_list_of_verdicts_is_ignored(
    tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(LAUNCHER, str(os.getppid()))
    monkeypatch.setenv(VERDICTS, text)
    with verification.verification(1, 2, PATIENCE) as shared:
        shared.verify(save(tmp_path, 1))
    assert len(hashed) == 1


def test_a_process_that_trains_alone_meets_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if it was launched with others: they would meet it in its store, and wait for it."""
    for name, value in environment(0, 2, free_ports(1)[0]).items():
        monkeypatch.setenv(name, value)
    with verification.verification(1, 1, PATIENCE) as shared:
        assert type(shared) is Verification
        shared.verify(save(tmp_path, 1))


def test_a_second_training_of_the_same_processes_has_verdicts_of_its_own(tmp_path: Path, hashed: list[str]) -> None:
    store, made = HashStore(), save(tmp_path, 1)
    for launch in ("0/0", "0/1"):
        leader, follower = Leader(store, 1, launch), Follower(lambda: store, PATIENCE, launch)
        leader.verify(made)
        leader.close()
        follower.verify(made)
        leader.linger()
    assert len(hashed) == 2


def test_an_interrupted_verification_is_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(made: Checkpoint, which: str | None = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "verify", interrupt)
    process = Verification()
    with pytest.raises(KeyboardInterrupt):
        process.verify(save(tmp_path, 1))
    assert process.verdicts == {}


@pytest.mark.filterwarnings("ignore:.*srun. command is available")
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"RANK": "1"}, None),
        (environment(1, 4, 5000), ("127.0.0.1", 5000, 4)),
        ({"NODE_RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "5000"}, ("first", 5000, 2)),
        ({"MASTER_ADDR": "first", "MASTER_PORT": "5000"}, None),
        ({"LOCAL_RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "any"}, None),
        (
            {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NAME": "stage4"}
            | {"SLURM_NODELIST": "node[3-4]", "SLURM_JOB_ID": "40012"},
            ("node3", 15012, 8),
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_NAME": "bash"}, None),
    ],
)
def test_processes_meet_where_lightning_does(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: tuple[str, int, int] | None
) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in ({"MASTER_ADDR": None, "MASTER_PORT": None} | variables).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    found = verification._meeting(nodes=2)
    assert (found and (found.host, found.port, found.processes)) == expected


@pytest.mark.slow
def test_torchrun_has_the_store(tmp_path: Path) -> None:
    save(tmp_path, 1)
    flip(save(tmp_path, 2))
    (port,) = free_ports(1)
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    words += ["-m", "tests.training.checkpoints.meeting", str(tmp_path)]
    done = subprocess.run(words, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    first, second = sorted(done.stdout.splitlines())
    assert first in ("0 1 3", "0 1 4"), done.stderr  # whole files, and one or both of those of the damaged checkpoint
    assert second == "1 1 0"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_rank_verifies_the_predecessor_of_a_new_run_and_the_checkpoint_of_a_resumed_one(tmp_path: Path) -> None:
    """Lightning starts the second rank of the new run, and something else both ranks of the resumed one."""
    make_start(tmp_path)
    (tmp_path / "counts").mkdir()
    words = [str(tmp_path), "out", "1", str(tmp_path / "counts")]
    done = subprocess.run(
        command("tests.training.checkpoints.starting", *words),
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    counts = {path.name: path.read_text().split() for path in (tmp_path / "counts").iterdir()}
    assert counts == {"0": ["config.yaml", UNET], "1": []}
    first, second = in_ranks(count, 2, tmp_path, "out", 2)
    assert len([name for name in first if name.endswith(".safetensors")]) == 6  # weights, average, moments; in 2 parts
    assert second == []
