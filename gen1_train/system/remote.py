"""Files that are not on this machine, through fsspec (s3://…, https://…, zip://NAME::ARCHIVE)."""

import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen1_train.errors import UserError
from gen1_train.system.names import shown
from gen1_train.system.web import PATIENCE, RemoteLimitError, client_options

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
HTTP = ("http", "https")
AUTHORITY = r"(?:://|\b[Hh][Tt][Tt][Pp][Ss]?:/(?!/))"  # what is before the host in a URL, or in one that became a path
LOCAL = ("file", "local")
ARCHIVES = ("zip", "tar", "libarchive")
# The protocols of URLs that a file names, not the user: they only fetch bytes. fsspec knows others that interpret what
# they fetch (reference:// runs its templates), unpickle it, ask for a login, or send one to any host.
STORES = frozenset(
    {
        *(*HTTP, *LOCAL, *ARCHIVES, "memory"),
        *("s3", "s3a", "gs", "gcs", "az", "abfs", "adl", "oci", "oss", "tos", "hf"),
        *("sftp", "ssh", "ftp", "hdfs", "arrow_hdfs", "webhdfs", "webdav"),
    }
)

_last_archive = threading.local()


def is_url(location: str | Path) -> bool:
    """Whether fsspec has to open a location; everything else is a local path."""
    return isinstance(location, str) and "://" in location and SCHEME.match(location) is not None


def local_path(location: str) -> str:
    """Turns file:///x into the path /x; everything else is returned unchanged."""
    scheme, separator, path = location.partition("://")
    return path if separator and scheme.lower() in LOCAL and "::" not in location else location


def join(folder: str, path: str) -> str:
    """The location of a relative path in a folder, which may be inside an archive: zip://FOLDER::ARCHIVE.

    Raises ValueError for a name in a remote folder that fsspec would read as further URLs.
    """
    if is_url(folder) and "::" in path:
        raise ValueError(f"{shown(path)} contains ::, which separates URLs")
    first, chained, rest = folder.partition("::") if is_url(folder) else (folder, "", "")
    return first + ("" if first.endswith("/") else "/") + path + chained + rest


def refusal_reason(url: str) -> str | None:
    """The reason to refuse a URL, or None: it may hold a secret, which plans, metadata and logs would show, or its
    protocol is unknown.

    A web address with a query string is refused whatever the query is: no list of the names of signatures is complete.
    """
    from fsspec import available_protocols

    for link in url.split("::"):
        protocol, separator, rest = link.partition("://")
        protocol = protocol.lower()
        authority = rest.partition("/")[0]
        user, at, _ = authority.rpartition("@")
        no_port = re.search(r":(?!\d*$)", authority) and not authority.startswith("[")
        if (at and (":" in user or protocol in HTTP)) or no_port:
            return "a URL must not contain a user name or password: use fsspec's configuration or its environment"
        if re.search(r"[?#]" if protocol in HTTP else r"\?[^/]*=", rest):
            return "a URL must not contain a query string, which may hold a secret: use fsspec's configuration instead"
        if separator and protocol not in available_protocols():
            return f"fsspec does not know {protocol}://"
    return None


def foreign_reason(url: str, own: str = "") -> str | None:
    """The reason to refuse a URL that a file names, or None: see `refusal_reason`, and it must be one of STORES.

    `own`: the location of that file, whose protocols the user has chosen.
    """
    allowed = STORES | protocols_of(own)
    if (reason := refusal_reason(url)) is None and (others := protocols_of(url) - allowed):
        reason = f"{min(others)}:// is not for URLs that a file names: copy or mount what is there"
    return reason


def protocols_of(location: str) -> frozenset[str]:
    """The protocols of a URL and of those that it is chained with, in lower case; none for a local path."""
    links = location.split("::") if is_url(location) else []
    return frozenset(link.partition("://")[0].lower() for link in links if "://" in link)


def without_secrets(text: str) -> str:
    """Masks the user names, passwords and query strings of the URLs in a text; a redirection may have added some.

    A URL that was taken for a path has one slash: https:/user:password@host.
    """
    text = re.sub(r"(\b[A-Za-z][\w+.-]*:/)(?!/)[^\s'\"/@]+:[^\s'\"]*@", r"\1***@", text)
    text = re.sub(r"(\b[A-Za-z][\w+.-]*:/(?!/)[^\s'\"?#]*)\?[^\s'\"?]*=[^\s'\")>]*", r"\1?***", text)
    text = re.sub(rf"({AUTHORITY})[^\s'\"]*@", r"\1***@", text)  # a password may contain a slash
    return re.sub(rf"({AUTHORITY}[^\s'\"?#]*)[?#][^\s'\")>]*", r"\1?***", text)


