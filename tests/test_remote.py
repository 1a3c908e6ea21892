from pathlib import Path

import pytest

from gen1_train.errors import UserError
from gen1_train.remote import file_system, is_url, join, local_path, refusal, without_secrets


@pytest.mark.parametrize(
    "place, remote", [("s3://b/a.mp4", True), ("zip://a::/b.zip", True), ("/a/b.mp4", False), ("ok: yes?.mp4", False)]
)
def test_urls_are_told_from_names(place: str, remote: bool) -> None:
    assert is_url(place) == remote
    assert not is_url(Path(place))


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
def test_a_url_with_a_secret_is_refused_without_telling_it(url: str) -> None:
    reason = refusal(url)
    assert reason is not None and "fsspec's configuration" in reason
    assert "secret" not in reason.replace("hold a secret", "")
    hidden = without_secrets(f"cannot read '{url}'")
    assert "ret" not in hidden and hidden.endswith("'")


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
def test_a_url_without_a_secret_is_taken(url: str) -> None:
    assert refusal(url) is None


def test_unknown_and_missing_protocols_are_named() -> None:
    assert refusal("carrier-pigeon://a.mp4") == "fsspec knows no carrier-pigeon://"
    with pytest.raises(UserError, match=r"s3:// needs a package .* s3fs"):
        file_system("s3://bucket/a.mp4")
