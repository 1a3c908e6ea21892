"""The commands of tests/crashes/table.py: their settings, their moments, and what they leave."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.ranks import free_ports
from gen1_train.errors import INCOMPLETE
from gen1_train.reporting.rows import read_metrics
from gen1_train.system.locks import LOCK, parse_owner
from gen1_train.training.checkpoints.checkpoint import checkpoints_dir, latest
from tests.crashes.processes import command_lines, session
from tests.data_tools.bad_files import RECIPE
from tests.digests import digest, digests, set_digests
from tests.made import make_shard_set
from tests.made_checkpoint import write_checkpoint, write_prior
from tests.running import TRAIN
from tests.training.customization.customizing import TINY, make_world
from tests.training.runs import stage
from tests.video.files import make_video

Moment = Callable[[], bool]


@dataclass
class Process:
    """A command that was started."""

    pid: int  # also of its session
    output: Path
    printed: Callable[[], str]
    started: float = field(default_factory=time.monotonic)


@dataclass
class Command:
    """A command that is interrupted."""

    module: str
    script: str  # in gen1_train/cli/start.py
    name: str  # in the lines that it prints
    settings: Callable[[Path, Path], list[str]]  # of the folder with its inputs, and of its output
    moments: dict[str, Callable[[Process], Moment]]
    result: Callable[[Path], dict[str, str]]  # of its output; equal for equal results
    output: str = "output"  # name of its output in a folder
    success: int = 0
    saves: bool = False  # it is a training, which saves a checkpoint when it is asked to stop
    prepare: Callable[[Path], object] = lambda folder: None  # writes its inputs


def it_imports(process: Process) -> Moment:
    return lambda: time.monotonic() > process.started + 1.5  # torch alone takes seconds


# Training


def run_folder(output: Path) -> Path:
    """The only run folder in an output folder."""
    found = [path for path in output.glob("*/*") if path.is_dir() and path.name != "prior_model"]
    return found[0] if found else output / "none" / "none"


def it_has_begun(process: Process) -> Moment:
    return lambda: owner(run_folder(process.output)) in session(process.pid)


def it_trains(process: Process) -> Moment:
    def rows() -> int:
        return len(read_metrics(run_folder(process.output) / "metrics.csv"))

    before = rows()
    return lambda: rows() >= before + 2


def it_saves(process: Process) -> Moment:
    def unfinished() -> set[tuple[str, int]]:
        folder = checkpoints_dir(run_folder(process.output))
        return {(path.name, path.stat().st_ino) for path in folder.glob(".step-*.tmp")}

    before = unfinished()
    return lambda: bool(unfinished() - before)


def trained(output: Path) -> dict[str, str]:
    """The weights, averages and moments of the last checkpoint, and the loss of each step."""
    run = run_folder(output)
    checkpoint = latest(run)
    assert checkpoint is not None and checkpoint.info.finished
    assert not list(checkpoints_dir(run).glob(".step-*.tmp"))
    losses = [[row[name] for name in row if "loss" in name] for row in read_metrics(run / "metrics.csv")]
    return {**digests(checkpoint.path, checkpoint.path.glob("*.safetensors")), "losses": json.dumps(losses)}


TRAINING = {"it imports": it_imports, "it has begun": it_has_begun, "it trains": it_trains, "it saves": it_saves}
FREQUENT = ["stage.steps=14", "checkpoint.every=3", "checkpoint.keep=2"]


def training(strategy: str, devices: int = 2) -> Command:
    """A stage 3 on processes of this machine; its inputs are those of `run_root`."""

    def settings(root: Path, output: Path) -> list[str]:
        words = stage(root, 3, "", *FREQUENT, f"strategy={strategy}", f"trainer.devices={devices}")
        return [*words, f"output={output}"]

    return Command("gen1_train.train", "train", "gen1-train", settings, TRAINING, trained, saves=True)


def customization(root: Path, output: Path) -> list[str]:
    model = {"channels": TINY.channels, "attention": TINY.attention, "heads": TINY.heads, "layers": TINY.layers}
    model |= {"groups": TINY.groups, "context_dim": TINY.context_dim, "content_dim": TINY.content_dim}
    return [
        "stage=customize",
        *(setting for setting in TRAIN if not setting.startswith(("experiment=", "model."))),
        *(f"model.{name}={value}".replace(" ", "").lower() for name, value in model.items()),
        f"model.max_frames={TINY.max_frames}",
        f"images={root / 'images'}",
        f"data.root={root / 'prior'}",
        f"init.checkpoint={root / 'start'}",
        f"output={output}",
        "data.batch_clips=2",
        "trainer.accelerator=cpu",
        "trainer.precision=32-true",
        "trainer.devices=1",
        "strategy=single",
        "ema.decays=[0.9]",
        *FREQUENT,
    ]


def prior(root: Path, output: Path) -> list[str]:
    return [
        "stage=prior",
        "prior_model=tiny",
        f"data.root={root / 'set'}",
        "data.batch=4",
        "trainer.accelerator=cpu",
        "trainer.precision=32-true",
        f"output={output}",
        "log.wandb=disabled",
        "log.every=1",
        "validation.every=0",
        "stage.steps=60",
        "checkpoint.every=5",
    ]


# gen1-data


def data(root: Path, output: Path) -> list[str]:
    return [
        f"source={root / 'videos'}",
        f"output={output}",
        *RECIPE,
        "recipe.task_seconds=0.1",
        "device=cpu",
        "workers=2",
    ]


def make_videos(folder: Path) -> None:
    (folder / "videos").mkdir()
    for number in range(4):
        make_video(folder / "videos" / f"{number}.mp4", frames=44, width=112, height=64)
    (folder / "videos" / "broken.mp4").write_text("I am no video")


def made(output: Path) -> dict[str, str]:
    assert not (output / ".staging").exists()
    return set_digests(output)


def has_command_line(word: bytes, times: int = 1) -> Callable[[Process], Moment]:
    return lambda process: lambda: command_lines(process.pid).count(word) >= times


def the_workers_work(process: Process) -> Moment:
    def working() -> set[int]:
        """The processes that write a shard of a task, whose names are in those of its folder."""
        written = process.output.glob(".staging/.task-*/.*.tmp")
        return {int(path.parent.name.split(".")[2].partition("-")[0]) for path in written}

    return lambda: bool(working() & set(session(process.pid)))


# gen1-edit, gen1-eval, gen1-export


def make_model(folder: Path) -> None:
    write_checkpoint(folder / "runs" / "stage5")
    write_prior(folder / "runs" / "prior")
    make_video(folder / "clip.mp4", frames=4, width=112, height=64)
    rows = [f"{folder / 'clip.mp4'},{prompt}\n" for prompt in ("red", "a green cube")]
    (folder / "pairs.csv").write_text("video,prompt\n" + "".join(rows))


def edit(root: Path, output: Path) -> list[str]:
    model = [f"checkpoint={root / 'runs' / 'stage5'}", f"prior={root / 'runs' / 'prior'}", "device=cpu"]
    return [*model, f"input={root / 'clip.mp4'}", "prompt=red", "frames=2", "steps=4", f"output={output}"]


def evaluation(root: Path, output: Path) -> list[str]:
    model = [f"checkpoint={root / 'runs' / 'stage5'}", f"prior={root / 'runs' / 'prior'}", "device=cpu"]
    sweep = ["omega_t=[1.0]", "t_s=[0]", "methods=[gen1,per_frame]", "steps=1"]
    return [*model, f"data={root / 'pairs.csv'}", "frames=2", *sweep, f"output={output}"]


def evaluated(output: Path) -> dict[str, str]:
    """The results without the times."""
    rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    return {str(n): json.dumps({k: v for k, v in row.items() if k != "seconds"}) for n, row in enumerate(rows)}


def it_has_results(process: Process) -> Moment:
    def results() -> int:
        return sum(1 for path in process.output.rglob("*.json") if path.parent != process.output)

    before = results()
    return lambda: results() > before


def export(root: Path, output: Path) -> list[str]:
    return [f"checkpoint={root / 'runs' / 'stage5'}", "prior=none", f"output={output}"]


def owner(folder: Path) -> int | None:
    """The process that works on a folder."""
    try:
        found = parse_owner((folder / LOCK).read_text())
    except FileNotFoundError:
        return None
    return found and found.pid


def it_writes(process: Process) -> Moment:
    return lambda: owner(process.output.with_name(f".{process.output.name}.tmp")) in session(process.pid)


def page(root: Path, output: Path) -> list[str]:
    return ["ui=true", f"checkpoint={root / 'runs' / 'stage5'}", f"ui_port={free_ports(1)[0]}", "device=cpu"]


COMMANDS = {
    "training on one process": training("single", devices=1),
    "training with ddp": training("ddp"),
    "training with zero1": training("zero1"),
    "training with zero2": training("zero2"),
    "training with zero3": training("zero3"),
    "training with fsdp": training("fsdp"),
    "customization": Command(
        "gen1_train.train", "train", "gen1-train", customization, TRAINING, trained, saves=True, prepare=make_world
    ),
    "the prior": Command(
        "gen1_train.train",
        "train",
        "gen1-train",
        prior,
        TRAINING,
        trained,
        saves=True,
        prepare=lambda folder: make_shard_set(folder / "set", clips=4, images=40),
    ),
    "gen1-data": Command(
        "data_tools.main",
        "data",
        "gen1-data",
        data,
        {
            "it imports": it_imports,
            "it plans": has_command_line(b"gen1_train.video.decoding.worker"),
            "the workers start": has_command_line(b"spawn_main", 2),
            "the workers work": the_workers_work,
        },
        made,
        success=INCOMPLETE,
        prepare=make_videos,
    ),
    "gen1-edit": Command(
        "gen1_train.edit",
        "edit",
        "gen1-edit",
        edit,
        {"it imports": it_imports, "it samples": lambda process: lambda: "step 1 of" in process.printed()},
        lambda output: {output.name: digest(output)},
        output="edit.mp4",
        prepare=make_model,
    ),
    "gen1-eval": Command(
        "gen1_train.evaluate",
        "evaluate",
        "gen1-eval",
        evaluation,
        {
            "it imports": it_imports,
            "it has begun": lambda process: process.output.exists,
            "it has results": it_has_results,
        },
        evaluated,
        prepare=make_model,
    ),
    "gen1-export": Command(
        "gen1_train.export",
        "export",
        "gen1-export",
        export,
        {
            "it imports": it_imports,
            "it writes": it_writes,
        },
        digests,
        prepare=make_model,
    ),
    "the page": Command(
        "gen1_train.edit",
        "edit",
        "gen1-edit",
        page,
        {
            "it imports": it_imports,
            "it serves": lambda process: lambda: "the page is at" in process.printed(),
        },
        lambda output: {},
        prepare=make_model,
    ),
}
