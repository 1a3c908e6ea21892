"""Plans, results of tasks and their indices that are damaged or hostile: one line, and no file outside is read."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from data_tools import freeze
from data_tools.failures import FAILURES, read_failures
from data_tools.plan import Part, Plan
from data_tools.prepare import load_failures, run
from data_tools.task import TaskResult, load_result
from gen1_train.data.manifest import PoolShards
from gen1_train.errors import INCOMPLETE, UserError
from tests.damage import as_json, assert_refused_or_equal, flipped_bits, replaced_values
from tests.data_tools.small_source import config, make_source, quick_recipe

TASK = ".staging/task-00000"
HOSTILE_PATHS = ["../secret.png", "sub/../../secret.png", "/etc/passwd", "a\0.png"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = make_source(tmp_path_factory.mktemp("media") / "source")
    (source.parent / "secret.png").write_bytes((source / "photo.png").read_bytes())
    return source


@pytest.fixture(scope="module")
def staged(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder after step=plan and step=task, to be copied."""
    output = tmp_path_factory.mktemp("staged") / "set"
    assert run(config(source, output, step="plan", task_seconds=600.0)) == 0
    assert run(config(source, output, step="task", task_seconds=600.0)) == 0
    return output


@pytest.fixture
def own(staged: Path, tmp_path: Path) -> Path:
    return shutil.copytree(staged, tmp_path / "out")


def test_a_damaged_plan_is_refused(own: Path) -> None:
    path = own / "plan.json"
    content = json.loads(path.read_text())
    assert assert_refused_or_equal(path, flipped_bits(path.read_bytes(), 400), lambda: Plan.load(own)) > 250
    assert assert_refused_or_equal(path, as_json(replaced_values(content, 400)), lambda: Plan.load(own)) > 370


def test_a_plan_of_a_newer_version_is_named_as_such(own: Path) -> None:
    path = own / "plan.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 3'))
    with pytest.raises(UserError, match=r"made by a newer gen1-train \(format 3, but this version reads 2\)"):
        Plan.load(own)


def test_damaged_lines_of_a_plan_are_refused(own: Path) -> None:
    path = own / "plan.jsonl"
    plan = Plan.load(own)
    changes = flipped_bits(path.read_bytes(), 200)
    refused = assert_refused_or_equal(path, changes, lambda: [plan.read_task(own, 0), plan.read_failures(own)])
    assert refused == 200


