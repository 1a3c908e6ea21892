"""Changes of documents (JSON, YAML, CSV) by their structure, as strategies of hypothesis."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import yaml
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from tests.fuzzing.byte_mutations import byte_changes

Document = Any  # what JSON and YAML hold
TOKEN = "RAW-TEXT-"  # a value that becomes a text which no writer gives
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        255,
        20_000,
        1 << 16,
        1 << 31,
        (1 << 32) - 1,
        1 << 53,
        1 << 63,
        1 << 64,
        -(1 << 63),
    ),
    *(10**30, 10**400, 10**4200, -(10**4200), 0.0, -0.0, 0.5, -1.5, 1e-320, 1e18, 1e308, -1e308),
    *(float("inf"), float("-inf"), float("nan")),
    *("", " ", "0", "-1", "1e400", "nan", "inf", "x", "x" * 300, "x" * 100_000, "é", "\ud800", "\0", "\x1b[2J", "a\nb"),
    *(
        "\u2028",
        "\u202e",
        "/etc/passwd",
        "../../x",
        "x/../..",
        "~",
        "-",
        "*",
        "a.b",
        "${oc.env:HOME}",
        "${x",
        "%s",
        "{0}",
    ),
    *("http://a:b@c/d", "hf-hub:a/b", "local-dir:.", "file:///etc/passwd", "1x1", "0x0", "9999999x1", "video-0x0"),
    *([], [[]], [0], [None], [""], ["../x"], {}, {"": 0}, {"x": None}, {"format": 1}, {"__class__": "x"}, [1] * 5000),
)
NAMES = (
    "",
    "x",
    "format",
    "hash",
    "step",
    "data",
    "a.b",
    "../x",
    "\0",
    "é",
    "\ud800",
    "x" * 300,
    "__init__",
    "auto_map",
)
JSON_TEXTS = (
    "NaN",
    "-Infinity",
    "1e999",
    "-1e999",
    "1" * 5000,
    "9" * 4300,
    '"\\ud800"',
    '"\\u0000"',
    "tru",
    "{",
    "}",
    "",
)
YAML_TEXTS = (
    *(".nan", ".inf", "1e999", "0x_", "0b", "0o9", "1:1:1:1", "1:" * 400 + "1.5", "1" * 5000, "=", "<<", "~", "? [a]"),
    *("2001-01-01", "2001-99-99", "9999-12-31T23:59:59-23:59", "!!timestamp x", "!!bool x", "!!int ''", "!!int x"),
    *(
        "!!float x",
        "!!float ''",
        "!!null x",
        "!!binary é",
        "!!binary aGVsbG8=",
        "!!set {a, b}",
        "!!omap [a: 1]",
        "!!str",
    ),
    *(
        "!!python/object/apply:os.system [id]",
        "!!python/name:os.system",
        "!x y",
        "&a [*a]",
        "*b",
        "&a {b: *a}",
        "{<<: 1}",
    ),
    *(
        "{[a]: b}",
        "{{a: b}: c}",
        "{1: a, 1: b}",
        "${oc.env:HOME}",
        '"${oc.env:HOME}"',
        '"\\ud800"',
        "|",
        "- ",
        "\t",
        "@",
        "%",
    ),
)
BOMB = 9  # levels of ten aliases each


def _places(content: Document, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    steps = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for step, value in steps:
        yield from _places(value, (*place, step))


def _replaced(content: Document, place: tuple[Any, ...], change: Callable[[Any], Any]) -> Document:
    """Replaces the value at a place by `change` of it."""
    if not place:
        return change(content)
    holder = content
    for step in place[:-1]:
        holder = holder[step]
    holder[place[-1]] = change(holder[place[-1]])
    return content


@st.composite
def changed_document(draw: DrawFn, seed: Document, texts: Sequence[str]) -> tuple[Document, list[str]]:
    """Draws a document with up to three changes, and the texts that replace the tokens in it."""
    content = deepcopy(seed)
    raw: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(list(_places(content))[:3000]))
        kind = draw(st.sampled_from(("value", "value", "value", "text", "delete", "rename", "repeat", "wrap", "nest")))
        if kind == "value":
            value = draw(st.sampled_from(VALUES))
            content = _replaced(content, place, lambda old, value=value: deepcopy(value))
        elif kind in ("text", "nest"):
            raw.append(draw(st.sampled_from(texts)) if kind == "text" else draw(nested_text()))
            content = _replaced(content, place, lambda old: f"{TOKEN}{len(raw) - 1}-")
        elif kind == "wrap":
            content = _replaced(content, place, draw(st.sampled_from((lambda old: [old], lambda old: {"x": old}))))
        elif place:
            content = _replaced(content, place[:-1], draw(_change_of_holder(kind, place[-1])))
    return content, raw


def _change_of_holder(kind: str, step: Any) -> SearchStrategy[Callable[[Any], Any]]:
    """Changes that delete, rename or repeat an entry of an object or a list."""

    def change(name: str) -> Callable[[Any], Any]:
        def of(holder: Any) -> Any:
            entries = list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder))
            number = next(i for i, (key, _) in enumerate(entries) if key == step)
            if kind == "delete":
                del entries[number]
            elif kind == "rename":
                entries[number] = (name, entries[number][1])
            else:
                entries.append((name, deepcopy(entries[number][1])))
            return dict(entries) if isinstance(holder, dict) else [value for _, value in entries]

        return of

    return st.sampled_from(NAMES).map(change)


def nested_text() -> SearchStrategy[str]:
    """Lists or objects in one another, closed or not."""
    depths = st.sampled_from((5, 20, 100, 950, 1500, 9000, 100_000))
    pairs = st.sampled_from((("[", "]"), ('{"a": ', "}"), ("[", "")))
    return st.builds(lambda depth, pair: pair[0] * depth + "0" + pair[1] * depth, depths, pairs)


def _with_texts(text: str, raw: Sequence[str], quote: str) -> bytes:
    for number, replacement in enumerate(raw):
        text = text.replace(f"{quote}{TOKEN}{number}-{quote}", replacement)
    return text.encode("utf-8", "surrogatepass")


def to_json(content: Document, raw: Sequence[str] = (), indent: int | None = None) -> bytes:
    return _with_texts(json.dumps(content, indent=indent), raw, '"')


def json_files(seal: Callable[[Any], Any] | None = None) -> Callable[[bytes], SearchStrategy[bytes]]:
    """Changes of a JSON file. `seal` makes the hash right that the file has of itself, for one half of the inputs."""

    def changed(data: bytes) -> SearchStrategy[bytes]:
        documents = changed_document(json.loads(data), JSON_TEXTS).map(lambda drawn: to_json(*drawn))
        strategies = [documents, documents.flatmap(byte_changes), byte_changes(data)]
        if seal is not None:
            strategies = [documents.map(lambda text: _sealed(text, seal))] * 3 + strategies
        return st.one_of(strategies)

    return changed


def _sealed(text: bytes, seal: Callable[[Any], Any]) -> bytes:
    try:
        return json.dumps(seal(json.loads(text))).encode()
    except Exception:  # there is no hash of what is not such a document
        return text


def json_lines(data: bytes) -> SearchStrategy[bytes]:
    """Changes of JSON lines."""
    rows = [json.loads(line) for line in data.splitlines()]
    documents = changed_document(rows, JSON_TEXTS).map(
        lambda drawn: (
            b"\n".join(to_json(row, drawn[1]) for row in drawn[0]) + b"\n"
            if isinstance(drawn[0], list)
            else to_json(*drawn)
        )
    )
    return st.one_of(documents, documents, byte_changes(data))


def yaml_files(data: bytes) -> SearchStrategy[bytes]:
    """Changes of a YAML file, among them values that are small in the file and gigabytes in memory."""
    seed = yaml.safe_load(data)
    documents = changed_document(seed, YAML_TEXTS).map(_to_yaml)
    bombs = st.sampled_from([place for place in _places(seed) if place]).map(lambda place: _bomb(seed, place))
    return st.one_of(documents, documents, bombs, byte_changes(data))


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _to_yaml(drawn: tuple[Document, list[str]]) -> bytes:
    return _with_texts(yaml.dump(drawn[0], Dumper=_Dumper, sort_keys=False, width=1 << 20), drawn[1], "")


def _bomb(seed: Document, place: tuple[Any, ...]) -> bytes:
    """A value of ten aliases of a value of ten aliases, and so on."""
    lists = ["&a0 [x]", *(f"&a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, BOMB))]
    bomb = f"[{', '.join(lists)}]"
    content = _replaced(deepcopy(seed), place, lambda old: f"{TOKEN}0-")
    return _to_yaml((content, [bomb]))


def csv_files(delimiter: str = ",") -> Callable[[bytes], SearchStrategy[bytes]]:
    """Changes of a table."""

    def changed(data: bytes) -> SearchStrategy[bytes]:
        rows = list(csv.reader(io.StringIO(data.decode()), delimiter=delimiter))
        tables = changed_document(rows, ('"', '"x', 'x"y', ",,,", "\r", "\n\n", "\0", "'")).map(to_csv)
        return st.one_of(tables, tables, byte_changes(data))

    def to_csv(drawn: tuple[Document, list[str]]) -> bytes:
        rows = drawn[0] if isinstance(drawn[0], list) else [drawn[0]]
        cells = [row if isinstance(row, list) else [row] for row in rows]
        text = "\n".join(delimiter.join(_text(cell) for cell in row) for row in cells) + "\n"
        return _with_texts(text, drawn[1], "")

    return changed


def _text(cell: Any) -> str:
    if isinstance(cell, int) and abs(cell) >= 10**4000:
        return "9" * 4300
    return str(cell)