def reason_of(error: BaseException) -> str:
    """Describes an error of any file system in one line, without secrets."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, TimeoutError) and error.errno is None:  # aiohttp's
        text = f"the server was silent for {PATIENCE:g} s"
    if isinstance(error, FileNotFoundError) and error.errno is None:  # fsspec's: its text is only the address
        text = reason_of(error.__cause__) if error.__cause__ else f"no such file ({error})"
    if isinstance(error, PermissionError) and error.errno is None:  # a store's: its text is often a single word
        text = f"access is denied ({text}): check the credentials in the environment or in fsspec's configuration"
    return without_secrets(" ".join(str(text).split()))


def require_protocol(url: str) -> None:
    """Raises UserError if a protocol of the URL is unknown or needs a package that is not installed."""
    from fsspec import get_filesystem_class

    for link in url.split("::"):
        protocol, separator, _ = link.partition("://")
        try:
            if separator:
                get_filesystem_class(protocol.lower())
        except ImportError as error:
            raise UserError(f"{protocol}:// needs a package that is not installed: {error}") from error
        except ValueError as error:
            raise UserError(f"fsspec does not know {protocol}://") from error


def file_system(url: str) -> "tuple[AbstractFileSystem, str]":
    """The file system of a URL and the file's path in it, for use in the calling thread only.

    Raises UserError for a missing package, and any error of the file system.
    """
    from fsspec.core import url_to_fs

    require_protocol(url)
    first, chained, rest = url.partition("::")
    protocol = first.partition("://")[0].lower()
    if not chained or protocol not in ARCHIVES:
        return url_to_fs(url, **_options(url))
    # fsspec would open an archive and read its table of contents at each call; the last one is kept open here
    key = (os.getpid(), protocol, rest)
    if getattr(_last_archive, "key", None) != key:
        _last_archive.system = url_to_fs(f"{protocol}://::{rest}", **_options(url))[0]
        _last_archive.key = key
    return _last_archive.system, _last_archive.system._strip_protocol(first)


def _options(url: str) -> dict[str, Any]:
    """Options for fsspec: limits on the time and size of answers, unless the user's configuration has others."""
    from fsspec.config import conf

    protocols = {link.partition("://")[0].lower() for link in url.split("::")} & set(HTTP)
    if not protocols:
        return {}
    configured: dict[str, Any] = {}
    for protocol in HTTP:
        configured |= conf.get(protocol, {}).get("client_kwargs", {})
    return {protocol: {"client_kwargs": {**client_options(), **configured}} for protocol in protocols}


def read_bytes(location: str) -> bytes:
    """Reads a small file from a path or URL.

    Raises like `file_system`, UserError if a web server sends too much, and any error of the file system.
    """
    if not is_url(location):
        return Path(location).read_bytes()
    system, path = file_system(location)
    try:
        return system.cat_file(path)
    except RemoteLimitError as error:
        if error.transient:
            raise
        raise UserError(f"{without_secrets(location)} cannot be read: {error}") from error


def copy_file(
    location: str, target: Path, on_bytes: Callable[[int], object] | None = None, most: int | None = None
) -> None:
    """Copies a file from a path or URL to a path. Raises like `file_system`, and any error of the file system.

    Args:
        on_bytes: called with the number of bytes that have arrived since the last call, if the location is a URL.
        most: bytes of a URL's file, beyond which it is not read any further: RemoteLimitError.
    """
    if not is_url(location):
        shutil.copyfile(location, target)
        return
    from fsspec.callbacks import Callback

    class Progress(Callback):  # type: ignore[misc]
        received = 0

        def relative_update(self, inc: int = 1) -> None:
            self.received += inc
            if most is not None and self.received > most:
                raise RemoteLimitError(f"it has more than {most} bytes", transient=False)
            if on_bytes is not None:
                on_bytes(inc)

    system, path = file_system(location)
    system.get_file(path, str(target), callback=Progress())
