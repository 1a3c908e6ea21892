"""The estimators' fit: `python -m miniature.fit [autoencoder|depth|clip|all] [--steps N] [--output DIR]`.

Writes `autoencoder/` (diffusers), `depth/` (transformers), `clip/` (open_clip local-dir) and REPORT.json.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import torch

from miniature import WEIGHTS
from miniature.arguments import Parser
from miniature.fit import autoencoder, clip, depth
from miniature.tiny import depth_processor, save_clip

logger = logging.getLogger(__name__)
FITS = {"autoencoder": autoencoder.fit, "depth": depth.fit, "clip": clip.fit}
STEPS = {"autoencoder": 5000, "depth": 1800, "clip": 1100}


def save(name: str, model: Any, folder: Path) -> None:
    """Writes a fitted model in the format that its library loads."""
    if name == "clip":
        save_clip(model, folder)
        return
    model.save_pretrained(folder)
    if name == "depth":
        depth_processor().save_pretrained(folder)


def record(path: Path, name: str, entry: dict[str, Any]) -> None:
    """Replaces one estimator's entry in the report."""
    report = json.loads(path.read_text()) if path.exists() else {}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(dict(sorted({**report, name: entry}.items())), indent=2) + "\n")
    partial.replace(path)


def fit(name: str, steps: int, threads: int, output: Path) -> None:
    """Fits and saves one estimator, and records it in the report."""
    start = time.monotonic()
    model, quality = FITS[name](steps)
    seconds = round(time.monotonic() - start)
    save(name, model, output / name)
    entry = {
        "command": f"python -m miniature.fit {name} --steps {steps} --threads {threads}",
        "seconds": seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
        "held_out": quality,
    }
    record(output / "REPORT.json", name, entry)
    logger.info("%s: %s", name, json.dumps(entry))


def main() -> None:
    parser = Parser(prog="python -m miniature.fit", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("estimator", nargs="?", default="all", choices=[*FITS, "all"])
    parser.add_argument("--steps", type=int, help="optimizer steps; the default depends on the estimator")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with parser.command():
        for name in FITS if arguments.estimator == "all" else [arguments.estimator]:
            fit(name, arguments.steps or STEPS[name], arguments.threads, arguments.output)


if __name__ == "__main__":
    main()
