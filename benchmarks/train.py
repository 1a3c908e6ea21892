"""What training costs beside the network. JSON lines on stdout, a table on stderr.

    python benchmarks/train.py                                  # all that this device can answer
    python benchmarks/train.py --suite overhead --rounds 8 --clips 4
    python benchmarks/train.py --append                         # adds the tables to RESULTS.md, too
    python benchmarks/train.py --device cuda                    # Stable Diffusion 1.5's full size in bf16

overhead    a step of a run as users start it (loader, draws, clipping, guard, averages, logging, clock, Lightning, and
            under zero2 DeepSpeed) against a bare loop of the same forward, backward and fused AdamW, in turns within
            that run: see turns.py. The ratio is that of wall or CPU seconds; a run makes no checkpoint and no
            validation in this time, whose cost is not one of steps. With --processes 2 gradients are exchanged by the
            run alone, which is then part of its overhead
ema         the averages' share of a step at the paper's 448x256, and the bytes a second that they move: the rate
            tells the share at other sizes, of which some are foretold
checkpoint  seconds a GB of gathering, writing, syncing and hashing, in turns with torch.save and fsync of the same
            tensors to the same disk, TMPDIR's; then for how long a run notices one: see saving.py
cuda        runs at full size: MFU, frames a second and peak memory for batch sizes, and for each switch alone; the
            numbers are the run's own, from its metrics.csv
"""

# ruff: noqa: E402
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # in place of this folder, for `benchmarks`

import argparse
import functools
import os
import shutil
import statistics
import subprocess
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from pytorch_lightning import Trainer

from benchmarks.made_runs import composed, prepared, rows_of, trained
from benchmarks.questions import Row, answer, append_tables
from benchmarks.ranks import in_ranks
from benchmarks.saving import ask_checkpoint
from benchmarks.turns import Turns
from benchmarks.unet_step import Setting, commit, machine, ours, release_memory, stepper, timed
from gen1_train.batch import Pool
from gen1_train.cli import settings
from gen1_train.config import TrainConfig
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training import ema, run, state
from gen1_train.training.counters import Counters
from gen1_train.training.stages import stage_unet
from gen1_train.training.throughput import step_flops

PAPER_CLIP = Pool("video", 448, 256, 8)
# a fifth of the time of model=small; per parameter it has as many FLOPs as at any width, so passes over the parameters
# weigh what they weigh at full size
NARROW = ["model=small", "model.layers=1", "model.channels=[32,64,128,128]", "model.heads=[2,4,8,8]"]
BLOCK = 4  # steps that run and bare loop take in turn
AFTER = 3  # steps after the last turn: no turn has a loader that is done, or the run's last checkpoint, in it
WARM_UP = 5  # steps of a GPU run that are not counted: kernels are chosen, the caching allocator fills

# of the H100 SXM, for what is foretold of it
H100_BANDWIDTH = 3.0e12  # bytes a second that a pass over memory reaches
H100_FLOPS = 0.4 * 800e12  # 40 % of what large products in bfloat16 reach


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # of the runs' processes: else Lightning chooses for some
    if arguments.device == "cpu":  # before a process is started that imports DeepSpeed
        os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    questions = {"overhead": ask_overhead, "ema": ask_ema, "checkpoint": ask_checkpoint}
    if arguments.device == "cuda":
        questions["cuda"] = ask_cuda
    common = {
        "machine": machine(torch.device(arguments.device)),
        "torch": torch.__version__,
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
    }
    rows = answer(questions, arguments, common)
    if arguments.append:
        append_tables(ROOT / "benchmarks" / "RESULTS.md", "Training beside the network", common, rows)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--suite", dest="only", choices=("overhead", "ema", "checkpoint", "cuda"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of each process")
    parser.add_argument("--append", action="store_true", help="add tables to benchmarks/RESULTS.md")
    parser.add_argument("--strategies", nargs="+", default=["single", "zero2"], help="overhead")
    parser.add_argument("--processes", type=int, default=1, help="overhead: of strategies other than single")
    parser.add_argument("--clip", type=int, nargs=2, default=[448, 256], metavar=("WIDTH", "HEIGHT"), help="overhead")
    parser.add_argument("--clips", type=int, default=1, help="overhead: of a process in a step")
    parser.add_argument("--settings", nargs="+", default=[], help="overhead: of gen1-train, such as model=tiny")
    arguments = parser.parse_args()
    if arguments.only == "cuda" and arguments.device == "cpu":
        parser.error("--suite cuda needs --device cuda")
    return arguments


