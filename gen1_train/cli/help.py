"""`--help`: the settings of a command with their types, defaults and the comments at their declarations.

A command with many settings shows those that matter most and the names of its sections; `--help SECTION` shows a
section, and `--help all` everything.
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_type_hints

from gen1_train.cli.names import as_typed, groups, suggestion
from gen1_train.errors import UserError

HELP = ("--help", "-h")
ALL = "all"
EMPTY: Mapping[str, str] = MappingProxyType({})  # no commands
OPTIONS = """\
options:
  --help [NAME]   show this text; or the settings of a section, or a single setting; or all of them
  --version       show the version
  --cfg job       print the config that results from these arguments, and exit
  --multirun      run once for each value of KEY=A,B,C"""


@dataclass(frozen=True)
class Setting:
    """One setting as --help shows it."""

    name: str  # dotted, as users type it
    line: str  # name, type, default and comment


@dataclass(frozen=True)
class Section:
    """A part of the settings with a prefix of its own."""

    name: str  # dotted
    title: str  # what it configures


def help_topic(arguments: Sequence[str]) -> str | None:
    """What --help is asked about: "" for a command as a whole; None without --help."""
    for number, argument in enumerate(arguments):
        name, equals, topic = argument.partition("=")
        if name in HELP:
            following = arguments[number + 1] if number + 1 < len(arguments) else ""
            return topic if equals else "" if "=" in following or following.startswith("-") else following
    return None


def help_text(
    name: str,
    config_file: Path,
    schema: type,
    topic: str = "",
    first: Sequence[str] = (),
    commands: Mapping[str, str] = EMPTY,
) -> str:
    """The help text of one command.

    `config_file`: its file in conf/, whose header describes the command. `first`: the settings that matter most; by
    default all are listed. `commands`: what can be given instead of settings, and what it does. Raises UserError for a
    topic that does not exist.
    """
    if topic:
        return topic_text(config_file.stem, schema, topic)
    found = all_settings(schema)
    usage = [*header(config_file), "", f"usage: {name} KEY=VALUE …"]
    choices = [f"  {group:18s} {', '.join(names)}" for group, names in groups(config_file.stem).items()]
    named = _part("groups of settings (GROUP=NAME):", choices)
    others = [f"  {word:27s} {meaning}" for word, meaning in commands.items()]
    ends = [*_part("instead of these settings (each has a --help of its own):", others), "", OPTIONS]
    if not first:
        return "\n".join([*usage, *named, *ends, *_part("settings (KEY=VALUE):", [each.line for each in found])])
    listed = {setting.name: setting.line for setting in found}
    all_of_them = f"all {len(found)} settings: {name} --help all; those of a section: {name} --help SECTION"
    titles = [f"  {section.name:18s} {section.title}".rstrip() for section in sections(schema)]
    most = _part("the settings that matter most (KEY=VALUE):", [listed[each] for each in first])
    return "\n".join([*usage, *most, *named, *_part(all_of_them, titles), *ends])


def _part(title: str, lines: Sequence[str]) -> list[str]:
    """A titled part of the text; nothing if it has no lines."""
    return ["", title, *lines] if lines else []


def topic_text(config_name: str, schema: type, topic: str) -> str:
    """The settings of a section, a single setting, or all of them. Raises UserError if there is none of that name."""
    choices = groups(config_name).get(topic.rstrip("="))
    lines = [f"{topic}=NAME: {', '.join(choices)}", ""] if choices else []
    found = all_settings(schema)
    if topic != ALL:
        found = [setting for setting in found if setting.name == topic or setting.name.startswith(f"{topic}.")]
    if not found and not choices:
        meant = suggestion(topic, schema, config_name)
        known = ", ".join(section.name for section in sections(schema))
        hint = f"did you mean {meant}?" if meant else f"choose from all, {known}"
        raise UserError(f"there is no section and no setting {topic}; {hint}")
    return "\n".join([*lines, *(setting.line for setting in found)]).rstrip()


def header(path: Path) -> list[str]:
    """The comment at the top of a config file."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return lines


def all_settings(schema: type, prefix: str = "") -> list[Setting]:
    """All settings of a command, in the order of their declarations."""
    hints = get_type_hints(schema)
    descriptions = comments(schema)
    found = []
    for field in fields(schema):
        name = as_typed(prefix + field.name)
        kind = hints[field.name]
        if is_dataclass(kind):
            found += all_settings(kind, f"{name}.")  # type: ignore[arg-type]
        else:
            typed = getattr(kind, "__name__", str(kind)) if kind in (int, float, bool, str) else str(kind)
            line = f"  {name:28s} {typed:11s} {_default(field):20s} {descriptions.get(field.name, '')}"
            found.append(Setting(name, line.rstrip()))
    return found


def sections(schema: type, prefix: str = "") -> list[Section]:
    """The sections of a command's settings, each with the comment at its field."""
    hints = get_type_hints(schema)
    descriptions = comments(schema)
    found = []
    for field in fields(schema):
        if is_dataclass(kind := hints[field.name]):
            name = prefix + field.name
            found += [Section(name, descriptions.get(field.name, "")), *sections(kind, f"{name}.")]  # type: ignore[arg-type]
    return found


def comments(schema: type) -> dict[str, str]:
    """Maps each field name to the comment at the end of its line, in the class or in a base class."""
    classes = [each for each in reversed(schema.__mro__) if is_dataclass(each)]
    lines = "".join(inspect.getsource(each) for each in classes)  # a comment in the class overrides one in a base class
    return dict(re.findall(r"^    (\w+):[^#\n]*#\s*(.+)$", lines, re.MULTILINE))


def _default(field: "Field[Any]") -> str:
    if field.default_factory is not MISSING:
        return str(field.default_factory())
    value = field.default
    return "" if value is MISSING or value == "???" else "null" if value is None else str(value)
