import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from data_tools.clips.read import file_key
from data_tools.plan import Plan, cut, hash_inputs, load_fitting, make_plan
from data_tools.recipe import RecipeConfig
from data_tools.source import examine
from data_tools.source.examine import MediaFile
from data_tools.source.sources import open_source
from gen1_train.batch import KEY
from gen1_train.errors import UserError
from gen1_train.video.decode import read_clips
from gen1_train.video.errors import VideoError
from tests.data_tools.small_source import make_source, quick_recipe
from tests.video.files import make_video


def plan_of(source: Path, output: Path, recipe: RecipeConfig | None = None, threads: int = 1) -> Plan:
    return make_plan(open_source(str(source)), output, recipe or quick_recipe(), threads)


def files_of(plan: Plan, output: Path) -> list[MediaFile]:
    return [file for number in range(len(plan.tasks)) for file in plan.read_task(output, number)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("source"))


def test_every_file_is_accounted_for(source: Path, tmp_path: Path) -> None:
    plan = plan_of(source, tmp_path, threads=2)
    assert [(file.path, file.bucket, file.frames) for file in files_of(plan, tmp_path)] == [
        ("a.mp4", "64x48", 60),
        ("photo.png", "64x48", 1),
        ("sub/b.c.mkv", "64x48", 40),
    ]
    lost = plan.read_failures(tmp_path)
    assert {failure.file: (failure.category, failure.failed) for failure in lost} == {
        "broken.mp4": ("unreadable", True),
        "short.mp4": ("too short", False),
        "tiny.png": ("too small", False),
    }
    reasons = {failure.file: failure.reason for failure in lost}
    assert reasons["short.mp4"] == "it has 2 of the 3 frames that a clip needs"
    assert reasons["tiny.png"] == "20x20 would be enlarged 2.4 times to 48x48"
    assert plan.ignored == {".md": 1}
    assert not plan.stills
    assert plan.files == 3


def test_a_crop_that_loses_much_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "source").mkdir()
    make_video(tmp_path / "source" / "tall.mp4", 60, width=64, height=128)
    make_video(tmp_path / "source" / "wide.mp4", 60)
    plan_of(tmp_path / "source", tmp_path / "out")
    assert caplog.messages == [
        "1 of 2 files lose more than 30% of the picture to the crop, such as tall.mp4 (64x128 to 64x48): add a bucket "
        "of their shape to recipe.video_buckets or recipe.image_buckets"
    ]
    plan_of(tmp_path / "source", tmp_path / "out")
    assert len(caplog.messages) == 1  # a plan is made once


def test_a_plan_is_the_same_for_any_output_and_is_reused(source: Path, tmp_path: Path) -> None:
    first = plan_of(source, tmp_path / "one")
    second = plan_of(source, tmp_path / "two", threads=3)
    assert first.hash == second.hash == Plan.load(tmp_path / "one").hash
    written = (tmp_path / "one" / "plan.json").stat().st_mtime_ns
    assert plan_of(source, tmp_path / "one") == first
    assert (tmp_path / "one" / "plan.json").stat().st_mtime_ns == written
    for name in ("plan.json", "plan.jsonl"):
        assert str(source) not in (tmp_path / "one" / name).read_text()


def test_another_plan_in_the_same_output_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    make_video(source / "a.mp4", frames=20)
    plan_of(source, tmp_path / "out")
    for attempt in (
        lambda recipe: plan_of(source, tmp_path / "out", recipe),
        lambda r: load_fitting(tmp_path / "out", r),
    ):
        with pytest.raises(UserError, match="with another recipe"):
            attempt(quick_recipe(stride=1))
    (source / "a.txt").write_text("a caption that the plan does not know")
    with pytest.raises(UserError, match="with other files"):
        plan_of(source, tmp_path / "out")
    assert load_fitting(tmp_path / "out", quick_recipe()).files == 1  # the plan itself can still be used


