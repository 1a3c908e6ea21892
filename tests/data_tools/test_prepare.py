"""From a folder of files to a frozen set, with the fitted estimators of the miniature."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor as Pool
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from data_tools import freeze, prepare, task, workers
from data_tools.estimate import load_estimators
from data_tools.examine import MediaFile
from data_tools.prepare import main, run
from data_tools.read import FileReader, Item
from data_tools.stats import Stats
from data_tools.task import TaskResult
from gen1_train import children
from gen1_train.batch import STRUCTURE_MAX, Sample
from gen1_train.data.index import read_index
from gen1_train.data.shards import Manifest, Shard, ShardSet
from gen1_train.errors import UserError
from gen1_train.exits import INCOMPLETE
from gen1_train.model.autoencoder import AutoencoderConfig
from tests.data_tools.source import config, make_source, quick_recipe, work_and_die
from tests.running import ENVIRONMENT, REPOSITORY
from tests.video.files import make_video, number_of
from tests.video.web import serve

FIELDS = ("frames", "structure", "moments", "structure_latent", "image_embedding", "meta")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("media") / "source")


@pytest.fixture(scope="module")
def prepared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("prepared") / "set"
    assert run(config(source, output)) == INCOMPLETE  # broken.mp4
    return output


def tar_hashes(output: Path) -> dict[str, str]:
    return {tar.name: hashlib.sha256(tar.read_bytes()).hexdigest() for tar in (output / "shards").iterdir()}


def failures(output: Path) -> dict[str, dict]:
    lines = (output / "failures.jsonl").read_text().splitlines()
    return {entry["file"]: entry for entry in map(json.loads, lines)}


def test_all_that_could_be_used_is_in_the_set(prepared: Path) -> None:
    shards = ShardSet(prepared)
    pools = {name: pool.samples for name, pool in shards.manifest.pools.items()}
    assert pools == {"video-64x48": 6, "image-64x48": 1}
    assert set(failures(prepared)) == {"broken.mp4", "short.mp4", "tiny.png"}
    written = ["failures.jsonl", "manifest.json", "plan.json", "plan.jsonl", "report.html", "shards", "stats.json"]
    assert sorted(os.listdir(prepared)) == written
    read = [shards.read("video-64x48", i, FIELDS) for i in range(6)]
    assert sorted((s.meta["source"], s.meta["first_frame"]) for s in read if s.meta) == [
        *(("a.mp4", first) for first in (0, 20, 40)),
        *(("sub/b.c.mkv", first) for first in (0, 16, 28)),
    ]
    for sample in read:  # of the right frames, seen through crop and JPEG
        assert sample.frames is not None and sample.meta is not None
        first = sample.meta["first_frame"]
        assert [number_of(frame) for frame in sample.frames] == [first, first + 2]
        assert sample.meta["seconds"] == pytest.approx([first / 25, (first + 2) / 25], abs=0.01)
        assert sample.meta["decoder"] == "pyav" and sample.meta["motion"] > 0.5
        assert sample.meta["structure"] == "depth" and "inverse depth" in sample.meta["normalise"]


def test_the_numbers_of_the_set_are_those_of_its_samples(prepared: Path) -> None:
    stats = Stats.load(prepared)
    assert dict(stats.samples) == {"video-64x48": 6, "image-64x48": 1}
    assert (stats.videos, stats.images, stats.captioned, dict(stats.decoders)) == (2, 1, 4, {"pyav": 6})
    assert stats.milliseconds == 4000  # 60 and 40 frames at 25 frames a second
    assert {kind: loss.count for kind, loss in stats.drops.items()} == {"too short": 1, "too small": 1}
    assert {kind: loss.count for kind, loss in stats.failures.items()} == {"unreadable": 1}
    total = 0
    for tar in (prepared / "shards").glob("*.tar"):
        total += sum(size for entry in read_index(tar) for _, size, _ in entry.members.values())
    assert sum(stats.bytes.values()) == total


def test_captions_reach_the_samples(prepared: Path) -> None:
    shards = ShardSet(prepared)
    entries = read_index(prepared / "shards" / "video-64x48-000000.tar")
    with_caption = [row for row, entry in enumerate(entries) if "caption.txt" in entry.members]
    assert len(with_caption) == 3
    sample = shards.read("video-64x48", with_caption[0], ("caption", "text_embedding"))
    assert sample.caption == "a noise that wanders"
    assert sample.text_embedding is not None and sample.text_embedding.shape == (64,)


def test_what_is_stored_equals_what_would_be_computed_from_it(prepared: Path) -> None:
    """Structure: exactly. Moments: of the frames before JPEG, so nearly."""
    estimators = load_estimators(quick_recipe(), "auto")
    torch.set_num_threads(1)
    sample = ShardSet(prepared).read("video-64x48", 0, FIELDS)
    assert sample.structure is not None and sample.frames is not None and sample.moments is not None
    assert sample.structure.min() == 0 and sample.structure.max() == STRUCTURE_MAX  # over the clip, not the frame
    np.testing.assert_array_equal(estimators.structure_latents(sample.structure), sample.structure_latent)
    moments = estimators.moments(sample.frames[None])[0]
    error = np.abs(moments[:, :4].astype(float) - sample.moments[:, :4]).mean()
    assert error < 0.1 * sample.moments[:, :4].astype(float).std()
    embeddings = estimators.image_embeddings(sample.frames[None])[0].astype(float)
    assert sample.image_embedding is not None
    stored = sample.image_embedding.astype(float)
    cosine = (embeddings * stored).sum(1) / np.linalg.norm(embeddings, axis=1) / np.linalg.norm(stored, axis=1)
    assert (cosine > 0.99).all()


def test_webdataset_reads_the_shards(prepared: Path) -> None:
    urls = sorted(str(tar) for tar in (prepared / "shards").glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert len(samples) == 7
    assert all(sample["frame00.jpg"].shape == (48, 64, 3) and "." not in sample["__key__"] for sample in samples)


def test_the_manifest_tells_what_made_the_set(prepared: Path) -> None:
    manifest = Manifest.load(prepared)
    assert manifest.plan == json.loads((prepared / "plan.json").read_text())["hash"]
    assert manifest.recipe["cut"]["stride"] == 2
    assert manifest.estimators["autoencoder"]["factor"] == 8
    assert manifest.estimators["clip"]["width"] == 64
    assert all(len(entry["fingerprint"]) == 64 for entry in manifest.estimators.values())
    assert {"decord", "av", "torch"} <= set(manifest.versions)


def test_a_frozen_set_is_left_alone(source: Path, prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (prepared / "manifest.json").stat().st_mtime_ns
    run(config(source, prepared))
    assert "already frozen" in capsys.readouterr().out
    assert (prepared / "manifest.json").stat().st_mtime_ns == before


def test_other_tasks_and_single_steps_give_the_same_bytes(source: Path, prepared: Path, tmp_path: Path) -> None:
    settings = {"task_seconds": 0.1}
    with pytest.raises(UserError, match=r"no plan.json in output=.* step=plan"):
        run(config(source, tmp_path, step="task", **settings))
    assert run(config(source, tmp_path, step="plan", **settings)) == 0
    with pytest.raises(UserError, match="3 of 3 tasks are not done"):
        run(config(source, tmp_path, step="freeze", **settings))
    run(config(source, tmp_path, step="task", task=2, **settings))
    run(config(source, tmp_path, step="task", task=0, of=2, **settings))
    with pytest.raises(UserError, match=r"1 of 3 tasks are not done \(the first is task 1\)"):
        run(config(source, tmp_path, step="freeze", **settings))
    run(config(source, tmp_path, step="task", **settings))
    assert run(config(source, tmp_path, step="freeze", **settings)) == INCOMPLETE
    assert tar_hashes(tmp_path) == tar_hashes(prepared)


def test_what_is_missing_is_told_as_job_arrays_take_it(
    source: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing else goes to stdout; a finished share is not named, and a frozen set lacks nothing."""

    def told(output: Path = tmp_path, **more: object) -> str:
        capsys.readouterr()
        assert run(config(source, output, step="missing", **more)) == 0
        return capsys.readouterr().out.strip()

    settings = {"task_seconds": 0.1}
    with pytest.raises(UserError, match=r"no plan.json in output="):
        told(**settings)
    run(config(source, tmp_path, step="plan", **settings))
    assert [told(**settings, of=of) for of in (None, 1, 2, 16)] == ["0-2", "0", "0-1", "0-2"]
    run(config(source, tmp_path, step="task", task=1, **settings))
    assert [told(**settings, of=of) for of in (None, 1, 2, 16)] == ["0,2", "0", "0", "0,2"]
    run(config(source, tmp_path, step="task", task=0, of=2, **settings))
    assert told(**settings, of=2) == "freeze"
    assert told(prepared, of=2) == ""


