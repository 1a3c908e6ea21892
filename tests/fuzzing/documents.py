"""Targets that are texts: JSON, YAML, tables and lines."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from data_tools.failures import Failure
from data_tools.plan import LINES, PLAN, Plan
from data_tools.sets.order import read_config as read_order
from data_tools.sets.order import read_run as read_run_order
from data_tools.source.sources import open_source
from data_tools.stats import STATS, Stats
from data_tools.task import DONE, TaskResult, content_hash, load_result, task_folder
from gen1_train.data.manifest import MANIFEST, Manifest
from gen1_train.data.state import DataState
from gen1_train.diffusion.recommended import read_recommended
from gen1_train.editing.variants import read_prompts
from gen1_train.evaluation.pairs import read_pairs
from gen1_train.evaluation.results import open_output
from gen1_train.reporting.run_log import read_stage
from gen1_train.system.locks import Owner, parse_owner, this_process
from gen1_train.training.checkpoints.checkpoint import CONFIG, INFO, RECOMMENDED, read_checkpoint
from gen1_train.training.checkpoints.info import HASH, UNET, digest, read_info
from gen1_train.training.checkpoints.parts import INDEX, Index, Piece, Tensors, layouts, part_name, write_part
from gen1_train.training.checkpoints.resuming import STARTS, steps_done
from gen1_train.training.prior.checkpoint import read_config as read_prior_config
from gen1_train.training.replay import read_record
from gen1_train.training.run_files import changed_settings
from gen1_train.training.stages import read_recorded
from tests.fuzzing import material
from tests.fuzzing.byte_mutations import byte_changes
from tests.fuzzing.mutations import csv_files, json_files, json_lines, yaml_files
from tests.fuzzing.target import Target

RECOMMENDATION = (
    b"omega: 3\nomega_t: 0.5\nt_s: 2\nsteps: 12\nsolver: dpm++\nprompts:\n  - a red ball\n  - a blue ball\n"
)
METRICS = b"step,loss,seconds,lr\n1,0.5,0.1,1e-4\n2,0.4,0.1,1e-4\n2,,,2e-4\n4,nan,0.2,1e-4\n"
PAIRS = b'video,prompt,image,start,frames,fps\nx.mp4,a red ball,,0,8,12.5\ny.mp4,"a ball, blue",z.png,1,,\n'
PAIR_LINES = b'{"video": "x.mp4", "prompt": "a red ball", "start": 2, "fps": 8.5}\n{"video": "y", "prompt": "b"}\n'
LIST = "path\tcaption\tid\na.mp4\ta red ball\ta\nb/c.png\t\tb\nhttps://example.org/d.mp4\tx\td\n"
LIST_LINES = b'{"path": "a.mp4", "caption": "a red ball", "id": 7}\n{"path": "b/c.png", "id": "x y"}\n'
OWNER_OF = ("host", "pid", "boot", "namespace", "started", "job", "restarts", "since", "token")


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def sealed(name: str, hash_of: Callable[[Any], str]) -> Callable[[Any], Any]:
    """Returns a function that gives a document the hash of its other entries."""

    def seal(content: Any) -> Any:
        rest = {key: value for key, value in content.items() if key != name}
        return {**rest, name: hash_of(rest)}

    return seal


def canonical(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_manifest(folder: Path, data: bytes) -> Manifest:
    write(folder, MANIFEST, data)
    return Manifest.load(folder)


def load_info(folder: Path, data: bytes) -> Any:
    """Reads checkpoint.json as resuming and editing do: its data and its estimators too."""
    for path in material.checkpoint().iterdir():
        if path.name != INFO:
            (folder / path.name).symlink_to(path)
    write(folder, INFO, data)
    checkpoint = read_checkpoint(folder)
    DataState.load(checkpoint.info.data, str(folder))
    return read_recorded(checkpoint)


def load_parts(folder: Path, data: bytes) -> Any:
    """Reads the index of a checkpoint in parts, and all tensors that it lists."""
    write_part(folder / part_name(UNET, 0, 2), [Piece("a", 0, torch.zeros(15)), Piece("b", 0, torch.zeros(3))])
    write_part(folder / part_name(UNET, 1, 2), [Piece("b", 3, torch.zeros(4))])
    write(folder, INDEX, data)
    index = Index.read(folder)
    return [dict(Tensors(folder, UNET, index.parts, content)) for content in index.files.values()]


def parts_index() -> bytes:
    files = layouts({"a": [3, 5], "b": [7]}, [{"a": 0, "b": 0}, {"b": 3}])
    return json.dumps({"parts": 2, "files": {UNET: files}}).encode()


def load_config(folder: Path, data: bytes) -> Any:
    """Reads the config of a checkpoint as editing and resuming do."""
    checkpoint = with_config(folder, data, material.checkpoint())
    changed_settings(checkpoint, whole_config())
    return read_recorded(checkpoint)


def load_prior_config(folder: Path, data: bytes) -> Any:
    return read_prior_config(with_config(folder, data, material.prior()))


def with_config(folder: Path, data: bytes, source: Path) -> Any:
    from gen1_train.training.checkpoints.checkpoint import Checkpoint

    write(folder, CONFIG, data)
    return Checkpoint(folder, read_info(source))


def whole_config() -> Any:
    from gen1_train.training.config import TrainConfig

    return TrainConfig.from_yaml((material.checkpoint() / CONFIG).read_text())


def load_recommended(folder: Path, data: bytes) -> Any:
    return read_recommended(write(folder, RECOMMENDED, data))


def load_run(folder: Path, name: str, data: bytes) -> Any:
    """Reads a run folder as its page does; `name` is the file that is changed."""
    step = "checkpoints/step-00000010/checkpoint.json"
    write(folder, "metrics.csv", METRICS)
    write(folder, "config.yaml", b"name: gen1\nseed: 0\nstage:\n  name: '4'\n  steps: 100\n")
    write(folder, step, b'{"step": 10, "finished": true}')
    write(folder, {"checkpoint": step}.get(name, name), data)
    log = read_stage(folder)
    return log.name, log.stage, log.last_step, log.planned, log.seconds_per_step


def order_config() -> bytes:
    data = {"image_ratio": None, "batch_clips": 4, "mix": "exact", "order": "global", "window": 8, "lanes": 8}
    stage = {"name": "4", "image_ratio": 0.125}
    return yaml.safe_dump({"seed": 0, "data": data, "stage": stage, "model": {"max_frames": 8}}).encode()


def load_run_order(folder: Path, data: bytes) -> Any:
    write(folder, "checkpoints/step-00000010/checkpoint.json", data)
    return read_run_order(folder)


def plan_files() -> tuple[bytes, bytes]:
    """Returns plan.json and plan.jsonl."""
    from dataclasses import asdict

    from data_tools.plan import Part
    from data_tools.source.examine import MediaFile

    media = MediaFile("a.mp4", "video", 100, "a red ball", "a", 64, 48, 60, 25.0, 1.0, "64x48")
    lines = [(json.dumps(asdict(line)) + "\n").encode() for line in (media, Failure("b.mp4", "unreadable", "x"))]
    parts = [
        Part(offset, len(line), 1, 2.4, hashlib.sha256(line).hexdigest())
        for offset, line in zip((0, len(lines[0])), lines)
    ]
    plan = Plan("inputs", {"x": 1}, True, [parts[0]], parts[1], {".md": 1})
    return json.dumps({**asdict(plan), "hash": plan.hash}).encode(), b"".join(lines)


def load_plan(folder: Path, data: bytes) -> Any:
    write(folder, LINES, plan_files()[1])
    write(folder, PLAN, data)
    plan = Plan.load(folder)
    files = [plan.read_task(folder, number) for number in range(len(plan.tasks))]
    return files, plan.read_failures(folder), plan.files


def load_plan_lines(folder: Path, data: bytes) -> Any:
    """Reads plan.jsonl, whose checksum in plan.json is right."""
    head, _, tail = data.partition(b"\n")
    content = json.loads(plan_files()[0])
    parts = (content["tasks"][0], content["failures"])
    for part, lines, offset in zip(parts, (head + b"\n", tail), (0, len(head) + 1)):
        part.update(offset=offset, bytes=len(lines), files=1, sha256=hashlib.sha256(lines).hexdigest())
    content = sealed("hash", canonical)(content)
    write(folder, PLAN, json.dumps(content).encode())
    write(folder, LINES, head + b"\n" + tail)
    plan = Plan.load(folder)
    return [(file.seconds, file.check()) for file in plan.read_task(folder, 0)], plan.read_failures(folder)


def done() -> bytes:
    return json.dumps(TaskResult("plan", {"clip": {"width": 64}}, [Failure("b", "x", "y")]).to_json()).encode()


def load_done(folder: Path, data: bytes) -> Any:
    write(task_folder(folder, 0), DONE, data)
    return load_result(folder, 0, "plan")


def load_stats(folder: Path, data: bytes) -> Stats:
    write(folder, STATS, data)
    return Stats.load(folder)


def scan_list(folder: Path, suffix: str, data: bytes) -> Any:
    """Finds the files of a list; the network is never asked."""
    for name in ("a.mp4", "b/c.png"):
        write(folder, name, b"x")
    path = write(folder, f"list{suffix}", data)
    from data_tools.source.rows import read_rows
    from gen1_train.system.remote import is_url

    rows = list(read_rows(path, path.name))
    if any(is_url(getattr(row, "path", "")) for row in rows):
        return rows
    return open_source(str(path)).scan(folder / "output")


def scan_caption(folder: Path, data: bytes) -> Any:
    """Finds the files of a folder, in which a video has a caption."""
    write(folder, "source/a.mp4", b"x")
    write(folder, "source/a.txt", data)
    return open_source(str(folder / "source")).scan(folder / "output")


def load_pairs(folder: Path, suffix: str, data: bytes) -> Any:
    pairs = read_pairs(write(folder, f"pairs{suffix}", data))
    return [(pair.video_path, pair.image_path, asked_facts(pair)) for pair in pairs]


def asked_facts(pair: Any) -> Any:
    """What a pair's result depends on; its files do not exist, which is refused."""
    from gen1_train.errors import UserError

    try:
        return pair.facts()
    except UserError as error:
        assert str(error).isprintable(), str(error)
        return None


