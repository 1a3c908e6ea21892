"""docs/security.md names only files and tests that exist."""

import re

from tests.running import REPOSITORY

TEXT = (REPOSITORY / "docs" / "security.md").read_text()


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)
    assert len(named) > 30
    missing = [f"{path}::{name}" for path, name in named if f"def {name}(" not in (REPOSITORY / path).read_text()]
    assert missing == []


def test_every_line_names_a_file_and_a_test() -> None:
    files = re.findall(r"`((?:gen1_train|data_tools|tests)/[\w/]+\.py)", TEXT)
    assert [path for path in files if not (REPOSITORY / path).is_file()] == []
    rows = [
        line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith(("| file |", "| what |"))
    ]
    assert len(rows) > 20 and [row for row in rows if "`tests/" not in row] == []
