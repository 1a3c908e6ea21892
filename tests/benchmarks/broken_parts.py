"""A benchmark whose parts fail in all ways: `python -m tests.benchmarks.broken_parts [--wait]`."""

import os
import signal
import sys
import time
from collections.abc import Iterator

from benchmarks.on_gpu.runner import Part, Runner, Skip, attempt
from benchmarks.on_gpu.scale import Scale
from benchmarks.questions import Row


def good(scale: Scale) -> Iterator[Row]:
    print("what a library prints")
    yield {"number": 1}


def raising(scale: Scale) -> Iterator[Row]:
    yield {"number": 2}
    raise RuntimeError("the kernel\nfailed")


def hanging(scale: Scale) -> Iterator[Row]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield {"number": 3}
    time.sleep(600)


def dying(scale: Scale) -> Iterator[Row]:
    yield {"number": 4}
    os.kill(os.getpid(), signal.SIGSEGV)


def lacking(scale: Scale) -> Iterator[Row]:
    yield {"number": 5}
    import no_such_package.inside  # noqa: F401


def needing_a_gpu(scale: Scale) -> Iterator[Row]:
    raise Skip("it needs a GPU")
    yield


def half_failing(scale: Scale) -> Iterator[Row]:
    yield attempt({"number": 6}, lambda: {"result": 1 / 0})
    yield attempt({"number": 7}, lambda: {"result": 1})


PARTS = (
    Part("good", good, 30),
    Part("raising", raising, 30),
    Part("hanging", hanging, 20),
    Part("dying", dying, 30),
    Part("lacking", lacking, 30),
    Part("unneeded", good, 30, ("no_such_package",)),
    Part("needing_a_gpu", needing_a_gpu, 30),
    Part("half_failing", half_failing, 30),
    Part("last", good, 30),
)
WAITING = (Part("good", good, 30), Part("hanging", hanging, 300), Part("last", good, 30))


if __name__ == "__main__":
    runner = Runner(Scale.tiny(), seconds=600)
    sys.exit(runner.exit_code(runner.run(WAITING if "--wait" in sys.argv else PARTS)))
