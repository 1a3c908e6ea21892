"""Measures the cost of training in addition to the network. JSON lines on stdout, a table on stderr.

    python benchmarks/train.py                                  # all questions for this device
    python benchmarks/train.py --suite overhead --rounds 8 --clips 4
    python benchmarks/train.py --append                         # also appends the tables to RESULTS.md
    python benchmarks/train.py --device cuda                    # Stable Diffusion 1.5's full size in bf16

overhead    a step of a run as users start it (loader, draws, clipping, guard, averages, logging, clock, Lightning, and
            with zero2 DeepSpeed) compared with a bare loop of the same forward, backward and fused AdamW, alternating
            within that run: see training/turns.py. The ratio is of wall or CPU seconds, without checkpoints and
            validation. With --processes 2 only the run exchanges gradients, which is then part of its overhead
host        the same with the UNet's full depth and 0.2 M weights on tiny frames, for every strategy but zero3, whose
            weights no rank has as a whole: nearly all of such a step is the host's time, for which a GPU waits where
            its own work is shorter. With one process, ddp and ZeRO do all that they do in each of many
ema         the averages' share of a step at the paper's 448x256, and their bytes per second, from which the share at
            other sizes is predicted
draws       milliseconds of a clip's noise, drawn as the loader's workers do or by a counter-based generator, and
            whether the latter's numbers are the same bits everywhere: see training/draws.py
checkpoint  seconds per GB of gathering, writing, syncing and hashing, alternating with torch.save and fsync of the same
            tensors to the same disk, that of TMPDIR; then the delay of a run by a checkpoint:
            see training/saving.py
parts       seconds for which training waits when --processes ranks write a checkpoint of --gigabytes, and bytes per
            second of writing it, in turns with plain writes of all ranks to the same disk: see training/parts.py
scale       what a start costs a cluster of 8, 64 and 1024 ranks: requests to the store, files opened, bytes hashed,
            collectives until the first step: see training/scale.py
cuda        runs at full size: MFU, frames per second and peak memory for several batch sizes, and for each switch
            alone; the numbers are from the run's metrics.csv
"""

# ruff: noqa: E402
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # replaces this folder, so that `benchmarks` can be imported

import argparse
import functools
import os
import shutil
import statistics
import subprocess
from collections.abc import Iterator

import torch

from benchmarks.questions import Row, answer, append_tables
from benchmarks.ranks import in_ranks
from benchmarks.synthetic_runs import TINY, composed, prepare_run, rows_of, run_training, train_with
from benchmarks.training.draws import ask_draws
from benchmarks.training.parts import ask_parts
from benchmarks.training.saving import ask_checkpoint
from benchmarks.training.scale import ask_scale
from benchmarks.training.turns import Turns
from benchmarks.unet_step import Setting, commit, machine, ours, release_memory, stepper, timed
from gen1_train.batch import Pool
from gen1_train.cli.app import settings
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.checkpoints import ema, state
from gen1_train.training.checkpoints.counters import Counters
from gen1_train.training.config import TrainConfig
from gen1_train.training.planning.throughput import step_flops
from gen1_train.training.stages import stage_unet

PAPER_CLIP = Pool("video", 448, 256, 8)
# A fifth of the time of model=small. Its FLOPs per parameter are those of any width, so passes over the parameters have
# the same share as at full size.
NARROW = ["model=small", "model.layers=1", "model.channels=[32,64,128,128]", "model.heads=[2,4,8,8]"]
BLOCK = 4  # steps in a turn of the run or the bare loop
EXTRA_STEPS = 3  # after the last turn, so that no turn includes a finished loader or the run's last checkpoint
WARM_UP = 5  # uncounted steps of a GPU run, in which kernels are chosen and the caching allocator fills

# of the H100 SXM, for predictions
H100_BANDWIDTH = 3.0e12  # bytes per second of a pass over memory
H100_FLOPS = 0.4 * 800e12  # 40 % of the rate of large products in bfloat16


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # for the runs; otherwise Lightning sets it for some
    if arguments.device == "cpu":  # before any process that imports DeepSpeed starts
        os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    questions = {"overhead": ask_overhead, "host": ask_host, "ema": ask_ema, "draws": ask_draws}
    questions |= {"checkpoint": ask_checkpoint, "parts": ask_parts, "scale": ask_scale}
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
        append_tables(ROOT / "benchmarks" / "RESULTS.md", "The overhead of training", common, rows)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--suite", dest="only", choices=("overhead", "host", "ema", "draws", "checkpoint", "parts", "scale", "cuda")
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of each process")
    parser.add_argument("--append", action="store_true", help="add tables to benchmarks/RESULTS.md")
    parser.add_argument("--strategies", nargs="+", default=["single", "zero2"], help="overhead")
    parser.add_argument("--processes", type=int, default=1, help="overhead: for strategies other than single")
    parser.add_argument("--gigabytes", type=float, default=6.0, help="parts: twice as much memory is needed")
    parser.add_argument("--clip", type=int, nargs=2, default=[448, 256], metavar=("WIDTH", "HEIGHT"), help="overhead")
    parser.add_argument("--clips", type=int, default=1, help="overhead: per process and step")
    parser.add_argument("--settings", nargs="+", default=[], help="overhead: settings of gen1-train, e.g. model=tiny")
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
    yield from overheads(arguments, folder, clip, model, arguments.strategies)


