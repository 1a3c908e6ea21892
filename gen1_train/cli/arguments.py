"""The arguments of a command, as users type them, in the form that Hydra takes. What it cannot take is a UserError."""

import argparse
import re
import shlex
from collections.abc import Sequence
from typing import NoReturn

from gen1_train.cli.names import as_typed, conf_dir, groups, settings, suggestion, unknown
from gen1_train.errors import UserError

QUOTED = re.compile(r"'([^'\\]|\\.)*'|\"([^\"\\]|\\.)*\"", re.DOTALL)  # a value that the user has quoted twice
ONE_WORD = (int, float, bool, int | None, float | None)  # types whose values have no spaces


def prepared(arguments: Sequence[str], schema: type, config_name: str) -> list[str]:
    """Returns the arguments for Hydra: its options first, then the settings, quoted. Raises UserError."""
    options, words = _options_and_words(arguments, schema, config_name)
    refuse_stray_words(words, schema)
    overrides = quoted_settings(words, schema, config_name)
    _check_options(options)
    return [*options, *overrides]


def quoted_settings(words: Sequence[str], schema: type, config_name: str) -> list[str]:
    """Returns settings, each `key=value`, for Hydra's grammar. Raises UserError for a new one."""
    for word in words:
        refuse_new(word, schema, config_name)
    return [quoted(word, schema) for word in words]


def quoted(argument: str, schema: type) -> str:
    """Quotes the value of `key=value` for Hydra's grammar, so that users need not quote twice.

    Text values may contain spaces, commas and brackets (prompt=a red ball, on grass); names of config groups may be
    numbers (stage=4). `from` is a keyword in Python, so the setting init.from is the field from_.
    """
    key, equals, value = argument.partition("=")
    if not equals or key.startswith("-"):
        return argument
    key = re.sub(r"\bfrom$", "from_", key)
    if (conf_dir() / key).is_dir() and value:  # numbers of stages are names, and a sweep may choose several
        return f"{key}={','.join(_quoted_value(each) for each in value.split(','))}"
    return f"{key}={_quoted_value(value) if _is_text(schema, key) else value}"


def _quoted_value(value: str) -> str:
    """A text in Hydra's quotes, unless it is null, empty, or has quotes of its own."""
    if value in ("", "null") or QUOTED.fullmatch(value):
        return value
    # inside Hydra's quotes, a backslash is special only before a quote or at the end; ${…} is still resolved
    escaped = re.sub(r"(\\*)('|$)", lambda end: end[1] * 2 + ("\\'" if end[2] else ""), value)
    return f"'{escaped}'"


def refuse_new(argument: str, schema: type, config_name: str | None = None) -> None:
    """Raises UserError for a `+key=value` that would add a setting that nothing reads; groups may be added."""
    key = argument.lstrip("+").partition("=")[0]
    exists = key in settings(schema) or key.startswith("hydra") or (conf_dir() / key.partition("@")[0]).is_dir()
    if argument.startswith("+") and not exists:
        raise UserError(unknown(key, schema, config_name))


def refuse_stray_words(words: Sequence[str], schema: type) -> None:
    """Raises UserError for a word that is no KEY=VALUE: most likely a text without quotes, as in prompt=a red ball."""
    for number, word in enumerate(words):
        if "=" in word or word.startswith("~"):  # ~KEY removes a setting in Hydra
            continue
        before = words[number - 1] if number else ""
        if not before or settings(schema).get(before.partition("=")[0]) in ONE_WORD:
            raise UserError(f"{shlex.quote(word)} is not a setting: write KEY=VALUE, see --help")
        rest = [word]
        for more in words[number + 1 :]:
            if "=" in more:
                break
            rest.append(more)
        raise UserError(
            f"{' '.join(rest)} is not a setting: if it belongs to {before}, put quotes around it: "
            f"{shlex.quote(' '.join([before, *rest]))}"
        )


def _is_text(schema: type, key: str) -> bool:
    return settings(schema).get(key.lstrip("+~")) in (str, str | None)


def _parser() -> argparse.ArgumentParser:
    """Hydra's parser of its options, with errors that are one line instead of its usage."""
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}: see --help")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    return parser


def _check_options(options: Sequence[str]) -> None:
    """Raises UserError for options that Hydra would answer with its usage or a traceback."""
    given = _parser().parse_args(options)
    modes = {"--run": given.run, "--multirun": given.multirun, "--cfg": given.cfg, "--info": given.info}
    chosen = [name for name, value in modes.items() if value]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(chosen)} do not go together: give one of them")
    if given.resolve and not given.cfg:
        raise UserError("--resolve needs --cfg job")


def _options_and_words(arguments: Sequence[str], schema: type, config_name: str) -> tuple[list[str], list[str]]:
    """Separates Hydra's options, with their values, from all other arguments.

    argparse reads options only before the settings; so they are brought there. Raises UserError for other options.
    """
    known = _parser()._option_string_actions
    options: list[str] = []
    words: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if not argument.startswith("-"):
            words.append(argument)
            continue
        name, equals, _ = argument.partition("=")
        matches = [option for option in known if option == name or (len(name) > 2 and option.startswith(name))]
        if not matches:
            raise UserError(_dashed(argument, left, schema, config_name))
        action = known[name if name in known else matches[0]]
        options.append(argument)
        if not equals and action.nargs is None:  # it has a value
            options += left[:1]
            del left[:1]
        elif not equals and action.nargs == "?":
            options[-1] += f"={left.pop(0) if left and left[0] in (action.choices or ()) else action.const}"
    return options, words


def _dashed(argument: str, following: Sequence[str], schema: type, config_name: str) -> str:
    """The message for a setting that is written like an option: --input x, --t-s=2."""
    name, equals, value = argument.lstrip("-").partition("=")
    if not equals and following and not following[0].startswith("-") and "=" not in following[0]:
        value = following[0]
    names = {*map(as_typed, settings(schema)), *groups(config_name)}
    for key in (name, name.replace("-", "_")):
        if key in names:
            setting = shlex.quote(f"{key}={value}") if value else f"{key}=…"
            return f"{argument} is not an option: write {setting}, without dashes"
    meant = suggestion(name, schema, config_name)
    hint = f"; did you mean {meant}={shlex.quote(value) if value else '…'}?" if meant else "; see --help"
    return f"{argument} is not an option: settings are KEY=VALUE, without dashes{hint}"
