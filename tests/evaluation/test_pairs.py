"""The list of pairs: how it is read, and one line for each mistake."""

import json
from pathlib import Path

import pytest

from gen1_train.errors import UserError
from gen1_train.evaluation.pairs import Pair, read_pairs


def write(folder: Path, text: str, name: str = "pairs.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_csv_and_json_lines_give_the_same_pairs(tmp_path: Path) -> None:
    table = write(
        tmp_path,
        'prompt,video,image,start,frames,fps\n"a ball, of  clay",a.mp4,,2,8,12.5\nfog,/b.mov,c.png,,,\n\nfire,s3://x/d.mp4,,,,\n',
    )
    expected = [
        Pair(2, "a.mp4", "a ball, of clay", None, 2, 8, 12.5),
        Pair(3, "/b.mov", "fog", "c.png"),
        Pair(5, "s3://x/d.mp4", "fire"),
    ]
    assert read_pairs(table) == expected
    rows = [
        {},
        {"video": "a.mp4", "prompt": "a ball, of clay", "start": 2, "frames": 8, "fps": 12.5},
        {"video": "/b.mov", "prompt": "fog", "image": "c.png", "start": None},
        {},
        {"video": "s3://x/d.mp4", "prompt": "fire"},
    ]
    lines = write(tmp_path, "\n".join(json.dumps(row) if row else "" for row in rows), "pairs.jsonl")
    assert read_pairs(lines) == expected
    paths = [(pair.video_path, pair.image_path) for pair in read_pairs(lines)]
    assert paths == [(f"{tmp_path}/a.mp4", None), ("/b.mov", f"{tmp_path}/c.png"), ("s3://x/d.mp4", None)]


def test_spaces_around_the_name_of_a_file_belong_to_it(tmp_path: Path) -> None:
    table = write(tmp_path, "video,prompt,start\n a.mp4, fog , 3 \nb.mp4,x,  \n")
    assert read_pairs(table) == [Pair(2, " a.mp4", "fog", start=3), Pair(3, "b.mp4", "x")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column video"),
        ("video,prompt\n", "has no pairs"),
        ("video\na.mp4\n", "no column prompt"),
        ("video,prompt,framse\n", "line 1: there is no column 'framse'; did you mean frames?"),
        ("video,prompt,zzz\n", "the columns are video, prompt, image, start, frames, fps"),
        ("video,prompt\na.mp4,x\na.mp4,\n", "line 3: the prompt is empty"),
        ("video,prompt\na.mp4,   \n", "line 2: the prompt is empty"),
        ("video,prompt\n,x\n", "line 2: the video is empty"),
        ("video,prompt\na.mp4,a,b\n", "line 2: 3 cells for 2 columns"),
        ('video,prompt\na.mp4,"a\n', "line 2: unexpected end of data"),
        ("video,prompt,start\na.mp4,x,two\n", "line 2: start=two is not a whole number"),
        ("video,prompt,fps\na.mp4,x,fast\n", "line 2: fps=fast is not a number"),
    ],
)
def test_a_mistake_in_csv_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    check_refused(write(tmp_path, text), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1 is not JSON"),
        ("[1]", "line 1 is not a JSON object"),
        ('{"video": "a.mp4", "prompt": "x"}\n{"video": "a.mp4", "text": "x"}', "line 2: there is no column 'text'"),
        ('{"video": "a.mp4"}', "line 1: the prompt is empty"),
        ('{"video": "a.mp4", "prompt": 3}', "line 1: prompt=3 is not a text"),
        ('{"video": "a.mp4", "prompt": "x", "frames": 2.5}', "line 1: frames=2.5 is not a whole number"),
        ('{"video": "a.mp4", "prompt": "x", "frames": true}', "line 1: frames=True is not a whole number"),
    ],
)
def test_a_mistake_in_json_lines_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    check_refused(write(tmp_path, text, "pairs.jsonl"), message)


@pytest.mark.parametrize("column", ["video", "image"])
def test_a_url_may_neither_hold_a_secret_nor_do_more_than_name_bytes(tmp_path: Path, column: str) -> None:
    rows = {"reference://a::https://h/refs.json": "reference:// is not", "https://me:hush@h/a.mp4": "user name or pass"}
    for url, reason in rows.items():
        row = {"video": "a.mp4", "prompt": "x", column: url}
        path = write(tmp_path, json.dumps(row), "pairs.jsonl")
        check_refused(path, f"line 1: {column}=")
        with pytest.raises(UserError, match=reason) as error:
            read_pairs(path)
        assert "hush" not in str(error.value)


def test_an_unreadable_list_is_one_line(tmp_path: Path) -> None:
    check_refused(tmp_path / "pairs.csv", "does not exist")
    check_refused(tmp_path / "pairs.txt", "ends with .csv or .jsonl")
    (tmp_path / "latin.csv").write_bytes("video,prompt\na,grün\n".encode("latin-1"))
    check_refused(tmp_path / "latin.csv", "is not UTF-8 text")


def check_refused(path: Path, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_pairs(path)
    assert message in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)
