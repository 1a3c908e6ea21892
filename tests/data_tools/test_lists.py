import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from data_tools.lists import clean_id
from data_tools.places import Scan
from data_tools.sources import open_source
from gen1_train.batch import KEY
from gen1_train.errors import UserError
from tests.video.web import serve

HEADER, ROWS = (
    ["path", "caption", "id"],
    [["a.mp4", "a red,\n  ball", "first"], ["sub/b.png", "", "zwei ü"], ["sub/c d.mp4", None, None]],
)


def write_csv(path: Path) -> None:
    path.write_text('path,caption,id\na.mp4,"a red,\n  ball",first\nsub/b.png,,zwei ü\n\nsub/c d.mp4," ",\n')


def write_tsv(path: Path) -> None:
    path.write_bytes('\ufeffFile\tText\tID\r\na.mp4\t"a red,\n  ball"\tfirst\r\nsub/b.png\t\tzwei ü\r\n'.encode())
    path.write_bytes(path.read_bytes() + b"sub/c d.mp4\t\t")  # and no line end


def write_json_lines(path: Path) -> None:
    rows = [dict(zip(HEADER, row, strict=True)) for row in ROWS]
    rows[1]["image"] = rows[1].pop("path")  # each row may use another of the names
    rows[2]["video"] = None
    path.write_text("\n\n".join(map(json.dumps, rows)))


def write_parquet(path: Path) -> None:
    columns = dict(zip(HEADER, zip(*ROWS, strict=True), strict=True))
    table = pyarrow.table({**columns, "other": [1.0, 2.0, 3.0]})
    table = table.set_column(0, "path", table["path"].dictionary_encode())
    parquet.write_table(table, path, row_group_size=2)


