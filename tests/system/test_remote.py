"""Locations of remote files: URLs and paths, secrets in URLs, missing packages."""

import errno
from pathlib import Path

import pytest

from gen1_train.errors import UserError
from gen1_train.system.remote import (
    file_system,
    foreign_reason,
    is_url,
    join,
    local_path,
    reason_of,
    refusal_reason,
    without_secrets,
)


@pytest.mark.parametrize(
    "location, remote",
    [("s3://b/a.mp4", True), ("zip://a::/b.zip", True), ("/a/b.mp4", False), ("ok: yes?.mp4", False)],
)
def test_urls_are_distinguished_from_file_names(location: str, remote: bool) -> None:
    assert is_url(location) == remote
    assert not is_url(Path(location))


def test_paths_are_joined_within_an_archive() -> None:
    assert join("zip://sub::/data/x.zip", "a.mp4") == "zip://sub/a.mp4::/data/x.zip"
    assert join("zip://::/data/x.zip", "a.mp4") == "zip://a.mp4::/data/x.zip"
    assert join("s3://bucket", "a/b.mp4") == "s3://bucket/a/b.mp4"
    assert join("/data/", "a::b.mp4") == "/data/a::b.mp4"
    assert local_path("file:///data/a b.mp4") == "/data/a b.mp4"
    assert local_path("zip://a::file:///x.zip") == "zip://a::file:///x.zip"


@pytest.mark.parametrize(
    "url",
    [
        "https://user:secret@host/a.mp4",
        "https://secret@host/a.mp4",
        "https://user:sec/ret@host/a.mp4",
        "sftp://user:secret@host/a.mp4",
        "s3://key:secret@bucket/a.mp4",
        "https://host/a.mp4?X-Amz-Signature=secret",
        "https://host/a.mp4?secret",
        "https://host/a.mp4#secret",
        "abfs://container/a.mp4?sig=secret",
        "zip://a.mp4::https://host/x.zip?token=secret",
        "HTTPS://user:secret@host/a.mp4",
    ],
)
def test_a_url_with_a_secret_is_refused_without_showing_the_secret(url: str) -> None:
    reason = refusal_reason(url)
    assert reason is not None and "fsspec's configuration" in reason
    assert "secret" not in reason.replace("hold a secret", "")
    masked = without_secrets(f"cannot read '{url}'")
    assert "ret" not in masked and masked.endswith("'")


@pytest.mark.parametrize(
    "url",
    [
        "https://user:secret@host/a.mp4",
        "https://secret@host/a.mp4",
        "HTTPS://user:sec/ret@host/a.mp4",
        "s3://key:secret@bucket/a.mp4",
        "https://host/a.mp4?secret",
        "https://host/a.mp4#secret",
        "abfs://container/a.mp4?sig=secret",
    ],
)
def test_a_secret_is_masked_in_a_url_that_was_taken_for_a_path(url: str) -> None:
    assert "ret" not in without_secrets(f"there is no {Path(url)} here") and "://" not in str(Path(url))
    for harmless in ("input:/data/a@b.mp4", "line 3:/x?y", "C:/a#b.mp4", "a=b:/c"):
        assert without_secrets(harmless) == harmless


@pytest.mark.parametrize(
    "url",
    [
        "https://host:8080/a%20b.mp4",
        "s3://bucket/what?.mp4",
        "sftp://user@host:22/a.mp4",
        "abfs://container@account.dfs.core.windows.net/a@b.mp4",
        "zip://a.mp4::/data/x.zip",
    ],
)
def test_a_url_without_a_secret_is_accepted(url: str) -> None:
    assert refusal_reason(url) is None


def test_unknown_and_missing_protocols_are_named() -> None:
    assert refusal_reason("carrier-pigeon://a.mp4") == "fsspec does not know carrier-pigeon://"
    with pytest.raises(UserError, match=r"gs:// needs a package .* gcsfs"):
        file_system("gs://bucket/a.mp4")


@pytest.mark.parametrize(
    "url",
    [
        "reference://a.mp4::https://host/refs.json",  # fsspec runs the templates in it
        "zip://a.mp4::REFERENCE://x.zip::https://host/refs.json",
        "dask://host/a.mp4",
        "smb://host/share/a.mp4",
        "simplecache://x::https://host/a.mp4",
        "github://a.mp4",
    ],
)
def test_a_file_may_not_name_a_protocol_that_does_more_than_fetch_bytes(url: str) -> None:
    reason = foreign_reason(url)
    assert reason is not None and ":// is not for URLs that a file names" in reason
    assert foreign_reason(url, own=url) is None  # the user has chosen it
    assert foreign_reason("https://user:secret@host/a.mp4") is not None
    for harmless in ("https://host/a.mp4", "s3://bucket/a.mp4", "zip://a.mp4::gs://bucket/x.zip", "file:///a.mp4"):
        assert foreign_reason(harmless) is None


def test_a_name_in_a_remote_folder_is_not_a_chain_of_urls() -> None:
    with pytest.raises(ValueError, match="contains ::"):
        join("zip://sub::/data/x.zip", "a.mp4::reference://b::https://host/refs.json")


def test_a_store_that_denies_access_is_told_from_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    assert reason_of(PermissionError("Forbidden")).startswith("access is denied (Forbidden): check the credentials")
    assert reason_of(PermissionError(errno.EACCES, "Permission denied", str(tmp_path))) == "Permission denied"
