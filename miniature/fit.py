"""Fit the miniature estimators: `python -m miniature.fit [autoencoder|depth|clip|all] [--steps N] [--output DIR]`.

Writes `autoencoder/` (diffusers), `depth/` (transformers), `clip/` (open_clip local-dir) and REPORT.json.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from miniature import fit_autoencoder, fit_clip, fit_depth
from miniature.arguments import Parser
from miniature.tiny import depth_processor, save_clip

WEIGHTS = Path(__file__).parent / "weights"
FITS = {"autoencoder": fit_autoencoder.fit, "depth": fit_depth.fit, "clip": fit_clip.fit}
STEPS = {"autoencoder": 5000, "depth": 1800, "clip": 1100}


def save(name: str, model: Any, folder: Path) -> None:
    """Write a fitted model in the format its library loads."""
    if name == "clip":
        save_clip(model, folder)
        return
    model.save_pretrained(folder)
    if name == "depth":
        depth_processor().save_pretrained(folder)


def record(path: Path, name: str, entry: dict[str, Any]) -> None:
    """Replace one estimator's entry in the report."""
    report = json.loads(path.read_text()) if path.exists() else {}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(dict(sorted({**report, name: entry}.items())), indent=2) + "\n")
    partial.replace(path)


def main() -> None:
    parser = Parser(prog="python -m miniature.fit", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("estimator", nargs="?", default="all", choices=[*FITS, "all"])
    parser.add_argument("--steps", type=int, help="optimiser steps; the default is each estimator's own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in FITS if arguments.estimator == "all" else [arguments.estimator]:
        steps = arguments.steps or STEPS[name]
        start = time.monotonic()
        model, quality = FITS[name](steps)
        seconds = round(time.monotonic() - start)
        save(name, model, arguments.output / name)
        entry = {
            "command": f"python -m miniature.fit {name} --steps {steps} --threads {arguments.threads}",
            "seconds": seconds,
            "parameters": sum(p.numel() for p in model.parameters()),
            "held_out": quality,
        }
        record(arguments.output / "REPORT.json", name, entry)
        print(f"{name}: {json.dumps(entry)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
