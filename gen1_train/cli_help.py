"""`--help`: every setting of a command with its type, default and the comment that stands beside its declaration."""

import inspect
import re
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

OPTIONS = """\
options:
  --help          this text
  --cfg job       print the config that these arguments make, and do nothing
  --multirun      run once for each value of KEY=A,B,C
"""


def help_text(name: str, config_file: Path, schema: type) -> str:
    """The whole text for one command; `config_file` is its file in conf/, whose header tells what the command does."""
    lines = [*header(config_file), "", f"usage: {name} KEY=VALUE …", "", OPTIONS]
    used = re.findall(r"^  - (\w+):", config_file.read_text(), re.MULTILINE)
    if used:
        lines.append("groups of settings (GROUP=NAME):")
    for group in used:
        choices = sorted(path.stem for path in (config_file.parent / group).glob("*.yaml"))
        lines.append(f"  {group:12s} {', '.join(choices)}")
    return "\n".join([*lines, "", "settings (KEY=VALUE):", *setting_lines(schema)])


def header(path: Path) -> list[str]:
    """The comment at the head of a config file."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return lines


def setting_lines(schema: type, prefix: str = "") -> list[str]:
    """A line a setting: dotted key, type, default, and what it means."""
    hints, told = get_type_hints(schema), comments(schema)
    lines = []
    for field in fields(schema):
        key = prefix + field.name.removesuffix("_")  # from_: `from` is a word of Python
        kind = hints[field.name]
        if is_dataclass(kind):
            lines += setting_lines(kind, f"{key}.")  # type: ignore[arg-type]
        else:
            typed = getattr(kind, "__name__", str(kind)) if kind in (int, float, bool, str) else str(kind)
            lines.append(f"  {key:28s} {typed:11s} {_default(field):20s} {told.get(field.name, '')}".rstrip())
    return lines


def comments(schema: type) -> dict[str, str]:
    """Field name -> the comment at the end of its line."""
    sources = "\n".join(inspect.getsource(kind) for kind in reversed(schema.__mro__) if is_dataclass(kind))
    return dict(re.findall(r"^    (\w+):[^#\n]*#\s*(.+)$", sources, re.MULTILINE))


def _default(field: "Field[Any]") -> str:
    if field.default_factory is not MISSING:
        return str(field.default_factory())
    value = field.default
    return "" if value is MISSING or value == "???" else "null" if value is None else str(value)
