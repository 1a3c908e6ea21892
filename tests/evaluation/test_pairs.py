"""The list of pairs: what is read, and the one line for each mistake."""

import json
from pathlib import Path

import pytest

from gen1_train.errors import UserError
from gen1_train.evaluation.pairs import Pair, read_pairs


def written(folder: Path, text: str, name: str = "pairs.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_csv_and_json_lines_say_the_same(tmp_path: Path) -> None:
    table = written(
        tmp_path,
        'prompt,video,image,start,frames,fps\n"a ball, of  clay",a.mp4,,2,8,12.5\nfog,/b.mov,c.png,,,\n\nfire,s3://x/d.mp4,,,,\n',
    )
    wanted = [
        Pair(2, "a.mp4", "a ball, of clay", None, 2, 8, 12.5),
        Pair(3, "/b.mov", "fog", "c.png"),
        Pair(5, "s3://x/d.mp4", "fire"),
    ]
    assert read_pairs(table) == wanted
    rows = [
        {},
        {"video": "a.mp4", "prompt": "a ball, of clay", "start": 2, "frames": 8, "fps": 12.5},
        {"video": "/b.mov", "prompt": "fog", "image": "c.png", "start": None},
        {},
        {"video": "s3://x/d.mp4", "prompt": "fire"},
    ]
    lines = written(tmp_path, "\n".join(json.dumps(row) if row else "" for row in rows), "pairs.jsonl")
    assert read_pairs(lines) == wanted
    paths = [(pair.video_path, pair.image_path) for pair in read_pairs(lines)]
    assert paths == [(f"{tmp_path}/a.mp4", None), ("/b.mov", f"{tmp_path}/c.png"), ("s3://x/d.mp4", None)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column video"),
        ("video,prompt\n", "no pair"),
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
def test_a_mistake_in_csv_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    refused(written(tmp_path, text), said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 1 is no JSON"),
        ("[1]", "line 1 is no JSON object"),
        ('{"video": "a.mp4", "prompt": "x"}\n{"video": "a.mp4", "text": "x"}', "line 2: there is no column 'text'"),
        ('{"video": "a.mp4"}', "line 1: the prompt is empty"),
        ('{"video": "a.mp4", "prompt": 3}', "line 1: prompt=3 is not a text"),
        ('{"video": "a.mp4", "prompt": "x", "frames": 2.5}', "line 1: frames=2.5 is not a whole number"),
        ('{"video": "a.mp4", "prompt": "x", "frames": true}', "line 1: frames=True is not a whole number"),
    ],
)
def test_a_mistake_in_json_lines_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    refused(written(tmp_path, text, "pairs.jsonl"), said)


def test_no_list_is_one_line(tmp_path: Path) -> None:
    refused(tmp_path / "pairs.csv", "is not there")
    refused(tmp_path / "pairs.txt", "ends with .csv or .jsonl")
    (tmp_path / "latin.csv").write_bytes("video,prompt\na,grün\n".encode("latin-1"))
    refused(tmp_path / "latin.csv", "no UTF-8")


def refused(path: Path, said: str) -> None:
    with pytest.raises(UserError) as error:
        read_pairs(path)
    assert said in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)
