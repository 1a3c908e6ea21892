"""YAML of plain values that a stranger may have written: no value takes gigabytes, every failure is a ValueError."""

from typing import Any

import yaml

MAX_BYTES = 1 << 16  # which take 2 s to be parsed; a run's config has 2 kB; ours
MAX_VALUES = 50_000  # with aliases written out; ours
MAX_DEPTH = 30  # of values in one another; ours
MAX_REASON = 200  # characters of a reason; ours
DATE = "tag:yaml.org,2002:timestamp"
PLAIN = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map"))


class _Loader(yaml.SafeLoader):
    """Makes only what JSON has, too. A date without quotes is a text."""

    yaml_constructors = {  # noqa: RUF012 - as in PyYAML
        tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag is None or tag in PLAIN
    }
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, form) for tag, form in resolvers if tag != DATE]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        _check_depth(self.depth)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def parse_yaml(data: bytes | str) -> Any:
    """Parses YAML of up to MAX_BYTES. Raises ValueError, also where PyYAML raises something else.

    A few aliases in one another may stand for gigabytes, so the values are counted before they are made.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES >> 10} KiB")
    try:
        loader = _Loader(data)
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}, 0) > MAX_VALUES:
            raise ValueError(f"its aliases stand for more than {MAX_VALUES} values")
        return loader.construct_document(node)
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError) as error:  # `!!bool x`: KeyError
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark is not None else ""
        reason = " ".join(str(getattr(error, "problem", error)).split()) or type(error).__name__
        raise ValueError(f"it is not YAML of plain values{where}: {reason[:MAX_REASON]}") from error


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError("it is nested too deeply")


def _count(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Returns the number of values in a node with aliases written out. Raises ValueError for one that holds itself."""
    _check_depth(depth)
    if id(node) not in known:
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [each for pair in inner for each in pair] if isinstance(node, yaml.MappingNode) else inner
        known[id(node)] = 1 + sum(_count(each, known, depth + 1) for each in parts)
    return known[id(node)]
