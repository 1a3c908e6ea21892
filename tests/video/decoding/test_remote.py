"""Remote files: only the bytes that are needed, and errors of the network that are transient."""

import io
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from gen1_train.video.decoding.remote import BLOCK, download, open_remote
from gen1_train.video.errors import VideoError
from gen1_train.video.image import image_size, read_image
from tests.video.files import picture
from tests.video.web import PlainHandler, RangeHandler, serve


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


def test_errors_of_the_network_are_transient_and_those_of_the_file_are_not(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    with serve(tmp_path) as web:
        for name, transient in (("text.png", False), ("absent.png", True), ("forbidden/a.png", True)):
            with pytest.raises(VideoError) as caught:
                image_size(f"{web.url}/{name}")
            assert caught.value.transient == transient, name
    with pytest.raises(VideoError) as caught:
        image_size(f"{web.url}/text.png")
    assert caught.value.transient  # the server has stopped


def test_a_server_that_fails_in_the_middle_of_a_file_is_a_transient_error(tmp_path: Path) -> None:
    Image.fromarray(picture(3, 2000, 1500)).save(tmp_path / "a.bmp")
    with serve(tmp_path) as web, pytest.raises(VideoError) as caught, open_remote(f"{web.url}/a.bmp") as stream:
        stream.read(10)
        (tmp_path / "a.bmp").unlink()
        stream.seek(5_000_000)
        stream.read(10)
    assert caught.value.transient


def test_secrets_in_a_redirection_are_not_shown(tmp_path: Path) -> None:
    with serve(tmp_path) as web:
        for read in (lambda url: download(url, tmp_path / "x"), image_size):
            with pytest.raises(VideoError) as caught:
                read(f"{web.url}/moved/a.png")
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