def guard_record() -> bytes:
    row = {"slot": 0, "key": "video-000", "loss": 0.5, "timestep": 3, "t_s": 0, "frame": 1, "dropped": False}
    content = {"step": 9, "reason": "x", "norm": 1.5, "bound": None, "norms": {}, "data": material.data_state()}
    return json.dumps({**content, "samples": [row, {**row, "slot": 1, "loss": None}]}).encode()


def load_record(folder: Path, name: str, data: bytes) -> Any:
    """Reads a record of the guard as replay does; `name` is the file that is changed."""
    shutil.copy(material.checkpoint() / CONFIG, folder / CONFIG)
    write(folder, "guard.json", guard_record())
    path = write(folder, name, data)
    record = read_record(path.with_name("guard.json"))
    DataState.load(record.content["data"], str(path))
    return record.step


def owner() -> bytes:
    from dataclasses import asdict

    return json.dumps(asdict(this_process())).encode()


def load_owner(folder: Path, data: bytes) -> Owner | None:
    found = parse_owner(data.decode(errors="replace"))
    assert found is None or str(found).isprintable()
    return found


def count_steps(folder: Path, data: bytes) -> int:
    write(folder, STARTS, data)
    return steps_done(folder)


def load_prompts(folder: Path, data: bytes) -> list[str]:
    return read_prompts(str(write(folder, "prompts.txt", data)))


