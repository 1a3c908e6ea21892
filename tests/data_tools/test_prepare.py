"""Makes a frozen set from a folder of files, with the fitted estimators of the miniature."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor as Pool
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from data_tools import freeze, prepare, task, workers
from data_tools.clips.read import FileReader, Item
from data_tools.estimate import load_estimators
from data_tools.prepare import main, run
from data_tools.source.examine import MediaFile
from data_tools.stats import Stats
from data_tools.task import TaskResult
from gen1_train.batch import STRUCTURE_MAX, Sample, latent_field
from gen1_train.data.index import read_index
from gen1_train.data.manifest import Manifest, Shard
from gen1_train.data.shards import ShardSet
from gen1_train.diffusion.structure import MAX_LEVEL
from gen1_train.errors import INCOMPLETE, UserError
from gen1_train.frozen.autoencoder import AutoencoderConfig
from gen1_train.frozen.levels import stored_level
from gen1_train.system import processes
from gen1_train.system.console import console
from tests.data_tools.small_source import config, do_task_and_die, make_source, quick_recipe
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


@pytest.fixture(scope="module")
def planned(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder after step=plan, to be copied."""
    output = tmp_path_factory.mktemp("planned") / "set"
    assert run(config(source, output, step="plan")) == 0
    return output


@pytest.fixture(scope="module")
def three_tasks(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder after step=plan with a task for each file, to be copied."""
    output = tmp_path_factory.mktemp("three-tasks") / "set"
    assert run(config(source, output, step="plan", task_seconds=0.1)) == 0
    return output


@pytest.fixture(scope="module")
def staged(source: Path, planned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder after step=task, to be copied."""
    output = shutil.copytree(planned, tmp_path_factory.mktemp("staged") / "set")
    assert run(config(source, output, step="task")) == 0
    return output


def tar_hashes(output: Path) -> dict[str, str]:
    return {tar.name: hashlib.sha256(tar.read_bytes()).hexdigest() for tar in (output / "shards").iterdir()}


def failures(output: Path) -> dict[str, dict]:
    lines = (output / "failures.jsonl").read_text().splitlines()
    return {entry["file"]: entry for entry in map(json.loads, lines)}


def test_every_usable_file_is_in_the_set(prepared: Path) -> None:
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
    for sample in read:  # the right frames, after crop and JPEG
        assert sample.frames is not None and sample.meta is not None
        first = sample.meta["first_frame"]
        assert [number_of(frame) for frame in sample.frames] == [first, first + 2]
        assert sample.meta["seconds"] == pytest.approx([first / 25, (first + 2) / 25], abs=0.01)
        assert sample.meta["decoder"] == "pyav" and sample.meta["motion"] > 0.5
        assert sample.meta["structure"] == "depth" and "inverse depth" in sample.meta["normalise"]


def test_the_statistics_are_those_of_the_samples(prepared: Path) -> None:
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


def test_stored_layers_equal_those_computed_from_the_stored_frames(prepared: Path) -> None:
    """The structure latents are equal; the moments, made of the frames before JPEG, nearly."""
    estimators = load_estimators(quick_recipe(), "auto")
    torch.set_num_threads(1)
    sample = ShardSet(prepared).read("video-64x48", 0, FIELDS)
    assert sample.structure is not None and sample.frames is not None and sample.moments is not None
    assert sample.structure.min() == 0 and sample.structure.max() == STRUCTURE_MAX  # over the clip, not the frame
    np.testing.assert_array_equal(estimators.structure_latents(sample.structure), sample.structure_latent)
    assert stored_level(ShardSet(prepared).manifest.estimators["autoencoder"]) == MAX_LEVEL
    for level in range(1, MAX_LEVEL + 1):
        read = ShardSet(prepared).read("video-64x48", 0, (latent_field(level),)).degraded_latents
        np.testing.assert_array_equal(estimators.structure_latents(sample.structure, level), read[level])
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


def test_the_manifest_names_what_made_the_set(prepared: Path) -> None:
    manifest = Manifest.load(prepared)
    assert manifest.plan == json.loads((prepared / "plan.json").read_text())["hash"]
    assert manifest.recipe["cut"]["stride"] == 2
    assert manifest.estimators["autoencoder"]["factor"] == 8
    assert manifest.estimators["clip"]["width"] == 64
    assert all(len(entry["fingerprint"]) == 64 for entry in manifest.estimators.values())
    assert {"decord", "av", "torch"} <= set(manifest.versions)


def test_a_frozen_set_is_not_changed(source: Path, prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (prepared / "manifest.json").stat().st_mtime_ns
    with console("gen1-data"):
        run(config(source, prepared))
    assert capsys.readouterr().out.startswith("gen1-data: already frozen: ")
    assert (prepared / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.slow
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


@pytest.mark.slow
def test_missing_tasks_are_printed_as_job_arrays_take_them(
    source: Path, prepared: Path, three_tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing else is printed to stdout; finished shares are not named, and a frozen set lacks nothing."""

    def missing(output: Path = tmp_path, **more: object) -> str:
        capsys.readouterr()
        with console("gen1-data"):
            assert run(config(source, output, step="missing", **more)) == 0
        return capsys.readouterr().out.strip()

    settings = {"task_seconds": 0.1}
    with pytest.raises(UserError, match=r"no plan.json in output="):
        missing(**settings)
    shutil.copytree(three_tasks, tmp_path, dirs_exist_ok=True)
    assert [missing(**settings, of=of) for of in (None, 1, 2, 16)] == ["0-2", "0", "0-1", "0-2"]
    run(config(source, tmp_path, step="task", task=1, **settings))
    assert [missing(**settings, of=of) for of in (None, 1, 2, 16)] == ["0,2", "0", "0", "0,2"]
    run(config(source, tmp_path, step="task", task=0, of=2, **settings))
    assert missing(**settings, of=2) == "freeze"
    assert missing(prepared, of=2) == ""


def test_numbers_are_printed_as_ranges() -> None:
    assert list(prepare.ranges([0, 1, 2, 5, 7, 8])) == ["0-2", "5", "7-8"]
    assert not list(prepare.ranges([]))


def test_a_finished_task_costs_nothing(
    source: Path, staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(staged, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(workers, "load_estimators", lambda *_: pytest.fail("the task is already done"))
    run(config(source, tmp_path, step="task", task=0))


@pytest.mark.slow
def test_a_killed_worker_keeps_finished_tasks(
    source: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool breaks with one line; the other task is kept, and the next run ends with the same bytes."""
    settings = config(source, tmp_path, task_seconds=0.1, workers=2)
    monkeypatch.setattr(workers, "do_task_in_worker", do_task_and_die)
    monkeypatch.setattr(processes, "ProcessPoolExecutor", lambda _, *rest, **named: Pool(1, *rest, **named))
    with pytest.raises(UserError, match="a worker process was killed"):
        run(settings)
    assert sorted(os.listdir(tmp_path / ".staging"))[-1] == "task-00000"
    assert not (tmp_path / "manifest.json").exists()
    run(config(source, tmp_path, task_seconds=0.1))
    assert tar_hashes(tmp_path) == tar_hashes(prepared)
    assert not (tmp_path / ".staging").exists()


@pytest.mark.parametrize("kept", ["the finished shard", "nothing"])
def test_a_killed_freeze_resumes(
    source: Path, prepared: Path, staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    """A shard with its index is kept if it was made of the same samples; a partial or foreign shard never is."""
    shutil.copytree(staged, tmp_path, dirs_exist_ok=True)
    shards = tmp_path / "shards"
    write = freeze.write_shard

    def write_and_die(job: freeze.ShardJob, output: Path) -> Shard:
        if job.pool.startswith("video"):
            (shards / "video-64x48-000000.tar").write_bytes(b"half a tar")
            (shards / ".video-64x48-000000.tar.1234.tmp").write_bytes(b"half a tar")
            raise KeyboardInterrupt
        return write(job, output)

    monkeypatch.setattr(freeze, "write_shard", write_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(config(source, tmp_path, step="freeze"))
    monkeypatch.setattr(freeze, "write_shard", write)
    if kept == "nothing":
        (tmp_path / ".staging" / "freezing").write_text("of other samples")
    before = (shards / "image-64x48-000000.tar").stat().st_mtime_ns
    run(config(source, tmp_path, step="freeze"))
    assert tar_hashes(tmp_path) == tar_hashes(prepared)
    assert sorted(os.listdir(shards)) == sorted(os.listdir(prepared / "shards"))
    assert ((shards / "image-64x48-000000.tar").stat().st_mtime_ns == before) == (kept == "the finished shard")


@pytest.mark.slow
def test_two_processes_may_do_the_same_task(
    source: Path, prepared: Path, planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second to finish discards its result and returns that of the first."""
    shutil.copytree(planned, tmp_path, dirs_exist_ok=True)
    publish = task.publish
    others = []

    def publish_late(building: Path, folder: Path, plan: str) -> TaskResult | None:
        if not others:  # meanwhile another process does the whole task
            others.append(folder.name)
            process = processes.spawn_context().Process(target=run, args=(config(source, tmp_path, step="task"),))
            process.start()
            process.join()
            assert process.exitcode == 0
            done = folder / "done.json"
            before = done.stat().st_mtime_ns
            result = publish(building, folder, plan)
            assert result is not None and done.stat().st_mtime_ns == before
            return result
        return publish(building, folder, plan)

    monkeypatch.setattr(task, "publish", publish_late)
    run(config(source, tmp_path, step="task"))
    monkeypatch.undo()
    assert others == ["task-00000"]
    run(config(source, tmp_path, step="freeze"))
    assert tar_hashes(tmp_path) == tar_hashes(prepared)


def test_staging_left_by_a_killed_freeze_is_removed(source: Path, prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    (tmp_path / ".staging").mkdir()
    run(config(source, tmp_path))
    assert not (tmp_path / ".staging").exists()


def test_videos_alone_give_image_samples(source: Path, tmp_path: Path) -> None:
    run(config(source / "sub", tmp_path))
    shards = ShardSet(tmp_path)
    assert {name: pool.samples for name, pool in shards.manifest.pools.items()} == {"video-64x48": 3, "image-64x48": 3}
    sample = shards.read("image-64x48", 0, FIELDS)
    assert sample.frames is not None and sample.meta is not None
    assert [number_of(sample.frames[0])] == [sample.meta["first_frame"]]


def by_position(root: Path) -> dict[tuple[str, int], Sample]:
    """Returns the clips of a set by file name and first frame."""
    shards = ShardSet(root)
    samples = []
    for index in range(6):
        captioned = "caption.txt" in shards.entry(*shards.locate("video-64x48", index)).members
        fields = ("frames", "meta", *(("caption",) if captioned else ()))
        samples.append(shards.read("video-64x48", index, fields))
    return {(s.meta["source"].rpartition("/")[2], s.meta["first_frame"]): s for s in samples if s.meta}


@pytest.mark.slow
def test_a_list_of_local_and_remote_files(source: Path, prepared: Path, tmp_path: Path) -> None:
    """The samples are those of the folder, with the list's ids and captions."""
    with serve(source) as web:
        rows = [f"{source}/a.mp4,first,a ball", f"{web.url}/sub/b.c.mkv,,", f"{web.url}/photo.png,p 1,"]
        (tmp_path / "list.csv").write_text("\n".join(["path,id,caption", *rows]) + "\n")
        assert run(config(tmp_path / "list.csv", tmp_path / "set")) == 0
    listed, expected = by_position(tmp_path / "set"), by_position(prepared)
    assert listed.keys() == expected.keys()
    for position, sample in listed.items():
        np.testing.assert_array_equal(sample.frames, expected[position].frames)
        has_id = position[0] == "a.mp4"
        assert sample.key.startswith("first-0000" if has_id else "http-")
        assert (sample.caption == "a ball") == has_id
    image = ShardSet(tmp_path / "set").read("image-64x48", 0, ("meta",))
    assert image.key.startswith("p-1-")


def test_a_truncated_video_keeps_its_whole_clips(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    path = make_video(source / "broken.mp4", frames=120)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    run(config(source, tmp_path / "out", clips_per_video=None, stills="never"))
    made = ShardSet(tmp_path / "out").manifest.pools["video-64x48"].samples
    (failure,) = failures(tmp_path / "out").values()
    assert 0 < made < 30 and failure["clips"] == made and not failure["transient"]


@pytest.mark.slow
@pytest.mark.parametrize("again", ["task", "plan"])
def test_retry_repeats_only_tasks_with_transient_failures(
    source: Path, prepared: Path, three_tasks: Path, tmp_path: Path, again: str
) -> None:
    """A file is lost for a while: the set is frozen without it, and `retry=transient` adds it."""
    copy = shutil.copytree(source, tmp_path / "source")
    settings = {"task_seconds": 0.1}
    output = shutil.copytree(three_tasks, tmp_path / "out")
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
    assert not (output / "manifest.json").exists()  # an incomplete folder is not a set
    run(config(copy, output, step="task", **settings))
    assert [path.stat().st_mtime_ns for path in others] == before
    run(config(copy, output, step="freeze", **settings))
    assert tar_hashes(output) == tar_hashes(prepared)
    assert not (output / ".staging").exists()
    assert "a.mp4" not in failures(output)


def test_a_file_that_changed_since_the_plan_is_not_used(source: Path, planned: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(source, tmp_path / "source")
    shutil.copytree(planned, tmp_path / "out")
    make_video(copy / "sub" / "b.c.mkv", frames=30)
    run(config(copy, tmp_path / "out", step="task"))
    run(config(copy, tmp_path / "out", step="freeze"))
    lost = failures(tmp_path / "out")["sub/b.c.mkv"]
    assert lost["transient"] and "bytes and should have" in lost["reason"] and "changed" in lost["reason"]


@pytest.mark.slow
def test_a_source_that_disappears_stops_the_run(
    source: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run does not count every file as a failure and freeze the rest. Finished tasks are kept."""
    copy = shutil.copytree(source, tmp_path / "source")
    output = tmp_path / "out"
    files = FileReader.read

    def disappear(reader: FileReader, file: MediaFile) -> Iterator[Item]:
        if file.path == "photo.png" and copy.exists():
            shutil.rmtree(copy)
        yield from files(reader, file)

    monkeypatch.setattr(FileReader, "read", disappear)
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
        ({"of": 2, "step": "missing", "task": 0}, "needs step=task"),
        ({"retry": "transient", "step": "freeze"}, "retry=transient needs step="),
        ({"task": 1}, "task=1 needs step=task"),
        ({"step": "task", "task": 99}, "task=99 is not in 0..1"),
        ({"frames": 0}, "recipe.cut.frames=0"),
        ({"device": "abacus"}, "device=abacus"),
        ({"video_buckets": ["60x44"]}, "multiples of 8"),
    ],
)
def test_mistakes_are_errors_with_one_line(
    source: Path, planned: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    shutil.copytree(planned, tmp_path / "out")
    with pytest.raises(UserError, match=message):
        run(config(source, tmp_path / "out", **changes))


@pytest.mark.parametrize("choice", [{"workers": 1}, {"workers": 2}, {"step": "plan"}])
def test_a_missing_network_is_reported_before_the_source_is_listed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: dict
) -> None:
    monkeypatch.setattr(prepare, "make_plan", lambda *_: pytest.fail("planning may take hours"))
    with pytest.raises(UserError, match=r"autoencoder '\./nowhere' cannot be loaded"):
        run(config(source, tmp_path / "out", autoencoder=AutoencoderConfig("./nowhere"), **choice))
    with pytest.raises(UserError, match="precision=fp8"):
        run(config(source, tmp_path / "out", precision="fp8", **choice))
    assert not (tmp_path / "out").exists()


def test_a_source_without_a_usable_file_is_an_error_with_a_reason(tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_several_readers_make_the_same_set(source: Path, prepared: Path, tmp_path: Path) -> None:
    """Their items come in the order of the files, whichever reader is first."""
    run(config(source, tmp_path, task_seconds=100.0, readers=3))
    assert tar_hashes(tmp_path) == tar_hashes(prepared)


def test_a_mistake_ends_the_command_with_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gen1-data", "source=nowhere", f"output={tmp_path}", "recipe=tiny"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gen1-data: error: source=nowhere does not exist: name a folder, a list file (.csv")
