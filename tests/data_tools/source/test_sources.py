import os
import pickle
import zipfile
from pathlib import Path

import pytest

from data_tools.source.locations import in_threads, size_of
from data_tools.source.sources import MAX_DEPTH, Source, open_source
from gen1_train.errors import UserError
from gen1_train.video.errors import VideoError
from tests.video.web import PlainHandler, RangeHandler, serve


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def paths(source: Source, output: Path = Path("nowhere")) -> list[str]:
    return [file.path for file in source.scan(output).files]


def test_files_are_sorted_by_path(tmp_path: Path) -> None:
    write(tmp_path, "b/z.mp4", "b.mp4", "a.JPG", "B.webm", "b/a.png")
    result = open_source(str(tmp_path)).scan(tmp_path / "out")
    assert [(file.path, file.kind, file.bytes) for file in result.files] == [
        ("B.webm", "video", 6),
        ("a.JPG", "image", 5),
        ("b.mp4", "video", 5),
        ("b/a.png", "image", 7),
        ("b/z.mp4", "video", 7),
    ]


def test_captions_belong_to_their_file(tmp_path: Path) -> None:
    write(tmp_path, "a.mp4", "b.mp4", "c.mp4", "lonely.txt", "d.mp4", "e.mp4", "f.mp4")
    (tmp_path / "a.txt").write_text("\ufeffa  red\nball ", encoding="utf-8")
    (tmp_path / "b.txt").write_text(" \n")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "e.txt").write_text("word " * 20_000)
    os.mkfifo(tmp_path / "f.txt")  # opening it would block forever
    result = open_source(str(tmp_path)).scan(tmp_path / "out")
    assert [file.caption for file in result.files] == ["a red ball", None, None, None, None, None]
    assert [(failure.file, failure.reason) for failure in result.failures] == [
        ("c.txt", "the caption cannot be read: not UTF-8 text"),
        ("e.txt", "the caption cannot be read: more than 65536 bytes"),
        ("f.txt", "the caption cannot be read: not a regular file"),
    ]
    assert result.ignored == {".txt": 1}


def test_hidden_files_are_skipped_and_other_files_counted(tmp_path: Path) -> None:
    write(tmp_path, "a.mp4", ".b.mp4", ".git/c.mp4", "notes.md", "more.md", "README", "out/d.mp4")
    result = open_source(str(tmp_path)).scan(tmp_path / "out")
    assert [file.path for file in result.files] == ["a.mp4"]
    assert result.ignored == {".md": 2, "no suffix": 1}


def test_links_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "a.mp4")
    source = tmp_path / "source"
    write(source, "b.mp4")
    (source / "link").symlink_to(tmp_path / "elsewhere")
    (source / "loop").symlink_to(source)
    (source / "gone.mp4").symlink_to(source / "nowhere.mp4")
    os.mkfifo(source / "pipe.mp4")  # opening it would block forever
    result = open_source(str(source)).scan(tmp_path / "out")
    assert [file.path for file in result.files] == ["b.mp4", "link/a.mp4"]
    assert [(failure.file, failure.reason) for failure in result.failures] == [
        ("gone.mp4", "a link to nothing"),
        ("pipe.mp4", "not a regular file"),
    ]


def test_files_with_any_bytes_in_their_names_can_be_opened(tmp_path: Path) -> None:
    names = [b"a b.mp4", b"'quo\"te'.mp4", "ünï.mp4".encode(), b"new\nline.mp4", b"\xff.mp4", b"..x.mp4", b"a::b.mp4"]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/sub/" + name)).parent.mkdir(exist_ok=True)
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/sub/" + name)).write_bytes(name)
    source = open_source(str(tmp_path))
    result = source.scan(tmp_path / "out")
    assert {os.fsencode(file.path) for file in result.files} == {b"sub/" + name for name in names if name[:1] != b"."}
    for file in result.files:
        with source.local(file.path, file.bytes) as path:
            assert path.read_bytes() == os.fsencode(file.path).removeprefix(b"sub/")


