"""Work on many cases: the results are the same with and without processes, and an error of a job is raised."""

import os
import signal

import pytest

from gen1_train.errors import UserError
from miniature import spread as module
from miniature.spread import spread


def squared(job: int) -> tuple[int, int]:
    if job == -1:
        raise UserError("job -1 is bad")
    if job == -9:
        os.kill(os.getpid(), signal.SIGKILL)
    return job * job, os.getpid()


def test_few_jobs_run_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cores", lambda: 2)
    assert spread(squared, [3, 1, 2], "squares", "job") == [(9, os.getpid()), (1, os.getpid()), (4, os.getpid())]


@pytest.mark.slow
def test_many_jobs_run_in_other_processes_and_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cores", lambda: 2)
    squares = spread(squared, range(40), "squares", "job")
    assert [value for value, _ in squares] == [number * number for number in range(40)]
    assert os.getpid() not in {pid for _, pid in squares}


@pytest.mark.slow
@pytest.mark.parametrize(("job", "message"), [(-1, "job -1 is bad"), (-9, "a worker process was killed")])
def test_an_error_of_a_job_is_raised(monkeypatch: pytest.MonkeyPatch, job: int, message: str) -> None:
    monkeypatch.setattr(module, "cores", lambda: 2)
    with pytest.raises(UserError, match=message):
        spread(squared, [1, 2, 3, job, *range(20)], "squares", "job")
