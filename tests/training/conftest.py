from collections.abc import Iterator

import pytest

from gen1_train.system.console import console
from tests.training.plans import remembered_plans


@pytest.fixture(autouse=True)
def gen1_train_console() -> Iterator[None]:
    """Prints what runs in this process log, as the command does; so tests compare it through capsys."""
    with console("gen1-train"):
        yield


@pytest.fixture(scope="module", autouse=True)
def quick_starts(request: pytest.FixtureRequest) -> Iterator[None]:
    if "planning" in request.path.parts:  # its subject
        yield
    else:
        with remembered_plans():
            yield
