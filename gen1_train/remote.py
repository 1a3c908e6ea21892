"""Files that are not on this machine, through fsspec (s3://…, https://…, zip://NAME::ARCHIVE)."""

import os
import re
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen1_train.errors import UserError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
HTTP = ("http", "https")
LOCAL = ("file", "local")
ARCHIVES = ("zip", "tar", "libarchive")
PATIENCE = 60.0  # seconds without a byte until a web server is given up

_kept = threading.local()


def is_url(place: str | Path) -> bool:
    """Whether fsspec has to open it; everything else is a local path."""
    return isinstance(place, str) and "://" in place and SCHEME.match(place) is not None


def local_path(place: str) -> str:
    """file:///x as the path /x; everything else as it is."""
    scheme, separator, path = place.partition("://")
    return path if separator and scheme.lower() in LOCAL and "::" not in place else place


def join(folder: str, path: str) -> str:
    """The place of a relative path in a folder, which may be one in an archive: zip://FOLDER::ARCHIVE."""
    first, chained, rest = folder.partition("::") if is_url(folder) else (folder, "", "")
    return first + ("" if first.endswith("/") else "/") + path + chained + rest


def refusal(url: str) -> str | None:
    """Why a URL is not taken: it may hold a secret, which plans, metadata and logs would show; or its kind is unknown.

    A web address with a query string is refused whatever the query is: nobody can list all names of signatures.
    """
    from fsspec import available_protocols

    for link in url.split("::"):
        protocol, separator, rest = link.partition("://")
        protocol = protocol.lower()
        authority = rest.partition("/")[0]
        user, at, _ = authority.rpartition("@")
        no_port = re.search(r":(?!\d*$)", authority) and not authority.startswith("[")
        if (at and (":" in user or protocol in HTTP)) or no_port:
            return "a URL with a user name or password is not taken: use fsspec's configuration or its environment"
        if re.search(r"[?#]" if protocol in HTTP else r"\?[^/]*=", rest):
            return "a URL with a query string is not taken, it may hold a secret: use fsspec's configuration instead"
        if separator and protocol not in available_protocols():
            return f"fsspec knows no {protocol}://"
    return None


def without_secrets(text: str) -> str:
    """The text without the user names, passwords and query strings of URLs, which a redirection may have brought in."""
    text = re.sub(r"(?<=://)[^\s'\"]*@", "***@", text)  # a password may have a slash in it
    return re.sub(r"(://[^\s'\"?#]*)[?#][^\s'\")>]*", r"\1?***", text)


def reason_of(error: BaseException) -> str:
    """One line about an error of any file system, without secrets."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, FileNotFoundError) and error.errno is None:  # fsspec's, with nothing but the address
        text = reason_of(error.__cause__) if error.__cause__ else f"no such file ({error})"
    return without_secrets(" ".join(str(text).split()))


def require_protocol(url: str) -> None:
    """Raises UserError that names the package if one is missing for this kind of URL."""
    from fsspec import get_filesystem_class

    for link in url.split("::"):
        protocol, separator, _ = link.partition("://")
        try:
            if separator:
                get_filesystem_class(protocol.lower())
        except ImportError as error:
            raise UserError(f"{protocol}:// needs a package that is not installed: {error}") from error
        except ValueError as error:
            raise UserError(f"fsspec knows no {protocol}://") from error


def file_system(url: str) -> "tuple[AbstractFileSystem, str]":
    """The file system of a URL, and what it calls the file. It serves the thread that asked for it.

    Raises UserError for a missing package, and whatever the file system raises.
    """
    from fsspec.core import url_to_fs

    require_protocol(url)
    first, chained, rest = url.partition("::")
    protocol = first.partition("://")[0].lower()
    if not chained or protocol not in ARCHIVES:
        return url_to_fs(url, **_options(url))
    # fsspec opens an archive anew, and reads its table of contents, at each call; the last one is kept open here
    key = (os.getpid(), protocol, rest)
    if getattr(_kept, "key", None) != key:
        _kept.archive = url_to_fs(f"{protocol}://::{rest}", **_options(url))[0]
        _kept.key = key
    return _kept.archive, _kept.archive._strip_protocol(first)


def _options(url: str) -> dict[str, Any]:
    """aiohttp gives up after five minutes, also amid a long file that flows well; here only silence counts."""
    from fsspec.config import conf

    protocols = {link.partition("://")[0].lower() for link in url.split("::")} & set(HTTP)
    if not protocols or any("client_kwargs" in conf.get(protocol, {}) for protocol in HTTP):
        return {}
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=PATIENCE, sock_read=PATIENCE)
    return {protocol: {"client_kwargs": {"timeout": timeout}} for protocol in protocols}


def read_bytes(place: str) -> bytes:
    """The whole of a small file, by its path or URL. Raises as file_system does, and what the file system raises."""
    if not is_url(place):
        return Path(place).read_bytes()
    system, path = file_system(place)
    return system.cat_file(path)


def copy_file(place: str, target: Path) -> None:
    """Copies a file, by its path or URL, to a path. Raises as file_system does, and what the file system raises."""
    if not is_url(place):
        shutil.copyfile(place, target)
        return
    system, path = file_system(place)
    system.get_file(path, str(target))