@pytest.fixture
def media(tmp_path: Path) -> Path:
    for name in ("a.mp4", "sub/b.png", "sub/c d.mp4", "../above.mp4"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "set"


def scan(path: Path) -> Scan:
    return open_source(str(path)).scan(path.parent / "out")


@pytest.mark.parametrize(
    "name, write",
    [
        ("list.csv", write_csv),
        ("list.TSV", write_tsv),
        ("list.jsonl", write_json_lines),
        ("list.ndjson", write_json_lines),
        ("list.parquet", write_parquet),
    ],
)
def test_every_format_says_the_same(media: Path, name: str, write: Callable[[Path], None]) -> None:
    write(media / name)
    found = scan(media / name)
    assert found.failures == []
    assert [(file.path, file.kind, file.bytes, file.caption, file.id) for file in found.files] == [
        ("a.mp4", "video", 5, "a red, ball", "first"),
        ("sub/b.png", "image", 9, None, clean_id("zwei ü")),
        ("sub/c d.mp4", "video", 11, None, None),
    ]
    source = open_source(str(media / name))
    with source.local("sub/c d.mp4", 11) as path:
        assert path == media / "sub/c d.mp4"


def test_a_broken_row_is_a_failure_and_not_the_end(media: Path) -> None:
    (media / "list.jsonl").write_text(
        "\n".join(
            [
                '{"path": "a.mp4"}',
                '{"path": "a.mp4"',
                '["a.mp4"]',
                '{"caption": "no file"}',
                '{"path": ""}',
                '{"path": 7}',
                '{"path": "sub/b.png", "caption": ["a"]}',
                '{"path": "sub/b.png", "caption": "\\ud800"}',
                '{"path": "notes.md"}',
                '{"path": "absent.mp4"}',
                '{"path": "nul\\u0000.mp4"}',
                '{"path": "\\ud800.mp4"}',
                '{"path": "sub"}',
                '{"path": "./sub/../a.mp4"}',
                '{"path": "pigeon://a.mp4"}',
                '{"path": "https://me:pw@host/a.mp4"}',
                '{"path": "sub/c d.mp4", "video": "a.mp4"}',
                "[" * 100_000,
                '{"path": "sub/b.png"}',
            ]
        )
    )
    found = scan(media / "list.jsonl")
    assert [file.path for file in found.files] == ["a.mp4", "sub/b.png"]
    reasons = {int(re.match(r"line (\d+): ", entry.reason)[1]): entry for entry in found.failures}  # type: ignore[index]
    assert sorted(reasons) == list(range(2, 19))
    assert all(entry.failed and not entry.transient for entry in found.failures)
    for line, file, category, reason in (
        (2, "list.jsonl", "broken row", "no JSON: "),
        (3, "list.jsonl", "broken row", "no JSON object"),
        (4, "list.jsonl", "broken row", "not exactly one of path, "),
        (5, "list.jsonl", "broken row", "no path in it"),
        (6, "list.jsonl", "broken row", "the path is no text: 7"),
        (7, "list.jsonl", "broken row", "the caption is no text"),
        (8, "list.jsonl", "broken row", "half a character"),
        (9, "notes.md", "no media", "ends in none of"),
        (10, "absent.mp4", "unreadable", "no such file"),
        (11, "nul\0.mp4", "unreadable", "null"),
        (12, "\ud800.mp4", "unreadable", "surrogates not allowed"),
        (14, "sub/../a.mp4", "named twice", "line 1 names it already"),
        (15, "pigeon://a.mp4", "broken row", "knows no pigeon://"),
        (16, "https://***@host/a.mp4", "broken row", "user name or password"),
        (17, "list.jsonl", "broken row", "“path”, “video”"),
        (18, "list.jsonl", "broken row", "no JSON"),
    ):
        assert (reasons[line].file, reasons[line].category) == (file, category)
        assert reason in reasons[line].reason
    assert "pw" not in json.dumps([entry.reason for entry in found.failures])


def test_a_quote_that_is_never_closed_swallows_no_rows_in_silence(media: Path) -> None:
    (media / "a.csv").write_text('path,caption\na.mp4,one\nsub/b.png,"two\nsub/c d.mp4,three\n')
    found = scan(media / "a.csv")
    assert [file.path for file in found.files] == ["a.mp4"]
    assert [entry.reason for entry in found.failures] == ["line 3: no row, as far as line 4: unexpected end of data"]
    (media / "b.csv").write_text('path,caption\na.mp4,one, two\nsub/b.png\nsub/c d.mp4,5" wide\n')
    found = scan(media / "b.csv")
    assert [(file.path, file.caption) for file in found.files] == [("sub/c d.mp4", '5" wide')]
    assert [entry.reason[:32] for entry in found.failures] == [
        "line 2: 3 cells for 2 columns (a",
        "line 3: 1 cells for 2 columns (a",
    ]


def test_names_of_any_bytes_can_be_listed(media: Path) -> None:
    names = ["new\nline.mp4", "'quo\"te'.mp4", "ü.mp4", "\udcff.mp4", "a::b.mp4", " blank .mp4"]
    for name in names:
        (media / name).write_text("x")
    (media / "list.jsonl").write_text("".join(json.dumps({"path": name}) + "\n" for name in names))
    source = open_source(str(media / "list.jsonl"))
    found = source.scan(media / "out")
    assert {file.path for file in found.files} == set(names)
    for file in found.files:
        with source.local(file.path, 1) as path:
            assert path.read_text() == "x"


def test_paths_may_lead_anywhere_and_plans_are_equal_wherever_the_data_lies(media: Path, tmp_path: Path) -> None:
    (media / "list.csv").write_text("url\n../above.mp4\na.mp4\nlost.mp4\n,\n")
    found = scan(media / "list.csv")
    assert [file.path for file in found.files] == ["../above.mp4", "a.mp4"]
    media.rename(tmp_path / "moved")
    assert scan(tmp_path / "moved" / "list.csv") == found
    assert str(tmp_path) not in repr(found)
    absolute = tmp_path / "moved" / "a.mp4"
    (tmp_path / "other.csv").write_text(f"path\n{absolute}\nfile://{tmp_path}/above.mp4\nfile://{absolute}\n")
    found = scan(tmp_path / "other.csv")
    assert [(file.path, file.bytes) for file in found.files] == [
        (str(absolute), 5),
        (f"file://{tmp_path}/above.mp4", 12),
    ]
    assert [entry.category for entry in found.failures] == ["named twice"]


def test_ids_become_keys_and_stay_apart(media: Path) -> None:
    assert clean_id("Video_1-a") == "Video_1-a"
    texts = ["a b", "a.b", "a/b", "../../a", "ü", "", "x" * 300, "\udcff"]
    cleaned = [clean_id(text) for text in texts]
    assert len(set(cleaned)) == len(texts)
    assert all(KEY.fullmatch(f"{key}-{10**9:06d}-still") for key in cleaned)
    (media / "list.jsonl").write_text(
        '{"path": "a.mp4", "id": 12}\n{"path": "sub/b.png", "id": "12"}\n{"path": "sub/c d.mp4", "id": true}\n'
    )
    found = scan(media / "list.jsonl")
    assert [(file.path, file.id) for file in found.files] == [("a.mp4", "12")]
    assert [(entry.category, entry.reason) for entry in found.failures] == [
        ("id twice", "line 2: line 1 has the same id"),
        ("broken row", "line 3: the id is no text: True"),
    ]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", b"", "no column .path.*none"),
        ("a.csv", b"clips/a.mp4,a dog\n", "no column .path.*clips/a.mp4., .a dog"),
        ("a.csv", b"path,video\na.mp4,b.mp4\n", "“path”, “video” say the same"),
        ("a.csv", b"path,caption,Text\n", "“caption”, “Text” say the same"),
        ("a.csv", b'"path\n', "names no columns"),
        ("a.csv", "path\na.mp4\n".encode("utf-16"), "no UTF-8 text"),
        ("a.csv", b"path,caption\na.mp4,caf\xe9\n", "no UTF-8 text"),
        ("a.jsonl", b'{"path": "caf\xe9.mp4"}\n', "no UTF-8 text"),
        ("a.jsonl", b'{"name": "a.mp4"}\n', "no column .path.*name"),
        ("a.jsonl", b"", "names no file that can be used: it is empty"),
        ("a.jsonl", b'{"path": "lost.mp4"}\n', r"no file that can be used \(lost.mp4, line 1: no such file"),
        ("a.parquet", b"PAR1 is not enough", "no Parquet file"),
    ],
)
def test_a_list_that_is_none_is_the_users_to_mend(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        scan(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_parquet_columns_of_another_type_fail_row_by_row(media: Path) -> None:
    table = pyarrow.table({"path": [b"a.mp4", b"sub/b.png"]})
    parquet.write_table(table, media / "list.parquet")
    with pytest.raises(UserError, match="the path is no text"):
        scan(media / "list.parquet")


def test_a_list_on_the_web(media: Path) -> None:
    (media / "list.csv").write_text("path,caption\na.mp4,one\nsub/c d.mp4,two\n../set/sub/b.png,three\nlost.mp4,four\n")
    with serve(media.parent) as web:
        source = open_source(f"{web.url}/set/list.csv")
        source.check_present()
        found = source.scan(media / "out")
        assert [(file.path, file.bytes, file.caption) for file in found.files] == [
            ("../set/sub/b.png", 9, "three"),
            ("a.mp4", 5, "one"),
            ("sub/c d.mp4", 11, "two"),
        ]
        assert [(entry.file, entry.reason) for entry in found.failures] == [("lost.mp4", "line 5: no such file")]
        for file in found.files:
            with source.local(file.path, file.bytes) as path:
                assert path.stat().st_size == file.bytes
        # a list on this machine may name what lies elsewhere
        (media / "mixed.jsonl").write_text(f'{{"url": "{web.url}/set/sub/c d.mp4"}}\n{{"file": "a.mp4"}}\n')
        found = scan(media / "mixed.jsonl")
        assert [(file.path, file.bytes) for file in found.files] == [
            ("a.mp4", 5),
            (f"{web.url}/set/sub/c d.mp4", 11),
        ]
    with pytest.raises(UserError, match="is gone"):
        source.check_present()
    with pytest.raises(UserError, match="cannot be read"):
        source.scan(media / "out")
    found = scan(media / "mixed.jsonl")  # what cannot be reached now keeps its place
    assert [(file.path[:4], file.bytes) for file in found.files] == [("a.mp", 5), ("http", 0)]


def test_a_list_in_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for number in range(20):  # enough for the folder to be listed rather than each file asked for
            archive.writestr(f"videos/{number:02d}.mp4", "x" * number)
        rows = "".join(f"../videos/{number:02d}.mp4\n" for number in range(21))
        archive.writestr("lists/list.csv", f"path\n{rows}")
    source = open_source(f"zip://lists/list.csv::{tmp_path}/x.zip")
    found = source.scan(tmp_path / "out")
    assert [file.bytes for file in found.files] == list(range(20))
    assert [entry.file for entry in found.failures] == ["../videos/20.mp4"]
    with source.local("../videos/07.mp4", 7) as path:
        assert path.read_text() == "x" * 7


def test_a_list_that_vanishes_is_told(media: Path) -> None:
    (media / "list.csv").write_text("path\na.mp4\n")
    source = open_source(str(media / "list.csv"))
    source.check_present()
    media.rename(media.with_name("elsewhere"))
    with pytest.raises(UserError, match="is gone"):
        source.check_present()
    with pytest.raises(UserError, match="cannot be read"):
        source.scan(media / "out")
    with pytest.raises(UserError, match="is not there"):
        open_source(str(media / "list.csv"))


def test_a_file_without_read_permission_keeps_its_place(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (media / "list.csv").write_text("path\na.mp4\nsub/b.png\n")
    stat = os.stat

    def refuse(path: object, *arguments: object, **options: object) -> os.stat_result:
        if str(path).endswith("b.png"):  # root may read everything: the refusal has to be made
            raise PermissionError(13, "Permission denied", path)
        return stat(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", refuse)
    assert [(file.path, file.bytes) for file in scan(media / "list.csv").files] == [("a.mp4", 5), ("sub/b.png", 0)]
