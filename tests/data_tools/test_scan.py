import os
from pathlib import Path

import pytest

from data_tools.scan import scan
from gen1_train.errors import UserError


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def test_files_are_found_in_one_order_whatever_the_file_system_says(tmp_path: Path) -> None:
    write(tmp_path, "b/z.mp4", "b.mp4", "a.JPG", "B.webm", "b/a.png")
    found = scan(tmp_path, tmp_path / "out")
    assert [(file.path, file.kind) for file in found.files] == [
        ("B.webm", "video"),
        ("a.JPG", "image"),
        ("b.mp4", "video"),
        ("b/a.png", "image"),
        ("b/z.mp4", "video"),
    ]


def test_captions_belong_to_their_file(tmp_path: Path) -> None:
    write(tmp_path, "a.mp4", "b.mp4", "c.mp4", "lonely.txt", "d.mp4")
    (tmp_path / "a.txt").write_text("\ufeffa  red\nball ", encoding="utf-8")
    (tmp_path / "b.txt").write_text(" \n")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\xff")
    found = scan(tmp_path, tmp_path / "out")
    assert [file.caption for file in found.files] == ["a red ball", None, None, None]
    assert [(failure.file, failure.reason) for failure in found.failures] == [
        ("c.txt", "the caption cannot be read: not UTF-8 text")
    ]
    assert found.ignored == {".txt": 1}


def test_hidden_and_foreign_files_are_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path, "a.mp4", ".b.mp4", ".git/c.mp4", "notes.md", "more.md", "README", "out/d.mp4")
    found = scan(tmp_path, tmp_path / "out")
    assert [file.path for file in found.files] == ["a.mp4"]
    assert found.ignored == {".md": 2, "no suffix": 1}


def test_links_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "a.mp4")
    source = tmp_path / "source"
    write(source, "b.mp4")
    (source / "link").symlink_to(tmp_path / "elsewhere")
    (source / "loop").symlink_to(source)
    (source / "gone.mp4").symlink_to(source / "nowhere.mp4")
    os.mkfifo(source / "pipe.mp4")  # opening it would wait for ever
    found = scan(source, tmp_path / "out")
    assert [file.path for file in found.files] == ["b.mp4", "link/a.mp4"]
    assert [failure.file for failure in found.failures] == ["gone.mp4", "pipe.mp4"]


def test_an_empty_or_absent_source_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        scan(tmp_path / "absent", tmp_path / "out")
    write(tmp_path, "notes.md")
    with pytest.raises(UserError, match="no video and no image"):
        scan(tmp_path, tmp_path / "out")
