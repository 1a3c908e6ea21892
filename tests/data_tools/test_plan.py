import json
import os
from pathlib import Path

import pytest

from data_tools.plan import MediaFile, Plan, cut, make_plan
from data_tools.task import sample_key
from gen1_train.batch import KEY
from gen1_train.errors import UserError
from gen1_train.video.decode import read_clips
from tests.data_tools.source import make_source, quick_recipe
from tests.video.files import make_video


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("source"))


def test_every_file_is_accounted_for(source: Path, tmp_path: Path) -> None:
    plan = make_plan(source, tmp_path / "out", quick_recipe(), workers=2)
    assert [(file.path, file.bucket, file.frames) for file in plan.files] == [
        ("a.mp4", "64x48", 60),
        ("photo.png", "64x48", 1),
        ("sub/b.c.mkv", "64x48", 40),
    ]
    assert {failure.file: failure.reason for failure in plan.failures} == {
        "broken.mp4": "Invalid data found when processing input",
        "short.mp4": "2 frames, and a clip takes 3",
        "tiny.png": "20x20 would be enlarged 2.4 times to 48x48",
    }
    assert plan.ignored == {".md": 1}
    assert not plan.stills
    assert sorted(number for task in plan.tasks for number in task) == [0, 1, 2]


def test_a_plan_is_the_same_everywhere_and_is_kept(source: Path, tmp_path: Path) -> None:
    first = make_plan(source, tmp_path / "one", quick_recipe(), workers=1)
    second = make_plan(source, tmp_path / "two", quick_recipe(), workers=3)
    assert first.hash == second.hash == Plan.load(tmp_path / "one").hash
    written = (tmp_path / "one" / "plan.json").stat().st_mtime_ns
    assert make_plan(source, tmp_path / "one", quick_recipe(), workers=1) == first
    assert (tmp_path / "one" / "plan.json").stat().st_mtime_ns == written
    assert str(source) not in (tmp_path / "one" / "plan.json").read_text()


def test_another_plan_in_the_same_output_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    make_video(source / "a.mp4", frames=20)
    make_plan(source, tmp_path / "out", quick_recipe(), workers=1)
    with pytest.raises(UserError, match="another recipe or other files"):
        make_plan(source, tmp_path / "out", quick_recipe(stride=1), workers=1)
    (source / "a.txt").write_text("a caption that was not there")
    with pytest.raises(UserError, match="another recipe or other files"):
        make_plan(source, tmp_path / "out", quick_recipe(), workers=1)


def test_a_damaged_plan_is_refused(source: Path, tmp_path: Path) -> None:
    make_plan(source, tmp_path, quick_recipe(), workers=1)
    path = tmp_path / "plan.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "stills": True}))
    with pytest.raises(UserError, match="changed by hand"):
        Plan.load(tmp_path)
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        Plan.load(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="step=plan"):
        Plan.load(tmp_path)


def test_stills_are_taken_only_without_images(source: Path, tmp_path: Path) -> None:
    assert make_plan(source / "sub", tmp_path / "a", quick_recipe(), workers=1).stills
    assert not make_plan(source / "sub", tmp_path / "b", quick_recipe(stills="never"), workers=1).stills
    assert make_plan(source, tmp_path / "c", quick_recipe(stills="always"), workers=1).stills


def test_tasks_have_about_the_same_length() -> None:
    files = [MediaFile(f"{i}.mp4", "video", 1, None, 64, 48, 250, 25.0, "64x48") for i in range(10)]
    assert cut(files, 30.0) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert cut(files, 1.0) == [[i] for i in range(10)]
    assert cut([], 1.0) == []


def test_names_that_are_no_text_do_no_harm(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    make_video(source / "a.mp4", frames=20).rename(Path(os.fsdecode(os.fsencode(source) + b"/\xff.mp4")))
    make_video(source / "ok: yes?.mp4", frames=20)
    plan = make_plan(source, tmp_path / "out", quick_recipe(), workers=1)
    assert [file.path for file in plan.files] == ["ok: yes?.mp4", "\udcff.mp4"]
    assert Plan.load(tmp_path / "out") == plan
    for file in plan.files:
        assert KEY.fullmatch(sample_key(file.path))
        assert len(list(read_clips(source / file.path, [[0, 2]]))) == 1


def test_an_output_that_cannot_be_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        make_plan(source, tmp_path / "file", quick_recipe(), workers=1)
    with pytest.raises(UserError, match="same folder"):
        make_plan(source, source, quick_recipe(), workers=1)
