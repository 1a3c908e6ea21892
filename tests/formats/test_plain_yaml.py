"""YAML that a stranger wrote."""

import time

import pytest

from gen1_train.formats.plain_yaml import MAX_BYTES, parse_yaml


def test_plain_values_are_read() -> None:
    text = "a: [1, 2.5, true, null, 'x', 2001-01-01]\nb: &b {c: 1}\nd: *b\n"
    assert parse_yaml(text) == {"a": [1, 2.5, True, None, "x", "2001-01-01"], "b": {"c": 1}, "d": {"c": 1}}
    assert parse_yaml(b"") is None


BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
MISTAKES = [
    (BOMB, "its aliases stand for more than 50000 values"),
    ("a: &a [*a]", "nested too deeply"),
    ("[" * 1000 + "]" * 1000, "nested too deeply"),
    ("a: &a0 [x]\nb: " + "[" * 31, "nested too deeply"),
    ("x" * (MAX_BYTES + 1), "larger than 64 KiB"),
    *((text, "not YAML of plain values") for text in ("a: !!bool x", "!!int ''", "!!timestamp x", "!!binary aGk=")),
    *(
        (text, "not YAML of plain values")
        for text in ("{<<: 1}", "*b", "a: [", "[a]: 1", "!!float ''", "1:" * 400 + "1.5")
    ),
    *(
        (text, "not YAML of plain values")
        for text in ("!!python/object/apply:os.getcwd []", "!!set {a}", b"\xff\xfe\xff")
    ),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_what_is_refused_is_a_value_error_of_one_line(text: str, message: str) -> None:
    before = time.process_time()
    with pytest.raises(ValueError, match=message) as error:
        parse_yaml(text)
    assert "\n" not in str(error.value)
    assert time.process_time() - before < 5
