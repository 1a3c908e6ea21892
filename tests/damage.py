"""Damages files bit by bit and JSON value by value: a reader must refuse that, or read what was written."""

import json
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from gen1_train.errors import UserError

VALUES: list[Any] = [None, True, False, 0, -1, 3, 1.5, 1 << 70, "", "x", "../x", [], [0], {}, {"a": 0}, "\x00\n\x1b[2J"]


def flipped_bits(data: bytes, count: int) -> Iterator[bytes]:
    """Yields copies of `data` with one flipped bit each, at places that are the same in every run."""
    for bit in random.Random(0).sample(range(8 * len(data)), min(count, 8 * len(data))):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def replaced_values(content: Any, count: int) -> Iterator[Any]:
    """Yields copies of JSON content in which one value, at any depth, has another value or another type."""
    changes = [(place, value) for place in _places(content) for value in VALUES]
    for place, value in random.Random(0).sample(changes, min(count, len(changes))):
        changed = deepcopy(content)
        if not place:
            yield deepcopy(value)
            continue
        holder = changed
        for step in place[:-1]:
            holder = holder[step]
        holder[place[-1]] = deepcopy(value)
        yield changed


def _places(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    steps = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for step, value in steps:
        yield from _places(value, (*place, step))


def assert_refused_or_equal(path: Path, changes: Iterator[bytes], load: Callable[[], Any]) -> int:
    """Writes each change to `path`; `load` must raise UserError of one line, or return what it returned before.

    Returns the number of changes that were refused. `path` has its first content again afterwards.
    """
    original = path.read_bytes()
    expected = load()
    refused = 0
    for data in changes:
        path.write_bytes(data)
        try:
            assert load() == expected, data
        except UserError as error:
            assert str(error).isprintable(), data
            refused += 1
    path.write_bytes(original)
    assert load() == expected
    return refused


def as_json(contents: Iterator[Any]) -> Iterator[bytes]:
    """Encodes each content."""
    return (json.dumps(content).encode() for content in contents)