def load_evaluation(folder: Path, data: bytes) -> None:
    """Opens the folder of an evaluation that has a result."""
    write(folder, "evaluation.json", data)
    write(folder, "results/00002/x.json", b"{}")
    open_output(folder, {"checkpoint": "a", "settings": {"frames": 8}, "pairs": [1]})


def checkpoint_json() -> bytes:
    return (material.checkpoint() / INFO).read_bytes()


def bytes_of(path: Callable[[], Path], name: str) -> Callable[[], bytes]:
    return lambda: (path() / name).read_bytes()


def lines(data: bytes) -> Callable[[], bytes]:
    return lambda: data


DOCUMENTS = [
    Target("manifest", bytes_of(material.shard_set, MANIFEST), json_files(sealed("hash", canonical)), load_manifest),
    Target("checkpoint-json", checkpoint_json, json_files(sealed(HASH, digest)), load_info),
    Target("parts-index", parts_index, json_files(), load_parts),
    Target("config", bytes_of(material.checkpoint, CONFIG), yaml_files, load_config, examples=25),
    Target("prior-config", bytes_of(material.prior, CONFIG), yaml_files, load_prior_config),
    Target("recommended", lines(RECOMMENDATION), yaml_files, load_recommended),
    Target("run-metrics", lines(METRICS), csv_files(), lambda f, d: load_run(f, "metrics.csv", d)),
    Target("run-config", order_config, yaml_files, lambda f, d: load_run(f, "config.yaml", d)),
    Target("run-checkpoint", checkpoint_json, json_files(), lambda f, d: load_run(f, "checkpoint", d)),
    Target("order-config", order_config, yaml_files, lambda f, d: read_order(write(f, "config.yaml", d))),
    Target("order-checkpoint", checkpoint_json, json_files(), load_run_order),
    Target("plan", lambda: plan_files()[0], json_files(sealed("hash", canonical)), load_plan),
    Target("plan-lines", lambda: plan_files()[1], json_lines, load_plan_lines),
    Target("done", done, json_files(sealed("hash", content_hash)), load_done),
    Target("stats", lambda: json.dumps(Stats().to_json()).encode(), json_files(), load_stats),
    Target("list-csv", lines(LIST.replace("\t", ",").encode()), csv_files(), lambda f, d: scan_list(f, ".csv", d)),
    Target("list-tsv", lines(LIST.encode()), csv_files("\t"), lambda f, d: scan_list(f, ".tsv", d)),
    Target("list-jsonl", lines(LIST_LINES), json_lines, lambda f, d: scan_list(f, ".jsonl", d)),
    Target("pairs-csv", lines(PAIRS), csv_files(), lambda f, d: load_pairs(f, ".csv", d)),
    Target("pairs-jsonl", lines(PAIR_LINES), json_lines, lambda f, d: load_pairs(f, ".jsonl", d)),
    Target("guard-record", guard_record, json_files(), lambda f, d: load_record(f, "guard.json", d)),
    Target(
        "guard-config",
        bytes_of(material.checkpoint, CONFIG),
        yaml_files,
        lambda f, d: load_record(f, CONFIG, d),
        examples=25,
    ),
    Target("in-use", owner, json_files(), load_owner),
    Target("starts", lines(b'{"step": 0, "world": 1}\n{"step": 10, "world": 2}\n'), json_lines, count_steps),
    Target("caption", lines("a red ball, \u00e9\n".encode()), byte_changes, scan_caption),
    Target("prompts", lines(b"a red ball\na blue ball\n"), byte_changes, load_prompts),
    Target(
        "evaluation",
        lines(b'{"checkpoint": "a", "settings": {"frames": 8}, "pairs": [1]}'),
        json_files(),
        load_evaluation,
    ),
]
