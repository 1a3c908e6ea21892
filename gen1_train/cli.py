"""The frame of every command: Hydra composes and checks the config, a mistake ends in one line and exit code 2."""

import difflib
import io
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from gen1_train.cli_help import help_text
from gen1_train.errors import UserError
from gen1_train.exits import INTERRUPTED, MISTAKE

Config = TypeVar("Config")
QUOTED = re.compile(r"'([^'\\]|\\.)*'|\"([^\"\\]|\\.)*\"", re.DOTALL)  # the whole of it, by a user who quotes twice


def conf_dir() -> Path:
    """The folder of config values: inside the package in a wheel, beside it in a checkout."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "conf"


def run_app(name: str, config_name: str, schema: type[Config], task: Callable[[Config], int | None]) -> None:
    """Runs `task` on the config that Hydra composes from conf/`config_name`.yaml and the command line.

    The task may return the exit code of the process: None or 0 when all is good, INCOMPLETE, ... Of several runs
    (--multirun) the highest counts.

    Whatever the user can mend (UserError, a setting that does not exist or has the wrong type) is printed as one line
    on standard error, and the process ends with exit code 2.
    """
    for stream in (sys.stdout, sys.stderr):  # names of files need not be text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    import hydra
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    if {"--help", "-h"} & set(sys.argv[1:]):
        with suppress(BrokenPipeError):  # `--help | head`
            print(help_text(name, conf_dir() / f"{config_name}.yaml", schema), flush=True)
        return
    ConfigStore.instance().store(name=f"{config_name}_schema", node=schema)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, and the line below is ours

    codes = [0]  # Hydra drops what a task returns

    def run(config: Any) -> None:
        try:
            codes.append(task(OmegaConf.to_object(config)) or 0)  # type: ignore[arg-type]
        except Exception as error:  # here, since Hydra would print a line of its own first
            end(name, error, schema)

    try:
        for argument in sys.argv[1:]:
            refuse_new(argument, schema)
        sys.argv[1:] = [quoted(argument, schema) for argument in sys.argv[1:]]
        hydra.main(config_path=str(conf_dir()), config_name=config_name, version_base="1.3")(run)()
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        end(name, error, schema)
    if code := max(codes):
        sys.exit(code)


def end(name: str, error: Exception, schema: type) -> None:
    """Ends the process with one line and exit code 2 if the user can mend the error; else raises it again."""
    line = explain(error, schema)
    if line is None:
        raise error
    print(f"{name}: error: {line}", file=sys.stderr, flush=True)
    sys.exit(MISTAKE)


def quoted(argument: str, schema: type) -> str:
    """Makes `key=value` safe for Hydra's grammar, so that users need not quote twice.

    Text values may hold spaces, commas and brackets (prompt=a red ball, on grass); names of config groups may be
    numbers (stage=4); `from` is a word of Python, so the setting init.from is the field from_.
    """
    key, equals, value = argument.partition("=")
    if not equals or key.startswith("-"):
        return argument
    key = re.sub(r"\bfrom$", "from_", key)
    is_group = (conf_dir() / key).is_dir()
    if value and (is_group or _is_text(schema, key)) and value != "null" and not QUOTED.fullmatch(value):
        # in Hydra's quotes a backslash counts only before a quote or at the end; ${…} works there too
        escaped = re.sub(r"(\\*)('|$)", lambda end: end[1] * 2 + ("\\'" if end[2] else ""), value)
        value = f"'{escaped}'"
    return f"{key}={value}"


def refuse_new(argument: str, schema: type) -> None:
    """Hydra's `+key=value` would add a setting that nothing reads. Raises UserError; groups may be added."""
    key = argument.lstrip("+").partition("=")[0]
    known = key in settings(schema) or key.startswith("hydra") or (conf_dir() / key.partition("@")[0]).is_dir()
    if argument.startswith("+") and not known:
        raise UserError(_unknown(key, schema))


def _is_text(schema: type, key: str) -> bool:
    return settings(schema).get(key.lstrip("+~")) in (str, str | None)


def settings(schema: type, prefix: str = "") -> dict[str, Any]:
    """All settings of a config class, dotted, with their types."""
    found: dict[str, Any] = {}
    for name, kind in get_type_hints(schema).items():
        if is_dataclass(kind):
            found |= settings(kind, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            found[f"{prefix}{name}"] = kind
    return found


def explain(error: Exception, schema: type) -> str | None:
    """The one line for an error that the user can mend; None for a bug."""
    from hydra.errors import HydraException
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    if isinstance(error, UserError):
        return " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return None
    text, seen = str(error), error.__cause__ or error.__context__
    while seen is not None:  # Hydra wraps OmegaConf, which says best what is wrong
        text, seen = f"{text}\n{seen}", seen.__cause__ or seen.__context__
    if missing := re.search(r"(?:Missing mandatory value|missing value): (\S+)|full_key: (\S+)", text):
        key = missing[1] or missing[2]
        if isinstance(error, MissingMandatoryValue):
            return f"{key} is not given: add {key}=…"
    if unknown := re.search(r"Could not (?:override|append) '([^']+)'", text):
        return _unknown(unknown[1], schema)
    if merging := re.match(r"Error merging override (.*)\n(.*)", text):
        return f"{merging[1]}: {merging[2]}"
    if group := re.search(r"Could not find '([^']+)'", text):
        choices = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        name, _, value = group[1].partition("/")
        return f"there is no {name}={value}; choose from: {', '.join(dict.fromkeys(choices))}" if choices else None
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())[:400]


def _unknown(key: str, schema: type) -> str:
    """A line for a key that Hydra could not set."""
    known = settings(schema)
    sections = {name.rpartition(".")[0] for name in known} - {""}
    close = difflib.get_close_matches(key, [*known, *sections], n=1, cutoff=0.5)
    return f"there is no setting {key}" + (f"; did you mean {close[0]}?" if close else "; see --help")