def test_an_unreadable_folder_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.mp4", "sealed/b.mp4", "sub/c.mp4")
    scandir = os.scandir

    def refuse(path: str) -> object:  # root may read everything, so the refusal is simulated
        if str(path).endswith("sealed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    result = open_source(str(tmp_path)).scan(tmp_path / "out")
    assert [file.path for file in result.files] == ["a.mp4", "sub/c.mp4"]
    [failure] = result.failures
    assert (failure.file, failure.transient) == ("sealed", True)
    assert failure.reason == "the folder cannot be read: Permission denied"
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        open_source(str(tmp_path / "sealed")).scan(tmp_path / "out")


def test_an_unreachable_file_stays_in_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.mp4", "b.mp4")
    stat = os.stat

    def refuse(path: object, *arguments: object, **options: object) -> os.stat_result:
        if str(path).endswith("a.mp4"):
            raise OSError(116, "Stale file handle")
        return stat(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", refuse)
    result = open_source(str(tmp_path)).scan(tmp_path / "out")
    assert [(file.path, file.bytes) for file in result.files] == [("a.mp4", 0), ("b.mp4", 5)]


def test_an_empty_or_missing_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_source(str(tmp_path / "absent"))
    write(tmp_path, "notes.md")
    with pytest.raises(UserError, match="neither a folder nor a list file"):
        open_source(str(tmp_path / "notes.md"))
    with pytest.raises(UserError, match="no video and no image"):
        open_source(str(tmp_path)).scan(tmp_path / "out")
    with pytest.raises(UserError, match=r"source=https://\*\*\*@host: .* password") as caught:
        open_source("https://user:secret@host")
    assert "secret" not in str(caught.value)
    with pytest.raises(UserError, match="gcsfs"):
        open_source("gs://bucket/videos")


def test_a_source_that_disappears_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write(source, "a.mp4")
    folder = open_source(str(source))
    folder.check_present()
    (source / "a.mp4").rename(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match="the file is gone") as caught, folder.local("a.mp4", 5):
        pass
    assert caught.value.transient
    with pytest.raises(UserError, match="is gone"):  # like a lost mount, which leaves an empty folder
        folder.check_present()
    source.rmdir()
    with pytest.raises(UserError, match="is gone"):
        folder.check_present()
    with pytest.raises(VideoError, match="no such file"):
        folder.size("a.mp4")


def test_a_file_that_was_changed_is_not_used(tmp_path: Path) -> None:
    write(tmp_path, "a.mp4")
    source = open_source(str(tmp_path))
    with pytest.raises(VideoError, match="5 bytes and should have 6") as caught, source.local("a.mp4", 6):
        pass
    assert caught.value.transient


def test_sources_can_be_pickled(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path\na.mp4\n")
    for source in (open_source(str(tmp_path)), open_source(str(tmp_path / "a.csv")), open_source("http://127.0.0.1/x")):
        assert pickle.loads(pickle.dumps(source)) == source


def test_a_file_url_is_the_folder_itself(tmp_path: Path) -> None:
    write(tmp_path / "a b", "a.mp4", "sub/b.mp4", "out/c.mp4")
    source = open_source(f"file://{tmp_path}/a b")
    assert paths(source, tmp_path / "a b" / "out") == ["a.mp4", "sub/b.mp4"]
    assert source.locate("a.mp4") == f"{tmp_path}/a b/a.mp4"


@pytest.mark.parametrize("handler", [RangeHandler, PlainHandler])
def test_a_folder_on_the_web(tmp_path: Path, handler: type[PlainHandler]) -> None:
    root, scratch = tmp_path / "root", tmp_path / "scratch"
    names = ["a b.mp4", "sub/ü'\"&.png", "sub/deep/c.mp4", "100%.mp4", "notes.md", ".hidden.mp4", ".git/d.mp4"]
    write(root / "videos", *names)
    (root / "videos" / "a b.txt").write_text("a red\nball")
    scratch.mkdir()
    with serve(root, handler) as web:
        source = open_source(f"{web.url}/videos")
        source.check_present()
        result = source.scan(tmp_path / "out")
        assert [(file.path, file.kind, file.bytes, file.caption) for file in result.files] == [
            ("100%25.mp4", "video", 8, None),
            ("a%20b.mp4", "video", 7, "a red ball"),
            ("sub/%C3%BC%27%22%26.png", "image", 13, None),
            ("sub/deep/c.mp4", "video", 14, None),
        ]
        assert (result.ignored, result.failures) == ({".md": 1}, [])
        contents = []
        for file in result.files:
            with source.local(file.path, file.bytes, scratch) as path:
                assert path.is_relative_to(scratch) and path.suffix == file.path[-4:]
                contents.append(path.read_text())
        assert contents == ["100%.mp4", "a b.mp4", "sub/ü'\"&.png", "sub/deep/c.mp4"]
        with pytest.raises(VideoError, match="should have 8"), source.local("a%20b.mp4", 8):
            pass
        with pytest.raises(VideoError, match="no such file") as caught, source.local("gone.mp4", 8, scratch):
            pass
        assert caught.value.transient
        assert list(scratch.iterdir()) == []
    with pytest.raises(UserError, match="is gone"):
        source.check_present()
    with pytest.raises(UserError, match="cannot be listed"):
        source.scan(tmp_path / "out")


def test_a_failed_copy_is_transient(tmp_path: Path) -> None:
    write(tmp_path, "a.mp4")
    with serve(tmp_path) as web:
        source = open_source(web.url)
        with pytest.raises(VideoError) as caught, source.local("a.mp4", 5, tmp_path / "absent"):
            pass
    assert caught.value.transient


def test_an_error_in_the_block_is_not_a_video_error(tmp_path: Path) -> None:
    write(tmp_path, "a.mp4")
    with serve(tmp_path) as web:
        for source in (open_source(str(tmp_path)), open_source(web.url)):
            with pytest.raises(KeyError), source.local("a.mp4", 5):
                raise KeyError


def test_a_folder_in_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("sub/a b.mp4", "sub/deep/ü.png", "sub/.c.mp4", "sub/notes.md", "other/d.mp4", "sub/../e.mp4"):
            archive.writestr(name, name)
        archive.writestr("sub/a b.txt", "a ball")
    source = open_source(f"zip://sub::{tmp_path}/x.zip")
    result = source.scan(tmp_path / "out")
    assert [(file.path, file.bytes, file.caption) for file in result.files] == [
        ("../e.mp4", 12, None),
        ("a b.mp4", 11, "a ball"),
        ("deep/ü.png", 15, None),
    ]
    for file in result.files:
        with source.local(file.path, file.bytes) as path:
            assert path.read_text() == f"sub/{file.path}"
    assert len(paths(open_source(f"zip://::{tmp_path}/x.zip"))) == 4
    (tmp_path / "x.zip").unlink()
    with pytest.raises(UserError, match="is gone"):
        source.check_present()
    (tmp_path / "y.zip").write_text("no archive")
    with pytest.raises(UserError, match=r"cannot be listed: .*zip"):
        open_source(f"zip://::{tmp_path}/y.zip").scan(tmp_path / "out")


def test_an_unreadable_remote_folder_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.mp4", "sealed/b.mp4")
    with serve(tmp_path) as web:

        def refuse(handler: RangeHandler) -> None:
            if handler.path.startswith("/sealed"):
                handler.send_error(403)
            else:
                PlainHandler.answer(handler)

        monkeypatch.setattr(RangeHandler, "answer", refuse)
        result = open_source(web.url).scan(tmp_path / "out")
    assert [file.path for file in result.files] == ["a.mp4"]
    assert [(failure.file, failure.transient) for failure in result.failures] == [("sealed", True)]
    assert "403" in result.failures[0].reason


def test_circular_links_on_a_server_end(tmp_path: Path) -> None:
    write(tmp_path, "a.mp4")
    (tmp_path / "loop").symlink_to(tmp_path)
    with serve(tmp_path) as web:
        result = open_source(web.url).scan(tmp_path / "out")
    assert len(result.files) == MAX_DEPTH + 1
    assert [failure.reason for failure in result.failures] == [f"deeper than {MAX_DEPTH} folders"]


def test_a_missing_file_differs_from_a_server_that_is_down(tmp_path: Path) -> None:
    with serve(tmp_path) as web:
        for name, transient in (("absent.mp4", False), ("broken/a.mp4", True), ("forbidden/a.mp4", True)):
            with pytest.raises(VideoError) as caught:
                size_of(f"{web.url}/{name}")
            assert caught.value.transient == transient, name


def test_threads_keep_the_order() -> None:
    for count in (0, 1, 31, 20_000):
        assert in_threads(lambda number: number * 2, list(range(count))) == list(range(0, 2 * count, 2))


def test_a_server_may_not_list_what_is_outside_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for path in (folder / "a.mp4", tmp_path / "secret.mp4"):
        path.write_bytes(b"bytes")
    links = ("a.mp4", "../secret.mp4", "sub/../../secret.mp4")
    (folder / "index.html").write_text("".join(f'<a href="{link}">x</a>' for link in links))
    with serve(tmp_path) as web:
        scan = open_source(f"{web.url}/set").scan(tmp_path / "out")
        assert not any("secret" in request for request in web.requests)
    assert [file.path for file in scan.files] == ["a.mp4"]
    assert {failure.file for failure in scan.failures} == {"../secret.mp4", "sub/../../secret.mp4"}
    assert all("is not a path within a folder" in failure.reason for failure in scan.failures)


@pytest.mark.parametrize("path", ["../secret.mp4", "/etc/passwd", "a/../../x.mp4", "", "a\0.mp4"])
def test_a_folder_locates_only_what_it_holds(tmp_path: Path, path: str) -> None:
    source = open_source(str(tmp_path))
    with pytest.raises(VideoError, match="is not a path within a folder"):
        source.locate(path)
    assert source.locate("sub/a.mp4") == str(tmp_path / "sub" / "a.mp4")


def test_a_member_of_an_archive_is_not_a_chain_of_urls(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.mp4", "x")
        archive.writestr("b.mp4::reference://c.mp4", "x")
    result = open_source(f"zip://::{tmp_path}/x.zip").scan(tmp_path / "out")
    assert [file.path for file in result.files] == ["a.mp4"]
    assert [(entry.file, entry.category) for entry in result.failures] == [("b.mp4::reference://c.mp4", "unreadable")]
