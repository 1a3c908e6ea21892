"""JSON that may be damaged: types are checked, and every problem is one line that names the place."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gen1_train.errors import UserError
from gen1_train.system.records import check_format, make_record, parse_json, read_json


@dataclass(frozen=True)
class Inner:
    count: int


@dataclass
class Outer:
    name: str
    share: float
    inner: Inner
    parts: list[Inner] = field(default_factory=list)
    words: tuple[str, ...] = ()
    table: Mapping[str, int] = field(default_factory=dict)
    anything: dict[str, Any] = field(default_factory=dict)
    maybe: int | None = None
    flag: bool = False


GOOD = {"name": "a", "share": 1, "inner": {"count": 2}}


def test_a_record_has_the_annotated_types() -> None:
    content = {**GOOD, "parts": [{"count": 1}], "words": ["x"], "table": {"a": 1}, "anything": {"b": [1.5]}, "maybe": 3}
    record = make_record(Outer, content)
    assert record == Outer("a", 1, Inner(2), [Inner(1)], ("x",), {"a": 1}, {"b": [1.5]}, 3)
    assert make_record(Outer, {**GOOD, "maybe": None}) == Outer("a", 1, Inner(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "name is a whole number instead of a text"),
        ({"share": True}, "share is true or false instead of a number"),
        ({"share": float("nan")}, "share is not finite instead of a number"),
        ({"share": 10**400}, "share is a whole number instead of a number"),
        ({"inner": []}, "inner is a list instead of an object"),
        ({"inner": {}}, "inner has no count"),
        ({"inner": {"count": 1.0}}, "inner.count is a number instead of a whole number"),
        ({"inner": {"count": True}}, "inner.count is true or false instead of a whole number"),
        ({"parts": [{"count": 1}, None]}, r"parts\[1\] is null instead of an object"),
        ({"words": "x"}, "words is a text instead of a list"),
        ({"table": {"a": "1"}}, "table.a is a text instead of a whole number"),
        ({"maybe": "3"}, "maybe is a text instead of a whole number"),
        ({"flag": 1}, "flag is a whole number instead of true or false"),
        ({"a\nb": 1}, r"it has an unknown entry 'a\\nb'"),
    ],
)
def test_another_type_is_named_with_its_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make_record(Outer, {**GOOD, **change})
    assert str(error.value).isprintable()


@pytest.mark.parametrize("content", [None, [], 3, "x", {}, {"name": "a"}])
def test_what_is_no_such_object_is_refused(content: Any) -> None:
    with pytest.raises(ValueError, match=r"^it (is|has) "):
        make_record(Outer, content)


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff\xfe\x00", b"1" * 5000])
def test_what_is_no_json_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(data)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(OSError, match="not a regular file"):
        read_json(tmp_path / "manifest.json")


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (4, r"^x\.json was made by a newer gen1-train \(format 4, but this version reads 3\): update gen1-train$"),
        (2, r"^x\.json has format 2, but this version reads 3: make it again$"),
        ("9", r"^x\.json has format '9', but"),
        (None, r"^x\.json has format None, but"),
        (3.0, r"^x\.json has format 3\.0, but"),
        (True, r"^x\.json has format True, but"),
    ],
)
def test_a_newer_format_is_named_as_such(version: Any, message: str) -> None:
    check_format(3, 3, "x.json", "make it again")
    with pytest.raises(UserError, match=message):
        check_format(version, 3, "x.json", "make it again")
