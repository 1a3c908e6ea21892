"""TAB completion of the commands, in bash, and in zsh with bashcompinit.

`eval "$(gen1-train -sc install=bash)"` in a shell's startup file installs it for all commands (-sc is Hydra's option,
but its own completion reads stage=4 as a number and sees no command of ours). On TAB, the shell calls
`gen1-train -sc query=bash` with the line so far in COMP_LINE; the answer is one candidate per line.
"""

import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gen1_train.cli.names import as_typed, groups, settings
from gen1_train.errors import UserError
from gen1_train.system.files import write_atomically

FLAGS = ("-sc", "--shell-completion")
COMMANDS = ("gen1-data", "gen1-train", "gen1-edit", "gen1-eval", "gen1-export")
OPTIONS = ("--help", "--version", "--cfg", "--multirun")
# bash splits words at = and :, and replaces only the last part; -o nospace: most candidates continue after = or .
SCRIPT = r"""
_gen1_complete() {
    local line=${COMP_LINE:0:$COMP_POINT} candidate word=
    COMPREPLY=()
    [[ $line =~ [^[:space:]]+$ ]] && word=${BASH_REMATCH[0]}
    local kept=${word%"${word##*[=:]}"}
    [[ $COMP_WORDBREAKS == *=* ]] || kept=
    while IFS= read -r candidate; do
        COMPREPLY+=("${candidate#"$kept"}")
    done < <(COMP_LINE=$line COMP_POINT=$COMP_POINT "$1" -sc query=bash 2> /dev/null)
}
complete -o nospace -F _gen1_complete COMMANDS
"""


def typed_arguments() -> list[str]:
    """The arguments that the user has typed: of this process, or of the line that the shell wants to complete."""
    arguments = sys.argv[1:]
    return _line_words()[:-1] if _request(arguments) == "query" else arguments


def complete(config_name: str, schema: type | None = None, commands: Sequence[str] = ()) -> bool:
    """Answers the shell if this process was started for a completion; returns whether it has answered.

    Without a schema, whose import may take seconds, it answers from what an earlier call has stored in the user's cache
    folder; if there is nothing, it returns False. `commands`: what else the first word may be. Raises UserError for
    another shell than bash.
    """
    request = _request(sys.argv[1:])
    if request is None or (request == "unknown" and schema is None):
        return False
    if request == "unknown":
        raise UserError(f'completion is for bash, and zsh with bashcompinit: eval "$({COMMANDS[1]} -sc install=bash)"')
    if request == "install":
        print(SCRIPT.replace("COMMANDS", " ".join(COMMANDS)).strip())
        return True
    names = _cached_names(config_name) if schema is None else _names(schema)
    if names is None:
        return False
    if schema is not None:
        _store_names(config_name, names)
    words = _line_words()
    others = [word[: word.find("=") + 1] or f"{word} " for word in commands] if len(words) == 1 else []
    for candidate in candidates(words[-1], names, groups(config_name), others):
        print(candidate)
    return True


def candidates(
    word: str, names: dict[str, str], choices: dict[str, list[str]], commands: Sequence[str] = ()
) -> Iterator[str]:
    """Yields what a word may become: a section, a setting, a setting with a value, a command, or an option.

    `names`: the type of each setting by its name; `choices`: the names in each group.
    """
    key, equals, value = word.partition("=")
    if equals:
        values = choices.get(key) or (["true", "false"] if names.get(key) == "bool" else None)
        if values is not None:
            yield from (f"{key}={each} " for each in values if each.startswith(value))
        elif names.get(key) == "text":
            yield from (f"{key}={path}" for path in _paths(value))
        return
    depth = word.count(".") + 1
    known = [f"{name}=" for name in (*names, *choices)]
    shown = {name if name.count(".") < depth else ".".join(name.split(".")[:depth]) + "." for name in known}
    options = [f"{option} " for option in OPTIONS] if word.startswith("-") else []
    yield from sorted(name for name in {*shown, *commands, *options} if name.startswith(word))


def _request(arguments: list[str]) -> str | None:
    """What a shell asks for: install, query or unknown; None if this process was not started for a completion."""
    if not arguments or arguments[0] not in FLAGS:
        return None
    requests = {f"{request}=bash": request for request in ("install", "query")}
    return requests.get(arguments[1], "unknown") if len(arguments) == 2 else "unknown"


def _line_words() -> list[str]:
    """The arguments on the line up to the cursor; the last is the one to complete, which may be empty."""
    line = os.environ.get("COMP_LINE", "")
    line = line[: int(os.environ.get("COMP_POINT") or len(line))]
    for closing in ("", "'", '"'):  # the last word may begin with a quote that is not closed yet
        with suppress(ValueError):
            words = shlex.split(line + closing)
            return [*words[1:], *([] if line and not line[-1].isspace() and len(words) > 1 else [""])]
    return [""]


def _paths(start: str) -> Iterator[str]:
    """Yields the files and folders whose paths begin with a text, as they are written in a shell."""
    folder, slash, name = start.rpartition("/")
    with suppress(OSError):
        for entry in sorted(os.scandir((folder + slash) or "."), key=lambda entry: entry.name):
            if entry.name.startswith(name) and (name or not entry.name.startswith(".")):
                yield shlex.quote(f"{folder}{slash}{entry.name}") + ("/" if entry.is_dir() else " ")


def _names(schema: type) -> dict[str, str]:
    """Maps the names of all settings to text, bool or other."""
    kinds = {str: "text", str | None: "text", bool: "bool", bool | None: "bool"}
    return {as_typed(name): kinds.get(kind, "other") for name, kind in settings(schema).items()}


def _cache_file(config_name: str) -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "gen1-train" / f"settings-{config_name}.json"


def _code_state() -> list[Any]:
    """What the names of the settings depend on: where the code is, and when it was last changed."""
    package = Path(__file__).parents[1]
    files = [*package.rglob("*.py"), *(package.parent / "data_tools").rglob("*.py")]
    return [str(package), len(files), max(path.stat().st_mtime_ns for path in files)]


def _cached_names(config_name: str) -> dict[str, str] | None:
    with suppress(OSError, ValueError, TypeError, KeyError):
        cached = json.loads(_cache_file(config_name).read_text())
        if cached["code"] == _code_state():
            return {str(name): str(kind) for name, kind in cached["names"].items()}
    return None


def _store_names(config_name: str, names: dict[str, str]) -> None:
    file = _cache_file(config_name)
    with suppress(OSError):  # it is only faster with it
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps({"code": _code_state(), "names": names}).encode())