def test_numbers_are_told_by_their_runs() -> None:
    assert list(prepare.runs([0, 1, 2, 5, 7, 8])) == ["0-2", "5", "7-8"]
    assert not list(prepare.runs([]))


def test_a_finished_task_costs_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config(source, tmp_path, step="plan"))
    run(config(source, tmp_path, step="task", task=0))
    monkeypatch.setattr(workers, "load_estimators", lambda *_: pytest.fail("it was done already"))
    run(config(source, tmp_path, step="task", task=0))


@pytest.mark.slow
def test_a_killed_worker_leaves_what_is_finished(
    source: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool breaks, with one line; the other task is kept, and the next run ends at the same bytes."""
    settings = config(source, tmp_path, task_seconds=0.1, workers=2)
    monkeypatch.setattr(workers, "work_there", work_and_die)
    monkeypatch.setattr(children, "ProcessPoolExecutor", lambda _, *rest, **named: Pool(1, *rest, **named))
    with pytest.raises(UserError, match="a worker process was killed"):
        run(settings)
    assert sorted(os.listdir(tmp_path / ".staging"))[-1] == "task-00000"
    assert not (tmp_path / "manifest.json").exists()
    run(config(source, tmp_path, task_seconds=0.1))
    assert tar_hashes(tmp_path) == tar_hashes(prepared)
    assert not (tmp_path / ".staging").exists()


@pytest.mark.parametrize("kept", ["the finished shard", "nothing"])
def test_a_killed_freeze_goes_on(
    source: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    """A shard with its index is kept if it was made of the same samples; half a shard, or a foreign one, never."""
    run(config(source, tmp_path, step="plan"))
    run(config(source, tmp_path, step="task"))
    shards = tmp_path / "shards"
    write = freeze.write_shard

    def dies(work: freeze.Work, output: Path) -> Shard:
        if work.pool.startswith("video"):
            (shards / "video-64x48-000000.tar").write_bytes(b"half a tar")
            raise KeyboardInterrupt
        return write(work, output)

    monkeypatch.setattr(freeze, "write_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        run(config(source, tmp_path, step="freeze"))
    monkeypatch.setattr(freeze, "write_shard", write)
    if kept == "nothing":
        (tmp_path / ".staging" / "freezing").write_text("of other samples")
    before = (shards / "image-64x48-000000.tar").stat().st_mtime_ns
    run(config(source, tmp_path, step="freeze"))
    assert tar_hashes(tmp_path) == tar_hashes(prepared)
    assert ((shards / "image-64x48-000000.tar").stat().st_mtime_ns == before) == (kept == "the finished shard")


def test_two_workers_at_one_task_do_no_harm(
    source: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one to finish finds the task done, and takes what is there."""
    run(config(source, tmp_path, step="plan"))
    name, others = task.give_name, []

    def late(building: Path, folder: Path, plan: str) -> TaskResult | None:
        if not others:  # meanwhile another process does all of it
            others.append(folder.name)
            script = (
                "import sys; from data_tools.prepare import run; from tests.data_tools.source import config; "
                "run(config(sys.argv[1], sys.argv[2], step='task'))"
            )
            command = [sys.executable, "-c", script, str(source), str(tmp_path)]
            subprocess.run(command, cwd=REPOSITORY, env=ENVIRONMENT, check=True, capture_output=True)
            done = folder / "done.json"
            before = done.stat().st_mtime_ns
            result = name(building, folder, plan)
            assert result is not None and done.stat().st_mtime_ns == before
            return result
        return name(building, folder, plan)

    monkeypatch.setattr(task, "give_name", late)
    run(config(source, tmp_path, step="task"))
    monkeypatch.undo()
    assert others == ["task-00000"]
    run(config(source, tmp_path, step="freeze"))
    assert tar_hashes(tmp_path) == tar_hashes(prepared)


def test_what_a_freeze_left_at_its_very_end_is_removed(source: Path, tmp_path: Path) -> None:
    run(config(source, tmp_path))
    (tmp_path / ".staging").mkdir()
    run(config(source, tmp_path))
    assert not (tmp_path / ".staging").exists()


def test_videos_alone_give_images_too(source: Path, tmp_path: Path) -> None:
    run(config(source / "sub", tmp_path))
    shards = ShardSet(tmp_path)
    assert {name: pool.samples for name, pool in shards.manifest.pools.items()} == {"video-64x48": 3, "image-64x48": 3}
    sample = shards.read("image-64x48", 0, FIELDS)
    assert sample.frames is not None and sample.meta is not None
    assert [number_of(sample.frames[0])] == [sample.meta["first_frame"]]


def by_place(root: Path) -> dict[tuple[str, int], Sample]:
    """The clips of a set by the file's name and the first frame."""
    shards = ShardSet(root)
    samples = []
    for index in range(6):
        captioned = "caption.txt" in shards.entry(*shards.locate("video-64x48", index)).members
        fields = ("frames", "meta", *(("caption",) if captioned else ()))
        samples.append(shards.read("video-64x48", index, fields))
    return {(s.meta["source"].rpartition("/")[2], s.meta["first_frame"]): s for s in samples if s.meta}


def test_a_list_of_files_here_and_on_a_server(source: Path, prepared: Path, tmp_path: Path) -> None:
    """The samples are those of the folder, under the list's ids and captions."""
    with serve(source) as web:
        rows = [f"{source}/a.mp4,first,a ball", f"{web.url}/sub/b.c.mkv,,", f"{web.url}/photo.png,p 1,"]
        (tmp_path / "list.csv").write_text("\n".join(["path,id,caption", *rows]) + "\n")
        assert run(config(tmp_path / "list.csv", tmp_path / "set")) == 0
    found, same = by_place(tmp_path / "set"), by_place(prepared)
    assert found.keys() == same.keys()
    for place, sample in found.items():
        np.testing.assert_array_equal(sample.frames, same[place].frames)
        ours = place[0] == "a.mp4"
        assert sample.key.startswith("first-0000" if ours else "http-") and (sample.caption == "a ball") == ours
    image = ShardSet(tmp_path / "set").read("image-64x48", 0, ("meta",))
    assert image.key.startswith("p-1-")


def test_a_video_that_breaks_keeps_its_whole_clips(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    path = make_video(source / "broken.mp4", frames=120)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    run(config(source, tmp_path / "out", clips_per_video=None, stills="never"))
    made = ShardSet(tmp_path / "out").manifest.pools["video-64x48"].samples
    (failure,) = failures(tmp_path / "out").values()
    assert 0 < made < 30 and failure["clips"] == made and not failure["transient"]


@pytest.mark.parametrize("again", ["task", "plan"])
def test_what_may_pass_is_done_again_on_request_and_nothing_else(tmp_path: Path, source: Path, again: str) -> None:
    """A file that is lost for a while: the set is frozen without it, and `retry=transient` brings it in."""
    copy = shutil.copytree(source, tmp_path / "source")
    output, settings = tmp_path / "out", {"task_seconds": 0.1}
    run(config(copy, output, step="plan", **settings))
    hidden = (copy / "a.mp4").rename(tmp_path / "a.mp4")
    run(config(copy, output, step="task", **settings))
    assert run(config(copy, output, step="freeze", **settings)) == INCOMPLETE
    lost = failures(output)["a.mp4"]
    assert lost["transient"] and lost["failed"] and lost["category"] == "not read this time"
    assert ShardSet(output).manifest.pools["video-64x48"].samples == 3
    others = [output / ".staging" / f"task-0000{number}" / "done.json" for number in (1, 2)]
    before = [path.stat().st_mtime_ns for path in others]
    hidden.rename(copy / "a.mp4")
    run(config(copy, output, step=again, retry="transient", **settings))
    assert not (output / "manifest.json").exists()  # what is no longer whole is no set
    run(config(copy, output, step="task", **settings))
    assert [path.stat().st_mtime_ns for path in others] == before
    run(config(copy, output, step="freeze", **settings))
    run(config(source, tmp_path / "straight", **settings))
    assert tar_hashes(output) == tar_hashes(tmp_path / "straight")
    assert not (output / ".staging").exists()
    assert "a.mp4" not in failures(output)


def test_a_file_that_changed_since_the_plan_is_not_used(source: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(source, tmp_path / "source")
    run(config(copy, tmp_path / "out", step="plan"))
    make_video(copy / "sub" / "b.c.mkv", frames=30)
    run(config(copy, tmp_path / "out", step="task"))
    run(config(copy, tmp_path / "out", step="freeze"))
    lost = failures(tmp_path / "out")["sub/b.c.mkv"]
    assert lost["transient"] and "bytes and should have" in lost["reason"] and "changed" in lost["reason"]


def test_a_source_that_vanishes_in_the_middle_stops_the_run(
    source: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one failure after the other until a set without the rest is frozen. What is finished is kept."""
    copy, output = shutil.copytree(source, tmp_path / "source"), tmp_path / "out"
    files = FileReader.read

    def vanishing(reader: FileReader, file: MediaFile) -> Iterator[Item]:
        if file.path == "photo.png" and copy.exists():
            shutil.rmtree(copy)
        yield from files(reader, file)

    monkeypatch.setattr(FileReader, "read", vanishing)
    with pytest.raises(UserError, match=r"source=.*source is gone"):
        run(config(copy, output, task_seconds=0.1))
    assert os.listdir(output / ".staging") == ["task-00000"]
    monkeypatch.undo()
    shutil.copytree(source, copy)
    run(config(copy, output, task_seconds=0.1))
    assert tar_hashes(output) == tar_hashes(prepared)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": "bake"}, "step=bake"),
        ({"workers": 0}, "workers=0"),
        ({"step": "report"}, "not frozen yet"),
        ({"of": 2}, "needs task=K"),
        ({"step": "task", "task": 2, "of": 2}, "K in 0..1"),
        ({"retry": "all"}, "retry=all"),
        ({"of": 2, "step": "missing", "task": 0}, "goes with step=task"),
        ({"retry": "transient", "step": "freeze"}, "retry=transient goes with"),
        ({"task": 1}, "goes with step=task"),
        ({"step": "task", "task": 99}, "task=99 is not in 0..1"),
        ({"frames": 0}, "recipe.cut.frames=0"),
        ({"device": "abacus"}, "device=abacus"),
        ({"video_buckets": ["60x44"]}, "multiples of 8"),
    ],
)
def test_mistakes_are_named(source: Path, tmp_path: Path, changes: dict, message: str) -> None:
    run(config(source, tmp_path / "out", step="plan"))
    with pytest.raises(UserError, match=message):
        run(config(source, tmp_path / "out", **changes))


@pytest.mark.parametrize("choice", [{"workers": 1}, {"workers": 2}, {"step": "plan"}])
def test_a_network_that_is_not_there_is_told_before_the_source_is_walked(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: dict
) -> None:
    monkeypatch.setattr(prepare, "make_plan", lambda *_: pytest.fail("planning may take hours"))
    with pytest.raises(UserError, match=r"autoencoder '\./nowhere' cannot be loaded"):
        run(config(source, tmp_path / "out", autoencoder=AutoencoderConfig("./nowhere"), **choice))
    with pytest.raises(UserError, match="precision=fp8"):
        run(config(source, tmp_path / "out", precision="fp8", **choice))
    assert not (tmp_path / "out").exists()


def test_a_source_without_a_usable_file_says_why(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "source" / name).write_text("no video")
    with pytest.raises(UserError, match=r"of 2 losses 2 are: unreadable \(for example a.mp4: "):
        run(config(tmp_path / "source", tmp_path / "out"))
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.slow
def test_two_workers_make_the_same_set(source: Path, prepared: Path, tmp_path: Path) -> None:
    run(config(source, tmp_path, task_seconds=0.1, workers=2))
    assert tar_hashes(tmp_path) == tar_hashes(prepared)


def test_several_readers_make_the_same_set(source: Path, prepared: Path, tmp_path: Path) -> None:
    """What they read comes in the order of the files, whoever is first."""
    run(config(source, tmp_path, task_seconds=100.0, readers=3))
    assert tar_hashes(tmp_path) == tar_hashes(prepared)


def test_the_command_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gen1-data", "source=nowhere", f"output={tmp_path}", "recipe=tiny"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gen1-data: error: source=nowhere is not there: name a folder, a list file (.csv")
