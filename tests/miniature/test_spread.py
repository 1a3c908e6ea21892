"""Work on many cases: the same in processes as in this one, and an error of one job is the caller's."""

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


def test_few_jobs_are_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cores", lambda: 2)
    assert spread(squared, [3, 1, 2], "squares", "job") == [(9, os.getpid()), (1, os.getpid()), (4, os.getpid())]


@pytest.mark.slow
def test_many_go_to_processes_and_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cores", lambda: 2)
    made = spread(squared, range(40), "squares", "job")
    assert [value for value, _ in made] == [number * number for number in range(40)]
    assert os.getpid() not in {pid for _, pid in made}


@pytest.mark.slow
@pytest.mark.parametrize(("job", "said"), [(-1, "job -1 is bad"), (-9, "a worker process was killed")])
def test_an_error_of_one_job_is_raised(monkeypatch: pytest.MonkeyPatch, job: int, said: str) -> None:
    monkeypatch.setattr(module, "cores", lambda: 2)
    with pytest.raises(UserError, match=said):
        spread(squared, [1, 2, 3, job, *range(20)], "squares", "job")
