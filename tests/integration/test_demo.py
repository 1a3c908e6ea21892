"""`make demo` with a few steps per stage, from raw videos to edits and the page."""

import json
from collections.abc import Sequence
from pathlib import Path

import av
import pytest

from gen1_train.data.shards import ShardSet
from gen1_train.errors import INCOMPLETE
from gen1_train.training.checkpoints.checkpoint import find_checkpoint, latest
from miniature import demo
from miniature.page import DEMO, RELEASED, comparison_table, write_page
from miniature.workflow import Workflow
from miniature.world.world import World, write_world
from tests.made_checkpoint import write_checkpoint
from tests.running import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CLIPS = 4
IMAGES = 17


def run_command(module: str, arguments: Sequence[str]) -> int:
    """Runs a command of the demo; returns its exit code."""
    result = run(module, *arguments)
    assert result.returncode in (0, INCOMPLETE), result.stdout + result.stderr
    return result.returncode


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo on a user's folder: good clips, a damaged one, and a text file with the name of a video."""
    root = tmp_path_factory.mktemp("demo")
    source = root / "my videos"
    write_world(source, World(CLIPS, IMAGES, frames=40))
    whole = (source / "clip-0000.mp4").read_bytes()
    (source / "damaged.mp4").write_bytes(whole[: len(whole) // 3])
    (source / "not a video.mp4").write_text("hello")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "STEPS", {2: 3, 3: 3, 4: 3, 5: 3})
        patch.setattr(demo, "SAMPLING", ["steps=3"])
        patch.setattr(demo, "RELEASED_CHECKPOINT", str(write_checkpoint(root / "released")))
        demo.run(source, root / "demo", run_command)
        (metrics,) = (root / "demo").glob("my videos-*/runs/demo/stage5/metrics.csv")
        written = metrics.stat().st_mtime_ns
        demo.run(source, root / "demo", run_command)  # everything is reused
        assert metrics.stat().st_mtime_ns == written
    return root / "demo"


@pytest.fixture(scope="module")
def work(output: Path) -> Path:
    (folder,) = output.glob("my videos-*")
    return folder


def test_every_stage_is_finished_and_adds_its_layers(work):
    info = {n: latest(work / "runs" / "demo" / f"stage{n}") for n in range(1, 6)}
    assert all(c is not None and c.info.finished for c in info.values())
    keys = {n: c.weights() for n, c in info.items()}
    assert keys[1].keys() == keys[2].keys() < keys[3].keys() == keys[4].keys() == keys[5].keys()
    assert [keys[n]["conv_in.weight"].shape[1] for n in range(1, 6)] == [4, 4, 4, 12, 12]


def test_damaged_files_are_listed_as_failures(work):
    lines = [json.loads(line) for line in (work / "shards" / "failures.jsonl").read_text().splitlines()]
    assert {line["file"] for line in lines} == {"damaged.mp4", "not a video.mp4"}
    assert all(line["reason"] for line in lines)
    pools = ShardSet(work / "shards").manifest.pools
    assert pools["video-112x64"].samples == CLIPS and pools["image-112x64"].samples == IMAGES


def test_edits_are_videos_of_the_requested_length(work):
    names = [f"time-{omega_t}" for omega_t in ("0.0", "1.0", "1.5")]
    names += [f"{kind}-{t_s}" for kind in ("structure", "depth") for t_s in (0, 3, 7)]
    names += ["released-a", "released-b"]
    for name in names:
        with av.open(str(work / "edits" / f"{name}.mp4")) as container:
            stream = container.streams.video[0]
            assert (stream.width, stream.height, stream.pix_fmt) == (112, 64, "yuv420p"), name
            assert stream.average_rate == 6  # every fourth of 24 frames per second: the speed of the input
            assert sum(1 for _ in container.decode(video=0)) == 10  # every fourth of the 40 frames of the clip


def test_the_page_links_only_to_existing_files(output):
    text = (output / "index.html").read_text()
    links = [part.split('"')[0] for part in text.split('src="')[1:]]
    assert len(links) == 17
    assert all((output / link).is_file() for link in links)
    assert "prompted color" not in text  # a user's videos have no known truth
    assert "damaged.mp4" in text and "stage 5" in text


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the comparison of a model with itself. The second call reuses the results of the first."""
    root = tmp_path_factory.mktemp("comparison")
    model = find_checkpoint(write_checkpoint(root / "model"))
    models = {DEMO: model, RELEASED: model}
    workflow = Workflow(root, run=run_command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "RELEASED_CHECKPOINT", str(model.path))
        patch.setattr(demo, "PAIRS", 2)
        patch.setattr(demo, "COMPARING", ["steps=1"])
        folder = demo.compare(workflow, models, root)
        seconds = workflow.timings()
        assert demo.compare(workflow, models, root) == folder
        assert workflow.timings() == seconds  # no command was called
    return folder


def test_a_model_equals_itself_in_the_comparison(comparison: Path) -> None:
    head, mine, released = comparison_table(comparison)
    assert head[1:] == ["prompted color ↑", "mask IoU ↑", "depth correlation ↑", "frame consistency ↑"]
    assert [mine[0], released[0]] == ["the demo's model", "the released model"]
    assert mine[1:] == released[1:] and "—" not in mine


def test_the_page_shows_the_comparison(work: Path, comparison: Path, tmp_path: Path) -> None:
    page = write_page(tmp_path / "page.html", work, work / "in.mp4", {}, demo.training_of(4), comparison).read_text()
    assert all(f"<td>{cell}" in page for row in comparison_table(comparison)[1:] for cell in row)
    assert "Means over 2 edits" in page and f"{sum(demo.STEPS.values())} steps of 4 clips or 32 images" in page


def test_another_checkpoint_has_another_identity(tmp_path: Path) -> None:
    models = [find_checkpoint(write_checkpoint(tmp_path / str(seed), seed)) for seed in (0, 1)]
    assert len({demo.identity(model) for model in models}) == 2
    assert demo.identity(models[0]) == demo.identity(find_checkpoint(models[0].path))


def test_a_mistake_in_an_edit_ends_in_one_line_and_writes_no_file(work, tmp_path):
    checkpoint = f"checkpoint={work / 'runs' / 'demo' / 'stage5'}"
    image = f"image={work / 'edits' / 'content-a.png'}"
    videos = work.parent.parent / "my videos"
    video = f"input={videos / 'clip-0000.mp4'}"
    out = tmp_path / "out.mp4"
    cases = {
        "t_s=9 is out of range": [checkpoint, video, image, "t_s=9"],
        "cannot be decoded": [checkpoint, f"input={videos / 'not a video.mp4'}", image],
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
