"""JSON and YAML files that may be damaged or come from others: their types are checked, not assumed.

JSON is parsed into dataclasses.
"""

import json
import math
import os
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from gen1_train.errors import UserError, one_line
from gen1_train.system.files import open_regular
from gen1_train.system.names import shown

MAX_BYTES = 1 << 30  # of a JSON file; the manifest of 140 000 shards has 8 MB; ours
MAX_DEPTH = 100  # of values in one another; ours
MAX_REASON = 300  # characters of a library's error in a message; ours

T = TypeVar("T")


def read_json(path: Path, most: int = MAX_BYTES) -> Any:
    """Reads a regular file of JSON, of up to `most` bytes. Raises OSError, and ValueError for what is not JSON."""
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise ValueError(f"it has {size} bytes")
        return parse_json(stream.read(most))


def load_json(path: Path, missing: str, remedy: str) -> Any:
    """Reads a file of JSON. Raises UserError: `missing` if there is none, and with the `remedy` if it is damaged."""
    try:
        return read_json(path)
    except FileNotFoundError:
        raise UserError(missing) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): {remedy}") from error


def parse_json(data: bytes | str) -> Any:
    """Parses JSON. Raises ValueError, also where Python's parser raises something else.

    What is nested as deeply as the parser allows would exceed the limit of what handles it later, such as json.dumps.
    """
    try:
        content = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    level = [content] if _holds(content) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return content
        entries = (each.values() if isinstance(each, dict) else each for each in level)
        level = [value for values in entries for value in values if _holds(value)]
    raise ValueError("it is nested too deeply")


def _holds(value: Any) -> bool:
    return isinstance(value, (dict, list))


def read_yaml(path: Path) -> Any:
    """Reads a regular file of YAML. Raises OSError, and ValueError for what is not YAML, see `parse_yaml`."""
    from gen1_train.formats.plain_yaml import MAX_BYTES, parse_yaml  # here: the model package needs no yaml

    with open_regular(path) as stream:
        return parse_yaml(stream.read(MAX_BYTES + 1))


def reason_in(error: BaseException) -> str:
    """Returns the first line of an error of a library, or its kind if it has no text."""
    lines = str(error).strip().splitlines()
    return one_line(lines[0])[:MAX_REASON] if lines else type(error).__name__


def format_of(content: Any) -> Any:
    """The format that the content of a file gives, which may be anything; None without one."""
    return content.get("format") if isinstance(content, dict) else None


def check_format(version: Any, known: int, file: str | Path, remedy: str, oldest: int | None = None) -> None:
    """Raises UserError unless `version` is the `known` format of `file`, or one from `oldest` on; a newer one is named
    as such."""
    if type(version) is int and version > known:
        raise UserError(
            f"{file} was made by a newer gen1-train (format {version}, but this version reads {known}): update "
            "gen1-train"
        )
    if type(version) is not int or version < (known if oldest is None else oldest):
        raise UserError(f"{file} has format {shown(version)}, but this version reads {known}: {remedy}")


def make_record(kind: type[T], content: Any, where: str = "") -> T:
    """Makes a dataclass from JSON. Every value must have the annotated type, and no key may be unknown.

    Annotations may be int, float (finite; an int is one too), str, bool, None, Any, dataclasses, unions with None,
    list, tuple of one type, dict and Mapping with str keys. `where` names the content in messages. Raises ValueError.
    """
    place = where or "it"
    if not isinstance(content, dict):
        raise ValueError(f"{place} is {_kind_of(content)} instead of an object")
    hints = _hints(kind)  # type: ignore[arg-type]
    if unknown := [name for name in content if name not in hints]:
        raise ValueError(f"{place} has an unknown entry {shown(unknown[0])}")
    values = {}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name in content:
            values[field.name] = checked(hints[field.name], content[field.name], _join(where, field.name))
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{place} has no {field.name}")
    return kind(**values)


def checked(expected: Any, value: Any, where: str) -> Any:
    """Returns a value of JSON in the annotated type `expected` (see `make_record`). Raises ValueError."""
    origin, parts = get_origin(expected), get_args(expected)
    if expected is Any:
        return value
    if origin in (Union, types.UnionType):
        (inner,) = (part for part in parts if part is not types.NoneType)
        return None if value is None else checked(inner, value, where)
    if is_dataclass(expected):
        return make_record(expected, value, where)  # type: ignore[arg-type]
    if origin in (list, tuple, Sequence) and isinstance(value, (list, tuple)):
        if parts[0] in (int, str, bool) and all(type(item) is parts[0] for item in value):
            return list(value) if origin is list else tuple(value)  # a manifest has a million of them
        items = [checked(parts[0], item, f"{where}[{number}]") for number, item in enumerate(value)]
        return items if origin is list else tuple(items)
    if (origin or expected) in (dict, Mapping) and isinstance(value, dict):
        inner = parts[1] if parts else Any
        return {name: checked(inner, item, _join(where, shown(name)[1:-1])) for name, item in value.items()}
    if origin is None and type(value) is expected and (expected is not float or math.isfinite(value)):
        return value
    if expected is float and type(value) is int and abs(value) < 1 << 63:
        return value
    raise ValueError(f"{where} is {_kind_of(value)} instead of {_NAMES.get(origin or expected, str(expected))}")


def require(holds: bool, problem: str) -> None:
    """Raises ValueError with the problem if a condition on checked values does not hold."""
    if not holds:
        raise ValueError(problem)


_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    dict: "an object",
    Mapping: "an object",
    list: "a list",
    tuple: "a list",
    Sequence: "a list",
    type(None): "null",
}


@lru_cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}  # type: ignore[arg-type]


def _kind_of(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "not finite"
    return _NAMES.get(type(value), type(value).__name__)


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
