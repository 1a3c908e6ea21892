"""Targets that are one line: names of files, URLs, and what a user gives on a command line."""

import os
from functools import partial
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from gen1_train.cli.arguments import quoted_settings
from gen1_train.editing.config import EditConfig
from gen1_train.editing.variants import read_sweep
from gen1_train.errors import UserError
from gen1_train.system.names import file_suffix, member_name, plain_name, relative_path, shown
from gen1_train.system.remote import is_url, join, local_path, refusal_reason, without_secrets
from gen1_train.video.geometry import parse_bucket
from tests.fuzzing.byte_mutations import byte_changes
from tests.fuzzing.target import Target

PARTS = (
    "..",
    ".",
    "/",
    "//",
    "\\",
    "\0",
    "\n",
    "~",
    "a",
    "é",
    "\udcff",
    "\ud800",
    " ",
    ":",
    "@",
    "?",
    "#",
    "=",
    "%2e%2e",
    "::",
)
PASSWORD = "pass-word"


def texts(data: bytes) -> SearchStrategy[bytes]:
    """Changes of a line, and lines that consist of its parts and of others."""
    words = [*PARTS, *data.decode().replace("/", " ").replace("=", " ").replace(",", " ").split(), data.decode()]
    joined = st.lists(st.sampled_from(words), max_size=8).map(lambda drawn: "".join(drawn))
    return st.one_of(joined.map(lambda text: text.encode("utf-8", "surrogatepass")), byte_changes(data))


def decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("utf-8", "surrogateescape")


def check_names(folder: Path, data: bytes) -> Any:
    """A name that is accepted leads to a place in the folder."""
    name = decoded(data)
    accepted = []
    for check in (plain_name, partial(plain_name, suffix=".tar"), member_name, relative_path):
        try:
            accepted.append(check(name))
        except ValueError as error:
            assert str(error).isprintable(), str(error)
    for each in accepted:
        place = os.path.normpath(os.path.join(folder, each))
        assert place == str(folder) or place.startswith(f"{folder}{os.sep}"), place
    assert shown(name).isprintable()
    suffix = file_suffix(os.path.splitext(name)[1])
    assert "/" not in suffix and "\0" not in suffix
    return accepted


def check_url(folder: Path, data: bytes) -> Any:
    """A URL with a password is refused, and is shown without it."""
    url = decoded(data)
    local_path(url)
    join(url, "x")
    reason = refusal_reason(url) if is_url(url) else None
    assert reason is None or reason.isprintable() or not url.isprintable()
    whole = f"https://user:{PASSWORD}@{url.partition('://')[2] or 'x'}"
    assert PASSWORD not in without_secrets(whole), whole
    return reason


def check_bucket(folder: Path, data: bytes) -> Any:
    return parse_bucket(decoded(data))


def check_sweep(folder: Path, data: bytes) -> Any:
    return read_sweep(decoded(data))


def check_argument(folder: Path, data: bytes) -> Any:
    """What a user types is quoted for Hydra's grammar, and parsed by it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    words = quoted_settings([decoded(data)], EditConfig, "edit")
    return [override.value() for override in OverridesParser.create().parse_overrides(words)]


def line(name: str, seed: str, read: Any, *allowed: type[Exception]) -> Target:
    return Target(name, seed.encode, texts, read, allowed)


LINES = [
    line("name", "video-448x256-000000.tar", check_names),
    line("url", "https://example.org:80/a/b.mp4?x=1", check_url),
    line("bucket", "448x256", check_bucket, ValueError),
    line("sweep", "omega_t=0.5,1", check_sweep, UserError),
    line("argument", "prompt=a 'red' ball, on {grass}", check_argument, UserError, HydraException),
]
