"""Measures what customization learns about a subject and what it forgets, in the miniature, by validation losses.

    python -m benchmarks.customize demo/world --output /tmp/customize [--steps 300]

`demo/world` is the output of `make demo`. The subject is one scene that is in no set: a black cone next to a pink box,
both with a zigzag texture that no other scene has, under an evening sky, seen from 24 viewpoints. Every third image is
held out. The prior loss is measured on 16 clips of a world with other seeds. There are four runs from the demo's stage
5: all weights and LoRA, each with and without prior data.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from gen1_train.reporting.rows import read_metrics
from miniature.world.render import render_frame
from miniature.world.scene import SKIES, Scene, Solid
from miniature.world.world import SOURCES, World, write_image, write_world

ROOT = Path(__file__).parents[1]
SUBJECT = (
    Solid("cone", "black", 0.85, 2.2, (-1.0, 0.2), "zigzag"),
    Solid("box", "pink", 0.75, 0.9, (1.1, -0.4), "zigzag", phase=0.6),
)
IMAGES = 24
HEIGHT = 256
WIDTH = 448
QUIET = ["log.wandb=disabled", "validation.edit_every=0", "customize.held_out=3", "data.workers=1", "strategy=single"]
LOSSES = {"subject": "subject_loss_ema", "prior": "val_loss_ema"}


def write_subject(folder: Path) -> None:
    """Writes images of one scene from viewpoints all around it."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, turn in enumerate(np.linspace(-1.2, 1.2, IMAGES)):
        distance, height = 4.8 + 0.4 * (i % 5), 1.5 + 0.3 * (i % 4)
        scene = Scene(SUBJECT, "brown", sky=SKIES[2], camera_turn=float(turn))
        scene = Scene(**{**vars(scene), "camera_distance": distance, "camera_height": height})
        write_image(folder / f"{i:02d}.png", render_frame(scene, 0.0, HEIGHT, WIDTH, supersample=2).pixels)


def call(module: str, *settings: str) -> None:
    subprocess.run([sys.executable, "-m", module, *settings], cwd=ROOT, check=True, stdout=sys.stderr)


def prepare(output: Path) -> None:
    """Writes the subject, and clips that no model was trained on."""
    if not (output / "images").exists():
        write_subject(output / "images")
    if not (output / "others" / "manifest.json").exists():
        write_world(output / "videos", World(clips=16, images=8, seed=5000, frames=40))
        source = f"source={output / 'videos' / SOURCES}"
        call("data_tools.main", source, f"output={output / 'others'}", "recipe=tiny", "workers=1")


def measure(world: Path, output: Path, name: str, settings: list[str]) -> dict[str, float | str]:
    """Runs one customization; returns both losses at the start, at the best step for the subject, and at the end."""
    common = ["stage=customize", "experiment=demo", f"images={output / 'images'}", f"output={output / 'runs'}"]
    start = f"init.checkpoint={world / 'runs' / 'demo' / 'stage5'}"
    call("gen1_train.train", *common, *QUIET, f"name={name}", start, f"validation.root={output / 'others'}", *settings)
    rows: dict[int, dict[str, str]] = {}
    for row in read_metrics(output / "runs" / name / "customize" / "metrics.csv"):
        rows.setdefault(int(row["step"]), {}).update({key: value for key, value in row.items() if value})
    logged = [(step, row) for step, row in rows.items() if LOSSES["subject"] in row]
    losses = [(step, {kind: float(row[key]) for kind, key in LOSSES.items()}) for step, row in logged]
    best_step, best = min(losses, key=lambda entry: entry[1]["subject"])
    result: dict[str, float | str] = {"run": name, "best_step": best_step}
    for moment, values in (("start", losses[0][1]), ("best", best), ("end", losses[-1][1])):
        result |= {f"{kind}_{moment}": value for kind, value in values.items()}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--lora-lr", type=float, default=1e-3)
    parser.add_argument("--runs", nargs="*", help="names of the runs; default: all")
    arguments = parser.parse_args()
    world, output = arguments.world.resolve(), arguments.output.resolve()
    prepare(output)
    prior = f"data.root={world / 'shards'}"
    steps = [f"stage.steps={arguments.steps}", "data.batch_clips=2", "validation.every=50", "checkpoint.every=100"]
    full, lora = [f"optim.lr={arguments.lr}"], ["customize.lora_rank=8", f"optim.lr={arguments.lora_lr}"]
    for name, settings in {
        "full-prior": [prior, *full],
        "full-alone": full,
        "lora-prior": [prior, *lora],
        "lora-alone": lora,
    }.items():
        if not arguments.runs or name in arguments.runs:
            print(json.dumps(measure(world, output, name, [*steps, "trainer.devices=1", *settings])), flush=True)


if __name__ == "__main__":
    main()