# overhead


def ask_overhead(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    clip = Pool("video", *arguments.clip, 8)
    model = ["model=sd15"] if arguments.device == "cuda" else NARROW
    precision = "bf16-mixed" if arguments.device == "cuda" else "32-true"
    model = [*model, f"trainer.accelerator={arguments.device}", f"trainer.precision={precision}", *arguments.settings]
    start = prepared(folder, clip, model)
    for strategy in arguments.strategies:
        processes = 1 if strategy == "single" else arguments.processes
        given = [
            *start,
            f"output={folder / strategy}",
            f"strategy={strategy}",
            f"trainer.devices={processes}",
            f"data.batch_clips={arguments.clips * processes}",
            "data.workers=1",
            f"log.every={BLOCK}",
            f"stage.steps={BLOCK * (arguments.rounds + 1) + AFTER}",
        ]
        yield {
            "strategy": strategy,
            "processes": processes,
            "threads": arguments.threads,
            "clips": arguments.clips,
            "clip": f"{clip.frames}x{clip.width}x{clip.height}",
            **launch(given, processes),
            **phases(rows_of(composed(given))[1:-1]),
        }


def launch(given: list[str], processes: int) -> Row:
    """A run in processes of its own; the row of its rank 0."""
    return in_ranks(take_turns, processes, given)[0]


def take_turns(rank: int, given: list[str]) -> Row:
    """One rank: `gen1-train` in this process, with Turns among its callbacks."""
    os.dup2(2, 1)  # standard output is for JSON lines
    turns, build = Turns(BLOCK), run.build_trainer

    def with_turns(*known: Any) -> Trainer:
        *others, callbacks = known
        return build(*others, [*callbacks, turns])

    with patch.object(run, "build_trainer", with_turns):
        run.train(composed(given))
    return turns.row()


def phases(rows: list[dict[str, float]]) -> Row:
    """Milliseconds a step of what a run's own clock says; the bare loop's time counts there as `other`."""
    names = {"data_wait": "data_wait", "ema": "time_ema", "optimizer": "time_optimizer"}
    means = {
        phase: statistics.median(1e3 * row[name] * row["seconds"] / BLOCK for row in rows)
        for phase, name in names.items()
    }
    return {f"{phase}_ms": round(mean, 2) for phase, mean in means.items()}


# ema


def ask_ema(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """One step, then an update of each number of averages: the step has emptied the caches."""
    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    channels = [320, 640, 1280, 1280] if device.type == "cuda" else [64, 128, 256, 256]
    contender = ours(Setting(channels, None, 8, 32, 56, device, dtype))
    # the averages are kept, and the masters are, in float32 as in a run
    masters = [weight.detach().float() for weight in contender.unet.parameters()]
    held = state.PlainState(torch.optim.AdamW(masters))
    decays = {count: [1 - 10.0 ** -(i + 2) for i in range(count)] for count in (1, 2, 4)}
    counters = Counters(averaged={ema.name_of(decay): 0 for decay in decays[4]})
    for name in counters.averaged:
        held.create_average(name)
    parameters = sum(master.numel() for master in masters)
    step = stepper(contender, Setting(channels, None, 8, 32, 56, device, dtype).inputs())
    updates = {count: functools.partial(ema.update, held, counters, chosen) for count, chosen in decays.items()}
    steps: list[float] = []
    seconds: dict[int, list[float]] = {count: [] for count in decays}
    for _ in range(arguments.rounds + 1):
        release_memory()
        steps.append(timed(step, device))
        for count, update in updates.items():
            seconds[count].append(timed(update, device))
    for count in decays:
        shares = [own / whole for own, whole in zip(seconds[count][1:], steps[1:])]
        yield {
            "averages": count,
            "parameters": parameters,
            "clips": 1,
            "step_s": round(statistics.median(steps[1:]), 3),
            "ema_ms": round(1e3 * statistics.median(seconds[count][1:]), 2),
            "share": round(statistics.median(shares), 5),
            "GB_per_s": round(moved(parameters, count) / statistics.median(seconds[count][1:]) / 1e9, 1),
        }
    yield from foretold()


def moved(parameters: int, averages: int) -> int:
    """Bytes: for each average a master and the average are read, and the average is written."""
    return 12 * parameters * averages


def foretold() -> Iterator[Row]:
    """A prediction for Stable Diffusion 1.5 on H100s: one average, of which each rank under ZeRO has its part."""
    config = composed(["stage=4", "model=sd15"])
    unet = stage_unet(config.model, config.stage)
    parameters = parameters_of(unet)
    for clips, ranks in ((1, 1), (8, 1), (8, 8)):
        step = clips * step_flops(unet, 32, 56, 8).total / H100_FLOPS
        update = moved(parameters, 1) / ranks / H100_BANDWIDTH
        yield {
            "foretold, SD 1.5, H100, ranks": ranks,
            "clips of a rank": clips,
            "parameters": parameters,
            "step_s": round(step, 3),
            "ema_ms": round(1e3 * update, 2),
            "share": round(update / step, 5),
        }


def parameters_of(config: UNetConfig) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in SpatioTemporalUNet(config).parameters())


# cuda


EVERYWHERE = "model.checkpointing=[true,true,true,true]"
SWITCHES = [
    "model.checkpointing=[true,false,false,false]",
    "strategy.name=single",
    "ema.decays=[]",
    "trainer.precision=32-true",
    "trainer.tf32=false",
    "trainer.compile=true",
]


def ask_cuda(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Full size on one GPU; what does not fit is a row that says so."""
    start = prepared(folder, PAPER_CLIP, ["model=sd15"])
    known = settings(TrainConfig)  # of this version
    tried = [(clips, switch) for switch in ("", EVERYWHERE) for clips in (1, 2, 4, 8)]
    tried += [(4, switch) for switch in SWITCHES if switch.partition("=")[0] in known]
    for clips, switch in tried:
        given = [
            *start,
            f"output={folder / 'run'}",
            f"data.batch_clips={clips}",
            "data.workers=4",
            *filter(None, [switch]),
        ]
        given += ["strategy=zero2", "trainer.accelerator=cuda", "trainer.devices=1", "log.every=5"]
        given += [f"stage.steps={WARM_UP + 5 * arguments.rounds}", "checkpoint.every=100000"]
        yield {"clips": clips, "switch": switch, **speed(given)}
        shutil.rmtree(folder / "run", ignore_errors=True)  # its last checkpoint has 17 GB


def speed(given: list[str]) -> Row:
    try:
        rows = trained(given)
    except subprocess.CalledProcessError as error:
        return {"failed": (error.stderr.strip().splitlines() or ["no word"])[-1][:200]}
    counted_rows = [row for row in rows if row["step"] > WARM_UP]
    return {
        "frames_per_s": round(statistics.median(row["frames_per_second"] for row in counted_rows), 2),
        "TFLOP_per_s": round(statistics.median(row["tflops_per_second"] for row in counted_rows), 1),
        "mfu": round(statistics.median(row["mfu"] for row in counted_rows), 4),
        "data_wait": round(statistics.median(row["data_wait"] for row in counted_rows), 4),
        "ema": round(statistics.median(row["time_ema"] for row in counted_rows), 4),
        "peak_GB": round(max(row["memory_gigabytes"] for row in rows), 2),
    }


if __name__ == "__main__":
    main()