def ask_host(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    model = [*TINY, f"trainer.accelerator={arguments.device}", "trainer.precision=32-true", *arguments.settings]
    strategies = ["single", "ddp", "zero1", "zero2", "fsdp"]
    yield from overheads(arguments, folder, Pool("video", 64, 64, 8), model, strategies)


def overheads(
    arguments: argparse.Namespace, folder: Path, clip: Pool, model: list[str], strategies: list[str]
) -> Iterator[Row]:
    start = prepare_run(folder, clip, model)
    for strategy in strategies:
        processes = 1 if strategy == "single" else arguments.processes
        overrides = [
            *start,
            f"output={folder / strategy}",
            f"strategy={strategy}",
            f"trainer.devices={processes}",
            f"data.batch_clips={arguments.clips * processes}",
            "data.workers=1",
            f"log.every={BLOCK}",
            f"stage.steps={BLOCK * (arguments.rounds + 1) + EXTRA_STEPS}",
        ]
        yield {
            "strategy": strategy,
            "processes": processes,
            "threads": arguments.threads,
            "clips": arguments.clips,
            "clip": f"{clip.frames}x{clip.width}x{clip.height}",
            **launch(overrides, processes),
            **phases(rows_of(composed(overrides))[1:-1]),
        }


def launch(overrides: list[str], processes: int) -> Row:
    """Runs training in separate processes and returns the row of rank 0."""
    return in_ranks(take_turns, processes, overrides)[0]


def take_turns(rank: int, overrides: list[str]) -> Row:
    """Runs `gen1-train` in this process, one rank, with Turns as the last callback."""
    os.dup2(2, 1)  # standard output is for JSON lines
    turns = Turns(BLOCK)
    train_with(turns, overrides)
    return turns.row()


def phases(rows: list[dict[str, float]]) -> Row:
    """Returns milliseconds per step by the run's own clock, in which the bare loop counts as `other`."""
    names = {"data_wait": "data_wait", "ema": "time_ema", "optimizer": "time_optimizer"}
    means = {
        phase: statistics.median(1e3 * row[name] * row["seconds"] / BLOCK for row in rows)
        for phase, name in names.items()
    }
    return {f"{phase}_ms": round(mean, 2) for phase, mean in means.items()}


# ema


def ask_ema(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Alternates a step, which empties the caches, with updates of 1, 2 and 4 averages."""
    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    channels = [320, 640, 1280, 1280] if device.type == "cuda" else [64, 128, 256, 256]
    contender = ours(Setting(channels, None, 8, 32, 56, device, dtype))
    # averages and master weights are in float32, as in a run
    masters = [weight.detach().float() for weight in contender.unet.parameters()]
    training_state = state.PlainState(torch.optim.AdamW(masters))
    decays = {count: [1 - 10.0 ** -(i + 2) for i in range(count)] for count in (1, 2, 4)}
    counters = Counters(averaged={ema.name_of(decay): 0 for decay in decays[4]})
    for name in counters.averaged:
        training_state.create_average(name)
    parameters = sum(master.numel() for master in masters)
    step = stepper(contender, Setting(channels, None, 8, 32, 56, device, dtype).inputs())
    updates = {
        count: functools.partial(ema.update, training_state, counters, values) for count, values in decays.items()
    }
    steps: list[float] = []
    seconds: dict[int, list[float]] = {count: [] for count in decays}
    for _ in range(arguments.rounds + 1):
        release_memory()
        steps.append(timed(step, device))
        for count, update in updates.items():
            seconds[count].append(timed(update, device))
    for count in decays:
        shares = [update / step for update, step in zip(seconds[count][1:], steps[1:])]
        yield {
            "averages": count,
            "parameters": parameters,
            "clips": 1,
            "step_s": round(statistics.median(steps[1:]), 3),
            "ema_ms": round(1e3 * statistics.median(seconds[count][1:]), 2),
            "share": round(statistics.median(shares), 5),
            "GB_per_s": round(bytes_moved(parameters, count) / statistics.median(seconds[count][1:]) / 1e9, 1),
        }
    yield from predict_shares()


def bytes_moved(parameters: int, averages: int) -> int:
    """Returns the bytes moved: for each average, the master and the average are read, and the average is written."""
    return 12 * parameters * averages


def predict_shares() -> Iterator[Row]:
    """Predicts the share for Stable Diffusion 1.5 on H100s: one average, partitioned over the ranks by ZeRO."""
    config = composed(["stage=4", "model=sd15"])
    unet = stage_unet(config.model, config.stage)
    parameters = parameters_of(unet)
    for clips, ranks in ((1, 1), (8, 1), (8, 8)):
        step = clips * step_flops(unet, 32, 56, 8).total / H100_FLOPS
        update = bytes_moved(parameters, 1) / ranks / H100_BANDWIDTH
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
    """Runs full-size training on one GPU; a run that does not fit yields a row with its error."""
    start = prepare_run(folder, PAPER_CLIP, ["model=sd15"])
    known = settings(TrainConfig)  # in this version
    cases = [(clips, switch) for switch in ("", EVERYWHERE) for clips in (1, 2, 4, 8)]
    cases += [(4, switch) for switch in SWITCHES if switch.partition("=")[0] in known]
    for clips, switch in cases:
        overrides = [
            *start,
            f"output={folder / 'run'}",
            f"data.batch_clips={clips}",
            "data.workers=4",
            *filter(None, [switch]),
        ]
        overrides += ["strategy=zero2", "trainer.accelerator=cuda", "trainer.devices=1", "log.every=5"]
        overrides += [f"stage.steps={WARM_UP + 5 * arguments.rounds}", "checkpoint.every=100000"]
        yield {"clips": clips, "switch": switch, **speed(overrides)}
        shutil.rmtree(folder / "run", ignore_errors=True)  # its last checkpoint takes 17 GB


def speed(overrides: list[str]) -> Row:
    try:
        rows = run_training(overrides)
    except subprocess.CalledProcessError as error:
        return {"failed": (error.stderr.strip().splitlines() or ["no error message"])[-1][:200]}
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