def test_an_unfinished_plan_of_a_version_with_fewer_settings_continues(tmp_path: Path) -> None:
    source, output = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    make_video(source / "a.mp4", frames=20)
    recipe = quick_recipe(structure_levels=0)
    plan = plan_of(source, output, recipe)
    later = ("structure_levels", "degradation", "soft_edges", "caption", "coca", "blip")
    older = {name: value for name, value in plan.recipe.items() if name not in later}
    older["clip"] = {name: value for name, value in older["clip"].items() if name != "fit"}
    older["depth"] = {name: value for name, value in older["depth"].items() if name != "resize"}
    old = replace(plan, recipe=older, inputs=hash_inputs(older, open_source(str(source)).scan(output)))
    (output / "plan.json").write_text(json.dumps({**asdict(old), "hash": old.hash}))
    assert plan_of(source, output, recipe).hash == old.hash
    with pytest.raises(UserError, match=r"with another recipe \(recipe.structure_levels=0 instead of 7\): give that"):
        plan_of(source, output)
    recipe.clip.fit = "squash"
    with pytest.raises(UserError, match=r"with another recipe \(recipe.clip.fit=null instead of squash\)"):
        plan_of(source, output, recipe)
    recipe.clip.fit, recipe.depth.resize = None, "minimal"
    with pytest.raises(UserError, match=r"with another recipe \(recipe.depth.resize=lower_bound instead of minimal\)"):
        plan_of(source, output, recipe)


def test_a_damaged_plan_is_refused(source: Path, tmp_path: Path) -> None:
    plan_of(source, tmp_path)
    path = tmp_path / "plan.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "stills": True}))
    with pytest.raises(UserError, match="changed by hand"):
        Plan.load(tmp_path)
    path.write_text(json.dumps({**content, "format": 1}))
    with pytest.raises(UserError, match="has format 1"):
        Plan.load(tmp_path)
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        Plan.load(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="step=plan"):
        Plan.load(tmp_path)


def test_a_damaged_line_of_the_plan_is_refused(source: Path, tmp_path: Path) -> None:
    plan = plan_of(source, tmp_path)
    lines = tmp_path / "plan.jsonl"
    lines.write_text(lines.read_text().replace('"frames": 60', '"frames": 59'))
    with pytest.raises(UserError, match="its checksum differs"):
        plan.read_task(tmp_path, 0)
    assert plan.read_failures(tmp_path)  # the other lines can still be read


def test_an_unreachable_file_stays_in_the_plan(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise VideoError("the mount is gone", transient=True)

    monkeypatch.setattr(examine, "probe", lost)
    plan = plan_of(source, tmp_path)
    assert [(file.path, file.bucket) for file in files_of(plan, tmp_path)] == [
        ("a.mp4", ""),
        ("broken.mp4", ""),
        ("photo.png", ""),
        ("short.mp4", ""),
        ("sub/b.c.mkv", ""),
        ("tiny.png", ""),
    ]
    assert all(file.seconds > 0 for file in files_of(plan, tmp_path))


def test_stills_are_taken_only_without_images(source: Path, tmp_path: Path) -> None:
    assert plan_of(source / "sub", tmp_path / "a").stills
    assert not plan_of(source / "sub", tmp_path / "b", quick_recipe(stills="never")).stills
    assert plan_of(source, tmp_path / "c", quick_recipe(stills="always")).stills


def test_tasks_have_about_equal_length() -> None:
    files = [MediaFile(f"{i}.mp4", "video", 1, None, None, 64, 48, 250, 25.0, 1.0, "64x48") for i in range(10)]
    assert cut(files, 30.0) == [files[0:3], files[3:6], files[6:9], files[9:]]
    assert cut(files, 1.0) == [[file] for file in files]
    assert cut([], 1.0) == []


def test_names_that_are_not_text_can_be_used(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    make_video(source / "a.mp4", frames=20).rename(Path(os.fsdecode(os.fsencode(source) + b"/\xff.mp4")))
    make_video(source / "ok: yes?.mp4", frames=20)
    plan = plan_of(source, tmp_path / "out")
    files = files_of(plan, tmp_path / "out")
    assert [file.path for file in files] == ["ok: yes?.mp4", "\udcff.mp4"]
    for file in files:
        assert KEY.fullmatch(file_key(file))
        assert len(list(read_clips(source / file.path, [[0, 2]]))) == 1


def test_an_impossible_output_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        plan_of(source, tmp_path / "file")
    with pytest.raises(UserError, match="same folder"):
        plan_of(source, source)
