"""`gen1-data order` prints what training reads."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from data_tools.sets.order import COLUMNS, OrderConfig, read_config, resolve_settings, run
from data_tools.sets.order_picture import CELL, GAP, GRID, MARGIN, TOP
from gen1_train.data.index import index_path, read_index
from gen1_train.data.loader import BatchDataset, BatchPartition
from gen1_train.data.schedule import Schedule, Settings, Start, stage_seed
from gen1_train.data.shards import ShardSet
from gen1_train.data.state import capture
from gen1_train.errors import UserError
from gen1_train.system.console import console
from tests.made import make_shard_set
from tests.running import ENVIRONMENT, REPOSITORY

CLIPS = 4
RATIO = 0.25
SEED = 3
STEPS = 8
STAGE = "3"
SETTINGS: dict[str, Any] = {"seed": SEED, "batch_clips": CLIPS, "image_ratio": RATIO}


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shard_set(tmp_path_factory.mktemp("shard_set") / "set", clips=9, images=20, frames=4, shards=3)


def table(capsys: pytest.CaptureFixture[str], config: OrderConfig) -> list[dict[str, str]]:
    """Returns the printed table, a dict for each line."""
    with console("gen1-data order"):
        run(config)
    header, *lines = capsys.readouterr().out.splitlines()
    assert header == "\t".join(COLUMNS)
    return [dict(zip(COLUMNS, line.split("\t"), strict=True)) for line in lines]


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (2, 2), (4, 1)])
def test_the_table_is_what_all_ranks_read(
    shard_set: Path, capsys: pytest.CaptureFixture[str], world: int, accumulate: int
) -> None:
    printed = table(capsys, OrderConfig(str(shard_set), step=0, steps=STEPS, **SETTINGS))
    shards = ShardSet(shard_set)
    schedule = Schedule(shards, Settings(stage_seed(SEED, STAGE), RATIO, CLIPS))
    kinds = set()
    for number in range(STEPS):
        parts = [
            BatchDataset(shards, schedule, partition, ("image_embedding",))[(number, micro)]
            for partition in (BatchPartition(rank, world, accumulate) for rank in range(world))
            for micro in range(accumulate)
        ]
        rows = [row for row in printed if row["step"] == str(number)]
        assert [row["key"] for row in rows] == [key for part in parts for key in part.keys]
        assert [int(row["slot"]) for row in rows] == [slot for part in parts for slot in part.slots]
        assert {row["kind"] for row in rows} == {part.kind for part in parts}
        kinds |= {part.kind for part in parts}
    assert kinds == {"image", "video"}
    assert len(printed) == sum(schedule.at(number).size for number in range(STEPS))


def test_each_sample_is_in_the_printed_row_and_shard(shard_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = table(capsys, OrderConfig(str(shard_set), step=0, steps=STEPS, **SETTINGS))
    assert {row["shard"] for row in printed} == {tar.name for tar in (shard_set / "shards").glob("*.tar")}
    for row in printed:
        assert read_index(shard_set / "shards" / row["shard"])[int(row["row"])].key == row["key"]
        assert row["shard"].startswith(row["pool"]) and row["pool"].startswith(row["kind"])


def test_an_epoch_has_every_sample_once(shard_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """9 clips in batches of 4: the epochs begin within batches."""
    settings = {**SETTINGS, "image_ratio": 0.0}
    printed = table(capsys, OrderConfig(str(shard_set), step=0, steps=9, **settings))
    for epoch in range(4):
        keys = [row["key"] for row in printed if row["epoch"] == str(epoch)]
        assert sorted(keys) == [f"video-{i:03d}" for i in range(9)]


def test_a_later_first_step_prints_the_same_lines(shard_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    straight = table(capsys, OrderConfig(str(shard_set), step=0, steps=STEPS, **SETTINGS))
    later = table(capsys, OrderConfig(str(shard_set), step=5, **SETTINGS))
    assert later == [row for row in straight if row["step"] == "5"] != []
    far = table(capsys, OrderConfig(str(shard_set), step=1_000_000, **SETTINGS))
    assert len(far) in (CLIPS, 4 * CLIPS)


def recorded(folder: Path, **changes: Any) -> Path:
    """Writes the config of a run folder, with the settings that matter here."""
    order = {"mix": "exact", "order": "global", "window": 8, "lanes": 8}
    config: dict[str, Any] = {
        "seed": SEED,
        "stage": {"name": STAGE, "image_ratio": RATIO},
        "data": {"batch_clips": CLIPS, "image_ratio": None, **order},
        "model": {"max_frames": 4},
    }
    for name, value in changes.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_a_run_folder_gives_the_default_settings(
    shard_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder = recorded(tmp_path / "run")
    given = table(capsys, OrderConfig(str(shard_set), step=2, steps=4, **SETTINGS))
    assert table(capsys, OrderConfig(str(shard_set), step=2, steps=4, run=str(run_folder))) == given
    other = table(
        capsys, OrderConfig(str(shard_set), step=2, steps=4, run=str(run_folder), seed=4)
    )  # a given setting wins
    assert other == table(capsys, OrderConfig(str(shard_set), step=2, steps=4, **{**SETTINGS, "seed": 4})) != given


def test_the_image_ratio_of_the_data_overrides_that_of_the_stage(tmp_path: Path) -> None:
    wanted = Settings(stage_seed(SEED, STAGE), RATIO, CLIPS, 4)
    assert read_config(recorded(tmp_path / "stage") / "config.yaml").settings == wanted
    other = recorded(tmp_path / "data", data={"image_ratio": 0.5, "order": "blocks", "lanes": 3})
    assert read_config(other / "config.yaml").settings == replace(wanted, image_ratio=0.5, order="blocks", lanes=3)


def test_the_config_written_by_gen1_train_is_read(tmp_path: Path) -> None:
    from gen1_train.training.config import TrainConfig
    from gen1_train.training.preflight import schedule_settings
    from gen1_train.training.stages import StageConfig

    stage = StageConfig("3", "2", 10, temporal=True, structure=True, max_level=0, image_ratio=0.125)
    config = TrainConfig(stage, seed=7)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert read_config(tmp_path / "config.yaml").settings == schedule_settings(config)
    defaults = resolve_settings(OrderConfig("SET", 0, seed=7)).settings
    assert defaults == schedule_settings(config)  # our defaults are its defaults


def test_stages_have_different_orders(shard_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two, three, four = (
        table(capsys, OrderConfig(str(shard_set), 0, 4, stage=stage, **SETTINGS)) for stage in ("2", "3", "4")
    )
    assert two != three != four and three == table(capsys, OrderConfig(str(shard_set), 0, 4, **SETTINGS))


def checkpoint(run_folder: Path, step: int, data: Any) -> Path:
    path = run_folder / "checkpoints" / f"step-{step:08d}" / "checkpoint.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"stage": STAGE, "data": data}))
    return path


def test_the_newest_checkpoint_overrides_the_config(
    shard_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a change of the global batch, the order depends on what was read before it."""
    shards, run_folder = ShardSet(shard_set), recorded(tmp_path / "run")
    first = Schedule(shards, Settings(stage_seed(SEED, STAGE), RATIO, CLIPS))
    second = Schedule(shards, replace(first.settings, clips=2), Start(5, first.cursors(5), CLIPS))
    checkpoint(run_folder, 5, asdict(capture(first, 5)))
    checkpoint(run_folder, 9, asdict(capture(second, 9, ("from step 5: …",))))
    printed = table(capsys, OrderConfig(str(shard_set), step=6, steps=6, run=str(run_folder)))
    wanted = [
        (str(number), shards.read(step.pool, second.sample(step, slot), ("caption",)).key)
        for number in range(6, 12)
        for step in [second.at(number)]
        for slot in range(step.size)
    ]
    assert [(row["step"], row["key"]) for row in printed] == wanted
    with pytest.raises(UserError, match=r"step=4 was read before the settings of .* were changed at step 5"):
        run(OrderConfig(str(shard_set), step=4, run=str(run_folder)))


