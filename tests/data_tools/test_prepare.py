"""From a folder of files to a frozen set, with the fitted estimators of the miniature."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor as Pool
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from data_tools import prepare, task
from data_tools.estimate import load_estimators, one_thread
from data_tools.prepare import main, run
from gen1_train.batch import STRUCTURE_MAX
from gen1_train.data.shards import Manifest, ShardSet
from gen1_train.errors import UserError
from tests.data_tools.source import config, make_source, quick_recipe, work_and_die
from tests.video.files import is_alive, make_video, number_of

FIELDS = ("frames", "structure", "moments", "structure_latent", "image_embedding", "meta")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("media") / "source")


@pytest.fixture(scope="module")
def prepared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("prepared") / "set"
    run(config(source, output))
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
    assert sorted(os.listdir(prepared)) == ["failures.jsonl", "manifest.json", "plan.json", "shards"]
    read = [shards.read("video-64x48", i, FIELDS) for i in range(6)]
    assert sorted((s.meta["source"], s.meta["first_frame"]) for s in read if s.meta) == [
        *(("a.mp4", first) for first in (0, 20, 40)),
        *(("sub/b.c.mkv", first) for first in (0, 12, 24)),
    ]
    for sample in read:  # of the right frames, seen through crop and JPEG
        assert sample.frames is not None and sample.meta is not None
        first = sample.meta["first_frame"]
        assert [number_of(frame) for frame in sample.frames] == [first, first + 2]


def test_captions_reach_the_samples(prepared: Path) -> None:
    shards = ShardSet(prepared)
    entries = shards._index("video-64x48-000000.tar", shards.manifest.pools["video-64x48"].shards[0].crc32)
    with_caption = [row for row, entry in enumerate(entries) if "caption.txt" in entry.members]
    assert len(with_caption) == 3
    sample = shards.read("video-64x48", with_caption[0], ("caption", "text_embedding"))
    assert sample.caption == "a noise that wanders"
    assert sample.text_embedding is not None and sample.text_embedding.shape == (64,)


def test_what_is_stored_equals_what_would_be_computed_from_it(prepared: Path) -> None:
    """Structure: exactly. Moments: of the frames before JPEG, so nearly."""
    estimators = load_estimators(quick_recipe(), "auto")
    sample = ShardSet(prepared).read("video-64x48", 0, FIELDS)
    assert sample.structure is not None and sample.frames is not None and sample.moments is not None
    assert sample.structure.min() == 0 and sample.structure.max() == STRUCTURE_MAX  # over the clip, not the frame
    depth = torch.from_numpy(sample.structure.astype(np.float32)) / STRUCTURE_MAX
    with one_thread():
        structure = estimators.autoencoder.encode_structure(depth).numpy().astype(np.float16)
    np.testing.assert_array_equal(structure, sample.structure_latent)
    again = estimators.sample("again", sample.frames, {})
    assert again.moments is not None and again.image_embedding is not None
    error = np.abs(again.moments[:, :4].astype(float) - sample.moments[:, :4]).mean()
    assert error < 0.1 * sample.moments[:, :4].astype(float).std()


def test_webdataset_reads_the_shards(prepared: Path) -> None:
    urls = sorted(str(tar) for tar in (prepared / "shards").glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert len(samples) == 7
    assert all(sample["frame00.jpg"].shape == (48, 64, 3) and "." not in sample["__key__"] for sample in samples)


def test_the_manifest_tells_what_made_the_set(prepared: Path) -> None:
    manifest = Manifest.load(prepared)
    assert manifest.plan == json.loads((prepared / "plan.json").read_text())["hash"]
    assert manifest.recipe["stride"] == 2
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
    run(config(source, tmp_path, step="plan", **settings))
    with pytest.raises(UserError, match="3 of 3 tasks are not done"):
        run(config(source, tmp_path, step="freeze", **settings))
    for number in (2, 0, 1):
        run(config(source, tmp_path, step="task", task=number, **settings))
    run(config(source, tmp_path, step="freeze", **settings))
    assert tar_hashes(tmp_path) == tar_hashes(prepared)


def test_a_finished_task_costs_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config(source, tmp_path, step="task", task=0))
    monkeypatch.setattr(task, "process_file", lambda *_: pytest.fail("it was done already"))
    run(config(source, tmp_path, step="task", task=0))


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(
    source: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is killed in the second of three tasks, with one file of it done and nothing closed."""
    settings = config(source, tmp_path, task_seconds=0.1, workers=2)
    monkeypatch.setattr(prepare, "work", work_and_die)
    monkeypatch.setattr(prepare, "ProcessPoolExecutor", lambda _, *rest, **named: Pool(1, *rest, **named))
    with pytest.raises(UserError, match="a worker process was killed"):
        run(settings)
    left = sorted(os.listdir(tmp_path / ".staging"))
    assert left[-1] == "task-00000" and len(left) == 2 and left[0].startswith(".task-00001.")
    assert not (tmp_path / "manifest.json").exists()
    run(config(source, tmp_path, task_seconds=0.1))
    assert tar_hashes(tmp_path) == tar_hashes(prepared)
    assert not (tmp_path / ".staging").exists()


