import io
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from gen1_train.errors import UserError
from gen1_train.video.image import image_size, read_image
from gen1_train.video.probe import VideoError
from gen1_train.video.remote import (
    BLOCK,
    download,
    file_system,
    is_url,
    join,
    local_path,
    open_remote,
    refusal,
    without_secrets,
)
from tests.video.files import picture
from tests.video.web import PlainHandler, RangeHandler, serve


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


@pytest.mark.parametrize("handler", [RangeHandler, PlainHandler])
def test_a_remote_file_reads_like_a_local_one(tmp_path: Path, handler: type[PlainHandler]) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "a b.bin").write_bytes(content)
    with serve(tmp_path, handler) as web, open_remote(f"{web.url}/a b.bin") as stream:
        assert stream.read(10) == content[:10]
        assert stream.seek(-7, io.SEEK_END) == len(content) - 7
        assert stream.read() == content[-7:]
        stream.seek(777_777)
        assert stream.read(1000) == content[777_777:778_777]
        stream.seek(-500, io.SEEK_CUR)
        assert stream.read(1) == content[778_277:778_278]


def test_only_the_header_of_an_image_is_fetched(tmp_path: Path) -> None:
    Image.fromarray(picture(3, 2000, 1500)).save(tmp_path / "a.bmp")
    with serve(tmp_path) as web:
        assert image_size(f"{web.url}/a.bmp") == (2000, 1500)
        assert web.sent <= 2 * BLOCK < (tmp_path / "a.bmp").stat().st_size / 10
        assert (read_image(f"{web.url}/a.bmp") == picture(3, 2000, 1500)).all()


def test_the_networks_errors_are_transient_and_the_files_are_not(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with serve(tmp_path) as web:
        for name, transient in (("text.png", False), ("absent.png", True), ("forbidden/a.png", True)):
            with pytest.raises(VideoError) as caught:
                image_size(f"{web.url}/{name}")
            assert caught.value.transient == transient, name
    with pytest.raises(VideoError) as caught:
        image_size(f"{web.url}/text.png")
    assert caught.value.transient  # nobody is there


def test_a_server_that_stops_amid_a_file_is_no_damage_of_the_file(tmp_path: Path) -> None:
    Image.fromarray(picture(3, 2000, 1500)).save(tmp_path / "a.bmp")
    with serve(tmp_path) as web, pytest.raises(VideoError) as caught, open_remote(f"{web.url}/a.bmp") as stream:
        stream.read(10)
        (tmp_path / "a.bmp").unlink()
        stream.seek(5_000_000)
        stream.read(10)
    assert caught.value.transient


def test_secrets_of_a_redirection_are_not_told(tmp_path: Path) -> None:
    with serve(tmp_path) as web:
        for action in (lambda url: download(url, tmp_path / "x"), image_size):
            with pytest.raises(VideoError) as caught:
                action(f"{web.url}/moved/a.png")
            assert "SECRET" not in str(caught.value)


def test_an_archive_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for number in range(5):
            archive.writestr(f"sub/{number}.txt", str(number))
    opened = []
    original = zipfile.ZipFile.__init__
    monkeypatch.setattr(
        zipfile.ZipFile, "__init__", lambda self, *a, **k: (opened.append(1), original(self, *a, **k))[1]
    )
    for number in range(5):
        with open_remote(f"zip://sub/{number}.txt::{tmp_path}/x.zip") as stream:
            assert stream.read() == str(number).encode()
    assert len(opened) == 1
