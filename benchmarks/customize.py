"""Customization in the miniature: what it learns of a subject and what it forgets, by its own validation losses.

    python -m benchmarks.customize demo/world --output /tmp/customize [--steps 300]

`demo/world` is what `make demo` leaves. The subject is one scene that is in no set, a black cone beside a
pink box, both of a zigzag texture that no scene has, under an evening sky, seen from 24 places, of which every third
image is held out. The prior is judged on 16 clips of a world of other seeds. Four runs from the stage 5 there: all
weights and LoRA, with and without prior data.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from gen1_train.training.rows import read_metrics
from miniature.render import render_frame
from miniature.scene import SKIES, Scene, Solid
from miniature.world import SOURCES, World, write_image, write_world

ROOT = Path(__file__).parents[1]
SUBJECT = (
    Solid("cone", "black", 0.85, 2.2, (-1.0, 0.2), "zigzag"),
    Solid("box", "pink", 0.75, 0.9, (1.1, -0.4), "zigzag", phase=0.6),
)
IMAGES, HEIGHT, WIDTH = 24, 256, 448
QUIET = ["log.wandb=disabled", "validation.edit_every=0", "customize.held_out=3", "data.workers=1", "strategy=single"]
LOSSES = {"subject": "subject_loss_ema", "prior": "val_loss_ema"}


def write_subject(folder: Path) -> None:
    """Images from all around one scene."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, turn in enumerate(np.linspace(-1.2, 1.2, IMAGES)):
        distance, height = 4.8 + 0.4 * (i % 5), 1.5 + 0.3 * (i % 4)
        scene = Scene(SUBJECT, "brown", sky=SKIES[2], camera_turn=float(turn))
        scene = Scene(**{**vars(scene), "camera_distance": distance, "camera_height": height})
        write_image(folder / f"{i:02d}.png", render_frame(scene, 0.0, HEIGHT, WIDTH, supersample=2).pixels)


def call(module: str, *settings: str) -> None:
    subprocess.run([sys.executable, "-m", module, *settings], cwd=ROOT, check=True, stdout=sys.stderr)


def prepare(output: Path) -> None:
    """The subject, and clips that nobody has trained on."""
    if not (output / "images").exists():
        write_subject(output / "images")
    if not (output / "others" / "manifest.json").exists():
        write_world(output / "videos", World(clips=16, images=8, seed=5000, frames=40))
        source = f"source={output / 'videos' / SOURCES}"
        call("data_tools.main", source, f"output={output / 'others'}", "recipe=tiny", "workers=1")


def measure(world: Path, output: Path, name: str, settings: list[str]) -> dict[str, float | str]:
    """One run -> both losses at its start, at the step that is best for the subject, and at its end."""
    common = ["stage=customize", "experiment=demo", f"images={output / 'images'}", f"output={output / 'runs'}"]
    start = f"init.checkpoint={world / 'runs' / 'demo' / 'stage5'}"
    call("gen1_train.train", *common, *QUIET, f"name={name}", start, f"validation.root={output / 'others'}", *settings)
    rows: dict[int, dict[str, str]] = {}
    for row in read_metrics(output / "runs" / name / "customize" / "metrics.csv"):
        rows.setdefault(int(row["step"]), {}).update({key: value for key, value in row.items() if value})
    logged = [(step, row) for step, row in rows.items() if LOSSES["subject"] in row]
    seen = [(step, {kind: float(row[key]) for kind, key in LOSSES.items()}) for step, row in logged]
    best, losses = min(seen, key=lambda one: one[1]["subject"])
    found: dict[str, float | str] = {"run": name, "best_step": best}
    for when, values in (("start", seen[0][1]), ("best", losses), ("end", seen[-1][1])):
        found |= {f"{kind}_{when}": value for kind, value in values.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--lora-lr", type=float, default=1e-3)
    parser.add_argument("--runs", nargs="*", help="names of runs; else all")
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
