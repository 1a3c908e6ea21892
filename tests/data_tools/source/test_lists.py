import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from data_tools.source.lists import clean_id
from data_tools.source.locations import Scan
from data_tools.source.sources import open_source
from gen1_train.batch import KEY
from gen1_train.errors import UserError
from gen1_train.video.errors import VideoError
from tests.video.web import serve

HEADER, ROWS = (
    ["path", "caption", "id"],
    [["a.mp4", "a red,\n  ball", "first"], ["sub/b.png", "", "zwei ü"], ["sub/c d.mp4", None, None]],
)


def write_csv(path: Path) -> None:
    path.write_text('path,caption,id\na.mp4,"a red,\n  ball",first\nsub/b.png,,zwei ü\n\nsub/c d.mp4," ",\n')


def write_tsv(path: Path) -> None:
    path.write_bytes('\ufeffFile\tText\tID\r\na.mp4\t"a red,\n  ball"\tfirst\r\nsub/b.png\t\tzwei ü\r\n'.encode())
    path.write_bytes(path.read_bytes() + b"sub/c d.mp4\t\t")  # without a line end


def write_json_lines(path: Path) -> None:
    rows = [dict(zip(HEADER, row, strict=True)) for row in ROWS]
    rows[1]["image"] = rows[1].pop("path")  # each row may use another column name
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
def test_every_format_gives_the_same_rows(media: Path, name: str, write: Callable[[Path], None]) -> None:
    write(media / name)
    result = scan(media / name)
    assert result.failures == []
    assert [(file.path, file.kind, file.bytes, file.caption, file.id) for file in result.files] == [
        ("a.mp4", "video", 5, "a red,\n  ball", "first"),
        ("sub/b.png", "image", 9, None, clean_id("zwei ü")),
        ("sub/c d.mp4", "video", 11, None, None),
    ]
    source = open_source(str(media / name))
    with source.local("sub/c d.mp4", 11) as path:
        assert path == media / "sub/c d.mp4"


def write_table(path: Path, rows: list[list[str]], encoding: str, line_end: str) -> None:
    delimiter = "," if path.suffix == ".csv" else "\t"
    lines = [delimiter.join(f'"{cell}"' if "\n" in cell else cell for cell in row) for row in rows]
    path.write_bytes((line_end.join(lines) + line_end).encode(encoding))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.jsonl", "list.parquet"])
def test_spaces_around_a_value_belong_to_it(tmp_path: Path, name: str, line_end: str, encoding: str) -> None:
    """A file may be named so. A caption keeps its lines; one of spaces alone is none."""
    rows = [
        [" a.mp4", "  ein roter Ball ü \n", " 1"],
        ["b .mp4 ", " ", "  "],
        ["\u00a0c.png", "x", "1"],
        ["a.mp4", "", ""],
    ]
    names = [" a.mp4", "b .mp4 ", "\u00a0c.png", "a.mp4"]
    for number, file in enumerate(names):
        (tmp_path / file).write_text("x" * number)
    path = tmp_path / name
    if path.suffix in (".csv", ".tsv"):
        write_table(path, [HEADER, *rows], encoding, line_end)
    elif path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(HEADER, row, strict=True)), ensure_ascii=False) for row in rows]
        path.write_bytes(line_end.join(lines).encode(encoding))
    else:
        parquet.write_table(pyarrow.table(dict(zip(HEADER, zip(*rows, strict=True), strict=True))), path)
    result = scan(path)
    assert [failure.file for failure in result.failures] == ["b .mp4 "]  # whose suffix is not that of a video
    assert {(file.path, file.bytes, file.caption, file.id) for file in result.files} == {
        (" a.mp4", 0, "  ein roter Ball ü \n", clean_id(" 1")),
        ("\u00a0c.png", 2, "x", "1"),
        ("a.mp4", 3, None, None),
    }


