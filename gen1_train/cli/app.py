"""The frame of every command: Hydra composes and checks the config; a mistake ends in one line and exit code 2."""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn, TypeVar

from gen1_train.cli.arguments import prepared
from gen1_train.cli.arguments import quoted as quoted
from gen1_train.cli.arguments import refuse_new as refuse_new
from gen1_train.cli.completion import complete
from gen1_train.cli.help import EMPTY, help_text, help_topic
from gen1_train.cli.names import conf_dir, unknown
from gen1_train.cli.names import settings as settings
from gen1_train.cli.sweep import check_sweep
from gen1_train.errors import MISTAKE, UserError
from gen1_train.system.console import EVERY_RANK, ConsoleConfig, accept_any_text, console
from gen1_train.system.signals import STOP, exit_code

Config = TypeVar("Config")
logger = logging.getLogger(__name__)


def run_app(
    name: str,
    config_name: str,
    schema: type[Config],
    task: Callable[[Config], int | None],
    ranks: bool = False,
    first: Sequence[str] = (),
    commands: Mapping[str, str] = EMPTY,
) -> None:
    """Runs `task` on the config that Hydra composes from conf/`config_name`.yaml and the command line.

    The task may return the exit code of the process: None or 0 for success, INCOMPLETE, … The exit code of several runs
    (--multirun) is the highest of theirs.

    A mistake of the user (UserError, a setting that does not exist or has the wrong type) is printed as one line on
    standard error, and the process ends with exit code 2. `ranks`: the processes of a launcher are one run, and only
    rank 0 writes to the terminal. `first`: the settings that --help shows, if there are too many for one text;
    `commands`: what can be given instead of these settings, and what it does.
    """
    accept_any_text()
    with console(name, ranks=ranks):
        try:
            try:
                if answered(name, config_name, schema, first, commands):
                    return
                code = _compose_and_run(config_name, schema, partial(_run_task, name, task, schema, ranks))
                STOP.check()
            except Exception as error:
                end(error, schema, config_name)
        except KeyboardInterrupt as interrupt:
            STOP.caught()
            logger.error(str(interrupt) or "interrupted", extra={"label": ""})
            sys.exit(exit_code(interrupt))
    if code:
        sys.exit(code)


def answered(
    name: str, config_name: str, schema: type, first: Sequence[str] = (), commands: Mapping[str, str] = EMPTY
) -> bool:
    """Answers --help, --version, or the shell's request for a completion; returns whether there was one.

    Raises UserError for help on what does not exist.
    """
    topic = help_topic(sys.argv[1:])
    text = None
    if topic is not None:
        text = help_text(name, conf_dir() / f"{config_name}.yaml", schema, topic, first, commands)
    elif "--version" in sys.argv[1:]:
        text = f"{name.split()[0]} {_version()}"
    if text is None:
        return complete(config_name, schema, list(commands))
    with suppress(BrokenPipeError):  # `--help | head`
        print(text, flush=True)
    return True


def _version() -> str:
    try:
        return version("gen1-train")
    except PackageNotFoundError:
        return "(not installed)"  # a checkout on PYTHONPATH


def _compose_and_run(config_name: str, schema: type[Config], run: Callable[[Any], int]) -> int:
    """Lets Hydra compose the config, once or for each run of --multirun; returns the highest exit code of `run`."""
    import hydra
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name=f"{config_name}_schema", node=schema)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing, and `end` prints our line
    sys.argv[1:] = prepared(sys.argv[1:], schema, config_name)
    check_sweep(config_name, sys.argv[1:])
    codes = [0]  # collected here, because Hydra drops the return values
    main = hydra.main(config_path=str(conf_dir()), config_name=config_name, version_base="1.3")
    main(lambda config: codes.append(run(config)))()
    return max(codes)


def _run_task(name: str, task: Callable[[Config], int | None], schema: type[Config], ranks: bool, composed: Any) -> int:
    """Runs the task of a command on the composed config, in a console of the format that the config sets."""
    from omegaconf import OmegaConf

    try:
        config: Any = OmegaConf.to_object(composed)
        settings = getattr(config, "log", ConsoleConfig())
        settings.check()
        with console(name, settings.format, ranks):
            return task(config) or 0
    except Exception as error:  # here, because Hydra would first print a line of its own
        end(error, schema)


def end(error: Exception, schema: type, config_name: str | None = None) -> NoReturn:
    """Ends the process with one line and exit code 2 if the user can fix the error; otherwise raises it again.

    After a signal to all processes of the command, one that was killed is no error. Raises Interrupted.
    """
    STOP.check()
    line = explain(error, schema, config_name)
    if line is None:
        raise error
    logger.error(line, extra=EVERY_RANK)
    sys.exit(MISTAKE)


def explain(error: Exception, schema: type, config_name: str | None = None) -> str | None:
    """Describes an error that the user can fix in one line; returns None for a bug."""
    from hydra.errors import HydraException
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    if isinstance(error, UserError):
        return " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return None
    text = "\n".join(str(each) for each in _chain(error))  # Hydra wraps OmegaConf's errors, which are more precise
    if missing := re.search(r"(?:Missing mandatory value|missing value): (\S+)|full_key: (\S+)", text):
        key = missing[1] or missing[2]
        if isinstance(error, MissingMandatoryValue):
            return f"{key} is not given: add {key}=…"
    if new := re.search(r"Could not (?:override|append) '([^']+)'", text):
        return unknown(new[1], schema, config_name)
    if merging := re.match(r"Error merging override (.*)\n(.*)", text):
        return f"{merging[1]}: {merging[2]}"
    if group := re.search(r"Could not find '([^']+)'", text):
        choices = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        name, _, value = group[1].partition("/")
        return f"there is no {name}={value}; choose from: {', '.join(dict.fromkeys(choices))}" if choices else None
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())[:400]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its cause, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