def rewrite_plan(output: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Changes the lines of task 0 as an attacker does, with checksums that fit."""
    plan = Plan.load(output)
    lines = [asdict(file) for file in plan.read_task(output, 0)]
    change(lines)
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    rest = (output / "plan.jsonl").read_bytes()[plan.failures.offset :]
    (output / "plan.jsonl").write_bytes(data + rest)
    plan.tasks = [Part(0, len(data), len(lines), plan.tasks[0].seconds, hashlib.sha256(data).hexdigest())]
    plan.failures = Part(len(data), len(rest), plan.failures.files, 0.0, plan.failures.sha256)
    (output / "plan.json").write_text(json.dumps({**asdict(plan), "hash": plan.hash}))


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_a_plan_reads_no_file_outside_its_source(source: Path, own: Path, path: str) -> None:
    """A picture next to the source would have become a sample of a set that others see."""

    def change(lines: list[dict[str, Any]]) -> None:
        [photo] = [line for line in lines if line["path"] == "photo.png"]
        photo["path"] = path
        lines[:] = [photo]

    rewrite_plan(own, change)
    shutil.rmtree(own / ".staging")
    run(config(source, own, step="task", task_seconds=600.0))
    result = load_result(own, 0, Plan.load(own).hash)
    assert result is not None and sum(result.stats.samples.values()) == 0
    [failure] = [failure for failure in result.failures if failure.file == path]
    assert "is not a path within a folder" in failure.reason and failure.reason.isprintable()


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"id": "../../x"}, "is not a plain name"),
        ({"kind": "sound"}, "the kind of 'a.mp4' is 'sound'"),
        ({"bytes": -1}, "is below 0"),
        ({"frames": 2.5}, "frames is a number instead of a whole number"),
        ({"bucket": "evil"}, "'evil' is not a bucket"),
        ({"caption": ["x"]}, "caption is a list instead of a text"),
        ({"more": 1}, "unknown entry 'more'"),
    ],
)
def test_values_that_no_plan_has_are_refused(own: Path, facts: dict[str, Any], message: str) -> None:
    rewrite_plan(own, lambda lines: lines[0].update(facts))
    with pytest.raises(UserError, match=message) as error:
        Plan.load(own).read_task(own, 0)
    assert str(error.value).isprintable()


def test_a_damaged_result_of_a_task_is_refused(own: Path) -> None:
    path = own / TASK / "done.json"
    content = json.loads(path.read_text())
    plan = Plan.load(own)

    def load() -> TaskResult | None:
        return load_result(own, 0, plan.hash)

    assert assert_refused_or_equal(path, flipped_bits(path.read_bytes(), 400), load) > 250
    assert assert_refused_or_equal(path, as_json(replaced_values(content, 400)), load) > 370
    path.write_text(json.dumps({**content, "format": 2}))
    with pytest.raises(UserError, match=r"made by a newer gen1-train \(format 2, but this version reads 1\)"):
        load()


def test_a_result_of_an_older_version_is_read_and_its_types_are_checked(own: Path) -> None:
    path = own / TASK / "done.json"
    content = json.loads(path.read_text())
    plan = Plan.load(own)
    expected = load_result(own, 0, plan.hash)
    assert expected is not None and set(expected.indices or {}) == {"video-64x48", "image-64x48"}
    old = {name: content[name] for name in ("plan", "estimators", "failures", "stats")}
    path.write_text(json.dumps(old))
    loaded = load_result(own, 0, plan.hash)
    assert loaded is not None and loaded.indices is None
    assert (loaded.failures, loaded.stats) == (expected.failures, expected.stats)
    for changed in as_json(replaced_values(old, 300)):
        path.write_bytes(changed)
        try:
            load_result(own, 0, plan.hash)
        except UserError as error:
            assert str(error).isprintable()


def frozen(own: Path) -> tuple[str, dict[str, PoolShards], list[bytes]]:
    """Freezes the shards of all tasks again; returns their description and bytes."""
    shutil.rmtree(own / "shards", ignore_errors=True)
    (own / "shards").mkdir()
    recipe = quick_recipe(task_seconds=600.0)
    try:
        pools, digest = freeze.collect(freeze.load_results(Plan.load(own), own), recipe, own)
        written = freeze.write_shards(pools, recipe, own, threads=1)
    except OSError as error:  # as `freeze.freeze` reports it
        raise UserError(str(error.strerror or error)) from error
    return digest, written, [path.read_bytes() for path in sorted((own / "shards").iterdir())]


@pytest.mark.parametrize("pool", ["video-64x48", "image-64x48"])
def test_a_damaged_index_of_a_task_is_refused(own: Path, pool: str) -> None:
    path = own / TASK / f"{pool}.index"
    assert assert_refused_or_equal(path, flipped_bits(path.read_bytes(), 60), lambda: frozen(own)) == 60
    path.rename(path.with_name("evil.index"))
    with pytest.raises(UserError, match="does not hold the indices that its task wrote"):
        frozen(own)


@pytest.mark.slow
def test_a_damaged_index_of_an_older_task_is_refused_or_makes_the_same_samples(own: Path) -> None:
    """Its result has no checksum of the index: what is written is read back and compared."""
    done = own / TASK / "done.json"
    content = json.loads(done.read_text())
    done.write_text(json.dumps({name: content[name] for name in ("plan", "estimators", "failures", "stats")}))
    path = own / TASK / "image-64x48.index"
    line = json.loads(path.read_bytes())
    for changes in (flipped_bits(path.read_bytes(), 100), as_json(replaced_values(line, 200))):
        for data in changes:
            path.write_bytes(data)
            try:
                frozen(own)
            except UserError as error:
                assert str(error).isprintable(), data
    path.rename(path.with_name("evil.index"))
    with pytest.raises(UserError, match="'evil' is not the name of a pool"):
        frozen(own)


def test_a_damaged_list_of_failures_is_one_line(source: Path, own: Path) -> None:
    settings = config(source, own, step="freeze", task_seconds=600.0)
    assert run(settings) == INCOMPLETE
    path = own / FAILURES
    expected = list(read_failures(own))
    for data in flipped_bits(path.read_bytes(), 200):
        path.write_bytes(data)
        try:
            load_failures(own)
        except UserError as error:
            assert str(error).isprintable()
    for text in ("[]\n", "{", '{"file": 3}\n', '{"file": "a", "category": "b", "reason": ["c"]}\n'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"failures\.jsonl cannot be read"):
            run(settings)
    assert expected


@pytest.mark.parametrize("name", [".staging", "shards"])
def test_an_output_of_others_leads_nowhere_else(source: Path, own: Path, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / ".mine.tmp").write_text("mine")
    if (own / name).exists():
        shutil.copytree(own / name, victim, dirs_exist_ok=True)
        shutil.rmtree(own / name)
    (own / name).symlink_to(victim)
    before = sorted(path.relative_to(victim) for path in victim.rglob("*"))
    for step in ("freeze", "all"):
        with pytest.raises(UserError, match=f"{name} is a link"):
            run(config(source, own, step=step, task_seconds=600.0))
    assert sorted(path.relative_to(victim) for path in victim.rglob("*")) == before