def test_a_broken_row_is_a_failure_and_the_others_are_read(media: Path) -> None:
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
    result = scan(media / "list.jsonl")
    assert [file.path for file in result.files] == ["a.mp4", "sub/b.png"]
    reasons = {int(re.match(r"line (\d+): ", entry.reason)[1]): entry for entry in result.failures}  # type: ignore[index]
    assert sorted(reasons) == list(range(2, 19))
    assert all(entry.failed and not entry.transient for entry in result.failures)
    for line, file, category, reason in (
        (2, "list.jsonl", "broken row", "not JSON: "),
        (3, "list.jsonl", "broken row", "not a JSON object"),
        (4, "list.jsonl", "broken row", "not have exactly one of path, "),
        (5, "list.jsonl", "broken row", "it has no path"),
        (6, "list.jsonl", "broken row", "the path is not text: 7"),
        (7, "list.jsonl", "broken row", "the caption is not text"),
        (8, "list.jsonl", "broken row", "half a character"),
        (9, "notes.md", "no media", "ends in none of"),
        (10, "absent.mp4", "unreadable", "no such file"),
        (11, "nul\0.mp4", "unreadable", "null"),
        (12, "\ud800.mp4", "unreadable", "surrogates not allowed"),
        (14, "sub/../a.mp4", "named twice", "line 1 already names it"),
        (15, "pigeon://a.mp4", "broken row", "does not know pigeon://"),
        (16, "https://***@host/a.mp4", "broken row", "user name or password"),
        (17, "list.jsonl", "broken row", "“path”, “video”"),
        (18, "list.jsonl", "broken row", "not JSON"),
    ):
        assert (reasons[line].file, reasons[line].category) == (file, category)
        assert reason in reasons[line].reason
    assert "pw" not in json.dumps([entry.reason for entry in result.failures])


def test_an_unclosed_quote_is_a_failure(media: Path) -> None:
    (media / "a.csv").write_text('path,caption\na.mp4,one\nsub/b.png,"two\nsub/c d.mp4,three\n')
    result = scan(media / "a.csv")
    assert [file.path for file in result.files] == ["a.mp4"]
    assert [entry.reason for entry in result.failures] == ["line 3: not a row, up to line 4: unexpected end of data"]
    (media / "b.csv").write_text('path,caption\na.mp4,one, two\nsub/b.png\nsub/c d.mp4,5" wide\n')
    result = scan(media / "b.csv")
    assert [(file.path, file.caption) for file in result.files] == [("sub/c d.mp4", '5" wide')]
    assert [entry.reason[:32] for entry in result.failures] == [
        "line 2: 3 cells for 2 columns (a",
        "line 3: 1 cells for 2 columns (a",
    ]


def test_names_of_any_bytes_can_be_listed(media: Path) -> None:
    names = ["new\nline.mp4", "'quo\"te'.mp4", "ü.mp4", "\udcff.mp4", "a::b.mp4", " blank .mp4"]
    for name in names:
        (media / name).write_text("x")
    (media / "list.jsonl").write_text("".join(json.dumps({"path": name}) + "\n" for name in names))
    source = open_source(str(media / "list.jsonl"))
    result = source.scan(media / "out")
    assert {file.path for file in result.files} == set(names)
    for file in result.files:
        with source.local(file.path, 1) as path:
            assert path.read_text() == "x"


def test_paths_may_lead_anywhere_and_a_moved_source_gives_the_same_plan(media: Path, tmp_path: Path) -> None:
    (media / "list.csv").write_text("url\n../above.mp4\na.mp4\nlost.mp4\n,\n")
    result = scan(media / "list.csv")
    assert [file.path for file in result.files] == ["../above.mp4", "a.mp4"]
    media.rename(tmp_path / "moved")
    assert scan(tmp_path / "moved" / "list.csv") == result
    assert str(tmp_path) not in repr(result)
    absolute = tmp_path / "moved" / "a.mp4"
    (tmp_path / "other.csv").write_text(f"path\n{absolute}\nfile://{tmp_path}/above.mp4\nfile://{absolute}\n")
    result = scan(tmp_path / "other.csv")
    assert [(file.path, file.bytes) for file in result.files] == [
        (str(absolute), 5),
        (f"file://{tmp_path}/above.mp4", 12),
    ]
    assert [entry.category for entry in result.failures] == ["named twice"]


