"""The whole road, as `make demo` calls it, with a few steps a stage: raw videos in, an edited video and a page out."""

import json
import shutil
from pathlib import Path

import av
import pytest

from gen1_train.data.shards import ShardSet
from gen1_train.training.checkpoint import find_checkpoint, latest
from miniature import demo
from miniature.page import DEMO, RELEASED, compared, write_page
from miniature.road import Road
from miniature.world import World, write_world
from tests.made_checkpoint import write_checkpoint
from tests.running import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo on a user's folder: some good clips, a broken one, a text file that says it is a video."""
    root = tmp_path_factory.mktemp("road")
    source = root / "my videos"
    write_world(source, World(clips=6, images=17, frames=40))
    whole = (source / "clip-0000.mp4").read_bytes()
    (source / "broken.mp4").write_bytes(whole[: len(whole) // 3])
    (source / "not a video.mp4").write_text("hello")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "STEPS", {2: 3, 3: 3, 4: 3, 5: 3})
        patch.setattr(demo, "SAMPLING", ["steps=3"])
        patch.setattr(demo, "CARRIED", str(write_checkpoint(root / "released")))
        demo.run(source, root / "demo")
        shutil.copy(root / "demo" / "index.html", root / "first.html")
        began = (root / "demo").glob("my videos-*/runs/demo/stage5/metrics.csv")
        stamps = [path.stat().st_mtime_ns for path in began]
        demo.run(source, root / "demo")  # everything is reused
        assert [
            p.stat().st_mtime_ns for p in (root / "demo").glob("my videos-*/runs/demo/stage5/metrics.csv")
        ] == stamps
    return root / "demo"


@pytest.fixture(scope="module")
def work(output: Path) -> Path:
    (folder,) = output.glob("my videos-*")
    return folder


def test_every_stage_is_finished_and_grows_as_it_should(work):
    info = {n: latest(work / "runs" / "demo" / f"stage{n}") for n in range(1, 6)}
    assert all(c is not None and c.info.finished for c in info.values())
    keys = {n: c.weights() for n, c in info.items()}
    assert keys[1].keys() == keys[2].keys() < keys[3].keys() == keys[4].keys() == keys[5].keys()
    assert [keys[n]["conv_in.weight"].shape[1] for n in range(1, 6)] == [4, 4, 4, 12, 12]


def test_broken_files_are_accounted_for(work):
    lines = [json.loads(line) for line in (work / "shards" / "failures.jsonl").read_text().splitlines()]
    assert {line["file"] for line in lines} == {"broken.mp4", "not a video.mp4"}
    assert all(line["reason"] for line in lines)
    pools = ShardSet(work / "shards").manifest.pools
    assert pools["video-112x64"].samples == 6 and pools["image-112x64"].samples == 17


def test_edits_are_videos_of_the_asked_length(work):
    names = [
        *(f"time-{v}" for v in ("0.0", "1.0", "1.5")),
        *(f"{k}-{v}" for k in ("structure", "depth") for v in (0, 3, 7)),
        *("released-a", "released-b"),
    ]
    for name in names:
        with av.open(str(work / "edits" / f"{name}.mp4")) as container:
            stream = container.streams.video[0]
            assert (stream.width, stream.height, stream.pix_fmt) == (112, 64, "yuv420p"), name
            assert stream.average_rate == 6  # 24 frames a second, every fourth: the pace of the input
            assert sum(1 for _ in container.decode(video=0)) == 10  # a clip of 40 frames holds that many


def test_the_page_names_only_files_that_are_there(output):
    text = (output / "index.html").read_text()
    links = [part.split('"')[0] for part in text.split('src="')[1:]]
    assert len(links) == 17
    assert all((output / link).is_file() for link in links)
    assert "prompted colour" not in text  # of a user's videos nothing is known to compare with
    assert "broken.mp4" in text and "stage 5" in text


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison of a model with itself, made once and asked for twice."""
    root = tmp_path_factory.mktemp("comparison")
    model = find_checkpoint(write_checkpoint(root / "model"))
    models, road = {DEMO: model, RELEASED: model}, Road(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "CARRIED", str(model.path))
        patch.setattr(demo, "PAIRS", 2)
        patch.setattr(demo, "COMPARING", ["steps=1"])
        place = demo.compare(road, models, root)
        seconds = road.timings()
        assert demo.compare(road, models, root) == place
        assert road.timings() == seconds  # no command was called
    return place


def test_a_model_compares_with_itself_as_equal(numbers: Path) -> None:
    head, mine, released = compared(numbers)
    assert head[1:] == ["prompted colour ↑", "mask IoU ↑", "depth correlation ↑", "frame consistency ↑"]
    assert [mine[0], released[0]] == ["the demo's model", "the released model"]
    # colours and masks are read off encoded videos, of which x264 makes now and then another one, and
    # GrabCut on a random model's noise follows every level
    assert mine[3:] == released[3:] and mine[1] == released[1] and "—" not in mine


def test_the_page_tells_how_the_models_compare(work: Path, numbers: Path, tmp_path: Path) -> None:
    page = write_page(tmp_path / "page.html", work, work / "in.mp4", {}, demo.training_of(4), numbers).read_text()
    assert all(f"<td>{cell}" in page for row in compared(numbers)[1:] for cell in row)
    assert "Means over 2 edits" in page and f"{sum(demo.STEPS.values())} steps of 4 clips or 32 images" in page


def test_another_checkpoint_is_compared_anew(tmp_path: Path) -> None:
    models = [find_checkpoint(write_checkpoint(tmp_path / str(seed), seed)) for seed in (0, 1)]
    assert len({demo.identity(model) for model in models}) == 2
    assert demo.identity(models[0]) == demo.identity(find_checkpoint(models[0].path))


def test_bad_edits_end_with_one_line_and_no_file(work, tmp_path):
    checkpoint = f"checkpoint={work / 'runs' / 'demo' / 'stage5'}"
    image, video = (
        f"image={work / 'edits' / 'content-a.png'}",
        f"input={work.parent.parent / 'my videos' / 'clip-0000.mp4'}",
    )
    out = tmp_path / "out.mp4"
    cases = {
        "t_s=9 is out of range": [checkpoint, video, image, "t_s=9"],
        "cannot be decoded": [checkpoint, f"input={work.parent.parent / 'my videos' / 'not a video.mp4'}", image],
        "is of stage 3": [f"checkpoint={work / 'runs' / 'demo' / 'stage3'}", video, image],
        "add prompt=TEXT or image=FILE": [checkpoint, video],
    }
    for message, arguments in cases.items():
        done = run("gen1_train.edit", *arguments, f"output={out}")
        assert done.returncode == 2, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if "gen1-edit: error:" in line]
        assert message in line
        assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