def test_a_killed_freeze_is_done_again(source: Path, prepared: Path, tmp_path: Path) -> None:
    for number in range(2):
        run(config(source, tmp_path, step="task", task=number))
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "video-64x48-000007.tar").write_bytes(b"half a tar")
    run(config(source, tmp_path))
    assert tar_hashes(tmp_path) == tar_hashes(prepared)


def test_videos_alone_give_images_too(source: Path, tmp_path: Path) -> None:
    run(config(source / "sub", tmp_path))
    shards = ShardSet(tmp_path)
    assert {name: pool.samples for name, pool in shards.manifest.pools.items()} == {"video-64x48": 3, "image-64x48": 3}
    sample = shards.read("image-64x48", 0, FIELDS)
    assert sample.frames is not None and sample.meta is not None
    assert [number_of(sample.frames[0])] == [sample.meta["first_frame"]]


def test_a_video_that_breaks_keeps_its_whole_clips(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    path = make_video(source / "broken.mp4", frames=120)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    run(config(source, tmp_path / "out", clips_per_video=None))
    made = ShardSet(tmp_path / "out").manifest.pools["video-64x48"].samples
    (failure,) = failures(tmp_path / "out").values()
    assert 0 < made < 30 and failure["clips"] == made and not failure["transient"]


def test_a_file_that_changed_since_the_plan_is_not_used(source: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(source / "sub", tmp_path / "source")
    run(config(copy, tmp_path / "out", step="plan"))
    plan_again = task.Plan.load(tmp_path / "out")
    make_video(copy / "b.c.mkv", frames=30)
    estimators = load_estimators(quick_recipe(), "auto")
    result = task.run_task(plan_again, 0, copy, tmp_path / "out", estimators)
    assert result.samples == {} and result.failures[0].transient


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": "bake"}, "step=bake"),
        ({"workers": 0}, "workers=0"),
        ({"step": "task"}, "needs it"),
        ({"task": 1}, "goes with step=task"),
        ({"step": "task", "task": 99}, "task=99 is not in 0..1"),
        ({"frames": 0}, "recipe.frames=0"),
        ({"device": "abacus"}, "device=abacus"),
        ({"video_buckets": ["60x44"]}, "multiples of 8"),
    ],
)
def test_mistakes_are_named(source: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(config(source, tmp_path / "out", **changes))


def test_a_source_without_a_usable_file_says_why(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "source" / name).write_text("no video")
    with pytest.raises(UserError, match=r"2 of them because: Invalid data .* \(for example a.mp4\)"):
        run(config(tmp_path / "source", tmp_path / "out"))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_full_disk_ends_in_one_line(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(task, "encode_sample", full)
    with pytest.raises(UserError, match="No space left on device"):
        run(config(source, tmp_path))
    assert os.listdir(tmp_path / ".staging") == []


@pytest.mark.slow
def test_two_workers_make_the_same_set(source: Path, prepared: Path, tmp_path: Path) -> None:
    run(config(source, tmp_path, task_seconds=0.1, workers=2))
    assert tar_hashes(tmp_path) == tar_hashes(prepared)


@pytest.mark.slow
def test_workers_end_with_a_killed_parent() -> None:
    script = (
        "import multiprocessing, os, signal; from concurrent.futures import ProcessPoolExecutor; "
        "from data_tools.prepare import end_with_parent; context = multiprocessing.get_context('spawn'); "
        "pool = ProcessPoolExecutor(1, context, initializer=end_with_parent); "
        "print(pool.submit(os.getpid).result(), flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE, timeout=120)
    worker = int(killed.stdout)
    until = time.monotonic() + 10
    while is_alive(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(worker)


def test_the_command_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gen1-data", "source=nowhere", f"output={tmp_path}", "recipe=tiny"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "gen1-data: error: source=nowhere is not a folder: give one that holds videos or images"
    ]