def test_ids_become_unique_keys(media: Path) -> None:
    assert clean_id("Video_1-a") == "Video_1-a"
    texts = ["a b", "a.b", "a/b", "../../a", "ü", "", "x" * 300, "\udcff"]
    cleaned = [clean_id(text) for text in texts]
    assert len(set(cleaned)) == len(texts)
    assert all(KEY.fullmatch(f"{key}-{10**9:06d}-still") for key in cleaned)
    (media / "list.jsonl").write_text(
        '{"path": "a.mp4", "id": 12}\n{"path": "sub/b.png", "id": "12"}\n{"path": "sub/c d.mp4", "id": true}\n'
    )
    result = scan(media / "list.jsonl")
    assert [(file.path, file.id) for file in result.files] == [("a.mp4", "12")]
    assert [(entry.category, entry.reason) for entry in result.failures] == [
        ("id twice", "line 2: line 1 has the same id"),
        ("broken row", "line 3: the id is not text: True"),
    ]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", b"", "no column .path.*none"),
        ("a.csv", b"clips/a.mp4,a dog\n", "no column .path.*clips/a.mp4., .a dog"),
        ("a.csv", b"path,video\na.mp4,b.mp4\n", "“path”, “video” mean the same"),
        ("a.csv", b"path,caption,Text\n", "“caption”, “Text” mean the same"),
        ("a.csv", b'"path\n', "names no columns"),
        ("a.csv", "path\na.mp4\n".encode("utf-16"), "not UTF-8 text"),
        ("a.csv", b"path,caption\na.mp4,caf\xe9\n", "not UTF-8 text"),
        ("a.jsonl", b'{"path": "caf\xe9.mp4"}\n', "not UTF-8 text"),
        ("a.jsonl", b'{"name": "a.mp4"}\n', "no column .path.*name"),
        ("a.jsonl", b"", "names no file that can be used: it is empty"),
        ("a.jsonl", b'{"path": "lost.mp4"}\n', r"no file that can be used \(lost.mp4, line 1: no such file"),
        ("a.parquet", b"PAR1 is not enough", "not a readable Parquet file"),
    ],
)
def test_an_unusable_list_is_an_error_with_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        scan(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_parquet_columns_of_another_type_fail_row_by_row(media: Path) -> None:
    table = pyarrow.table({"path": [b"a.mp4", b"sub/b.png"]})
    parquet.write_table(table, media / "list.parquet")
    with pytest.raises(UserError, match="the path is not text"):
        scan(media / "list.parquet")


def test_a_list_on_the_web(media: Path) -> None:
    (media / "list.csv").write_text("path,caption\na.mp4,one\nsub/c d.mp4,two\n../set/sub/b.png,three\nlost.mp4,four\n")
    with serve(media.parent) as web:
        source = open_source(f"{web.url}/set/list.csv")
        source.check_present()
        result = source.scan(media / "out")
        assert [(file.path, file.bytes, file.caption) for file in result.files] == [
            ("../set/sub/b.png", 9, "three"),
            ("a.mp4", 5, "one"),
            ("sub/c d.mp4", 11, "two"),
        ]
        assert [(entry.file, entry.reason) for entry in result.failures] == [("lost.mp4", "line 5: no such file")]
        for file in result.files:
            with source.local(file.path, file.bytes) as path:
                assert path.stat().st_size == file.bytes
        # a local list may name remote files
        (media / "mixed.jsonl").write_text(f'{{"url": "{web.url}/set/sub/c d.mp4"}}\n{{"file": "a.mp4"}}\n')
        result = scan(media / "mixed.jsonl")
        assert [(file.path, file.bytes) for file in result.files] == [
            ("a.mp4", 5),
            (f"{web.url}/set/sub/c d.mp4", 11),
        ]
    with pytest.raises(UserError, match="is gone"):
        source.check_present()
    with pytest.raises(UserError, match="cannot be read"):
        source.scan(media / "out")
    result = scan(media / "mixed.jsonl")  # a file that cannot be reached now stays in the plan
    assert [(file.path[:4], file.bytes) for file in result.files] == [("a.mp", 5), ("http", 0)]


def test_a_list_in_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for number in range(20):  # enough to list the folder instead of looking up each file
            archive.writestr(f"videos/{number:02d}.mp4", "x" * number)
        rows = "".join(f"../videos/{number:02d}.mp4\n" for number in range(21))
        archive.writestr("lists/list.csv", f"path\n{rows}")
    source = open_source(f"zip://lists/list.csv::{tmp_path}/x.zip")
    result = source.scan(tmp_path / "out")
    assert [file.bytes for file in result.files] == list(range(20))
    assert [entry.file for entry in result.failures] == ["../videos/20.mp4"]
    with source.local("../videos/07.mp4", 7) as path:
        assert path.read_text() == "x" * 7


def test_a_list_that_disappears_is_an_error(media: Path) -> None:
    (media / "list.csv").write_text("path\na.mp4\n")
    source = open_source(str(media / "list.csv"))
    source.check_present()
    media.rename(media.with_name("elsewhere"))
    with pytest.raises(UserError, match="is gone"):
        source.check_present()
    with pytest.raises(UserError, match="cannot be read"):
        source.scan(media / "out")
    with pytest.raises(UserError, match="does not exist"):
        open_source(str(media / "list.csv"))


def test_a_file_without_read_permission_stays_in_the_plan(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (media / "list.csv").write_text("path\na.mp4\nsub/b.png\n")
    stat = os.stat

    def refuse(path: object, *arguments: object, **options: object) -> os.stat_result:
        if str(path).endswith("b.png"):  # root may read everything, so the refusal is simulated
            raise PermissionError(13, "Permission denied", path)
        return stat(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", refuse)
    assert [(file.path, file.bytes) for file in scan(media / "list.csv").files] == [("a.mp4", 5), ("sub/b.png", 0)]


def test_a_row_runs_no_templates(media: Path) -> None:
    """fsspec's reference:// renders Jinja templates, which run code in versions without a sandbox."""
    (media / "refs.json").write_text(
        json.dumps({"version": 1, "gen": [{"key": "{{ 6 * 7 }}.mp4", "url": "x", "dimensions": {}}], "refs": {}})
    )
    chain = f"::file://{media}/refs.json"
    rows = ["a.mp4", f"reference://42.mp4{chain}", f"zip://a.mp4::reference://42.mp4{chain}"]
    (media / "list.csv").write_text("path\n" + "\n".join(rows))
    source = open_source(str(media / "list.csv"))
    for _ in range(2):
        result = source.scan(media / "out")
        assert [file.path for file in result.files] == ["a.mp4"]
        assert [(entry.file, entry.category) for entry in result.failures] == [(row, "broken row") for row in rows[1:]]
    with pytest.raises(VideoError, match="reference:// is not for URLs"):
        source.locate(rows[1])  # as a plan that was made elsewhere names it


def test_a_relative_row_of_a_remote_list_is_not_a_chain_of_urls(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.mp4", "x")
        archive.writestr("list.csv", "path\na.mp4\nb.mp4::file:///etc/passwd\n")
    result = open_source(f"zip://list.csv::{tmp_path}/x.zip").scan(tmp_path / "out")
    assert [file.path for file in result.files] == ["a.mp4"]
    assert "contains ::" in result.failures[0].reason
