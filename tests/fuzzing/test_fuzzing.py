"""Every reader of a stranger's file ends with a value or one line, in bounded time and memory, and does nothing else.

`make fuzz` tries many more inputs, which differ in each run. An input that fails is written to
tests/fuzzing/failed/. It is committed with its remedy, and every run after that tries it.
"""

import os
import re
import tempfile
import traceback
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzzing import material
from tests.fuzzing.target import Target
from tests.fuzzing.targets import TARGETS
from tests.running import REPOSITORY

FAILED = Path(__file__).parent / "failed"  # TARGET/NAME: inputs that failed once
FACTOR = int(os.environ.get("GEN1_FUZZ", "0"))  # `make fuzz` sets it: FACTOR times the inputs, at random
INPUTS = sorted(path for path in FAILED.glob("*/*") if path.parent.name in TARGETS)


@pytest.fixture(scope="module", autouse=True)
def whole_files() -> None:
    """Makes what the inputs are read with before anything is watched."""
    material.shard_set()
    material.checkpoint()
    material.prior()
    material.depth_anything()
    material.captioner("blip")
    material.captioner("coca")


def check(target: Target, data: bytes) -> None:
    """Reads an input; one that fails is kept in a file, of which hypothesis writes the smallest last."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            target.check(data, Path(folder))
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt):
            keep(target, data, error)
        raise


def keep(target: Target, data: bytes, error: BaseException) -> None:
    """Writes an input to a file that has its name from the error and from the last function of ours that it left."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        frame.name
        for frame in frames
        if Path(frame.filename).is_relative_to(REPOSITORY) and "site-packages" not in frame.filename
    ]
    name = re.sub(r"\W+", "-", f"{type(error).__name__}-{ours[-1]}")
    (FAILED / target.name).mkdir(parents=True, exist_ok=True)
    (FAILED / target.name / name).write_bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_a_whole_input_is_read(name: str, tmp_path: Path) -> None:
    """Otherwise all changes of it would be refused for one reason."""
    result = TARGETS[name].check(TARGETS[name].data, tmp_path)
    assert not isinstance(result, Exception), result


@pytest.mark.parametrize("name", TARGETS)
def test_reading_ends_with_a_value_or_one_line(name: str) -> None:
    target = TARGETS[name]

    @settings(
        max_examples=target.examples * max(1, FACTOR),
        derandomize=not FACTOR,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(target.changed(target.data))
    def read(data: bytes) -> None:
        check(target, data)

    read()


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_no_input_fails_again(path: Path, tmp_path: Path) -> None:
    target = TARGETS[path.parent.name]
    assert target.data  # it makes the other files that are read
    target.check(path.read_bytes(), tmp_path)