def test_a_run_on_another_set_is_refused(shard_set: Path, tmp_path: Path) -> None:
    shards, run_folder = ShardSet(shard_set), recorded(tmp_path / "run")
    state = asdict(capture(Schedule(shards, Settings(1, RATIO, CLIPS)), 10))
    checkpoint(run_folder, 10, {**state, "manifest": "another"})
    checkpoint(run_folder, 20, state)
    config = OrderConfig(str(shard_set), step=0, run=str(run_folder))
    run(config)  # only the newest checkpoint counts
    path = checkpoint(run_folder, 20, {**state, "manifest": "another"})
    with pytest.raises(UserError, match="was trained on another shard set"):
        run(config)
    path.write_text("{")
    with pytest.raises(UserError, match=r"checkpoint\.json cannot be read"):
        run(config)
    with pytest.raises(UserError, match="leave stage= out"):
        run(OrderConfig(str(shard_set), step=0, run=str(run_folder), stage="4"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": -1}, "step=-1 must be 0 or above"),
        ({"steps": 0}, "steps=0 must be above 0"),
        ({"image_ratio": 1.5}, "image_ratio=1.5 is a share"),
        ({"batch_clips": 0}, "batch_clips=0 must be above 0"),
        ({"frames": 0}, "frames=0 must be above 0"),
        ({"lanes": 0}, "lanes=0 must be above 0"),
        ({"order": "random"}, "order=random is not one of global, blocks"),
        ({"batch_clips": 100}, "fewer than one global batch of 100"),
        ({"run": "no/such/run"}, "no/such/run/config.yaml cannot be read (No such file or directory): give the folder"),
    ],
)
def test_a_mistake_is_an_error_with_one_line(shard_set: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        run(OrderConfig(**{"output": str(shard_set), "step": 0, **SETTINGS, "image_ratio": 0.0, **settings}))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_picture_shows_the_table(shard_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cell is gray if nothing is read; a step and a shard take 12 pixels, and the three video shards are on top."""
    settings = {**SETTINGS, "order": "blocks", "window": 1, "lanes": 2}
    printed = table(capsys, OrderConfig(str(shard_set), step=3, steps=STEPS, **settings))
    path = tmp_path / "order.png"
    with console("gen1-data order"):
        run(OrderConfig(str(shard_set), step=3, steps=STEPS, picture=str(path), **settings))
    assert capsys.readouterr().out == "" and [p.name for p in tmp_path.iterdir()] == ["order.png"]
    with pytest.raises(UserError, match=r"order\.png exists already: give another name, or add overwrite=true"):
        run(OrderConfig(str(shard_set), step=3, steps=STEPS, picture=str(path), **settings))
    run(OrderConfig(str(shard_set), step=3, steps=STEPS, picture=str(path), overwrite=True, **settings))
    manifest = shard_set / "manifest.json"
    with pytest.raises(UserError, match=r"manifest\.json must end with \.png"):
        run(OrderConfig(str(shard_set), step=3, picture=str(manifest), overwrite=True))
    assert manifest.read_text().startswith("{")
    pixels = np.asarray(Image.open(path))
    for pool, top in (("video-32x16", TOP), ("image-32x16", TOP + 3 * CELL + GAP)):
        for step in range(STEPS):
            for shard in range(3):
                color = pixels[top + shard * CELL + CELL // 2, MARGIN + step * CELL + CELL // 2]
                name = f"{pool}-{shard:06d}.tar"
                read = [row for row in printed if row["shard"] == name and row["step"] == str(3 + step)]
                assert bool(read) == (color != GRID).any(), (name, step)
    with pytest.raises(UserError, match="cannot be written"):
        run(OrderConfig(str(shard_set), step=3, picture=str(tmp_path / "no" / "order.png"), **settings))


@pytest.mark.parametrize("text", ["", "[]", "a: [", "seed: 0", "\x00", "!!python/object:a.B {}"])
def test_an_unusable_config_is_an_error_with_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="is not the config of a run") as error:
        read_config(tmp_path / "config.yaml")
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("seed", ["x", True, None, 1.5])
def test_a_setting_of_the_wrong_type_is_an_error(tmp_path: Path, seed: Any) -> None:
    with pytest.raises(UserError, match="is not of type int"):
        read_config(recorded(tmp_path / "run", seed=seed) / "config.yaml")


def test_a_damaged_index_is_an_error(tmp_path: Path) -> None:
    root = make_shard_set(tmp_path / "set", clips=4, images=0, shards=1)
    path = index_path(root / "shards" / "video-32x16-000000.tar")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="not the index that was frozen"):
        run(OrderConfig(str(root), step=0, batch_clips=4, image_ratio=0.0))


def test_a_damaged_row_of_an_index_is_an_error(tmp_path: Path) -> None:
    root = make_shard_set(tmp_path / "set", clips=4, images=0, shards=1)
    path = index_path(root / "shards" / "video-32x16-000000.tar")
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"is damaged \({path.name}: row 3 is damaged") as error:
        run(OrderConfig(str(root), step=0, batch_clips=4, image_ratio=0.0))
    assert "\n" not in str(error.value)


def test_a_closed_pipe_ends_the_command_quietly(shard_set: Path) -> None:
    arguments = [f"output={shard_set}", "step=0", "steps=10000", "batch_clips=4"]
    process = subprocess.Popen(
        [sys.executable, "-m", "data_tools.main", "order", *arguments],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "\t".join(COLUMNS) + "\n"
    process.stdout.close()
    assert (process.stderr.read(), process.wait(timeout=120)) == ("", 0)
    process.stderr.close()
