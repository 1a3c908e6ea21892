"""The estimators' fit: `python -m miniature.fit [autoencoder|depth|clip|all] [--variant large] [--output DIR]`.

Writes `autoencoder/` (diffusers), `depth/` (transformers), `clip/` (open_clip local-dir) and REPORT.json. With
--resume FOLDER, a fit that was killed continues where it was.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import torch

from miniature.arguments import Parser
from miniature.fit import autoencoder, clip, depth
from miniature.fit.variants import VARIANTS, Variant
from miniature.tiny import depth_processor, save_clip

logger = logging.getLogger(__name__)
FITS = {"autoencoder": autoencoder.fit, "depth": depth.fit, "clip": clip.fit}


def save(name: str, model: Any, variant: Variant, folder: Path) -> None:
    """Writes a fitted model in the format that its library loads."""
    if name == "clip":
        save_clip(model, folder, variant.clip)
        return
    model.save_pretrained(folder)
    if name == "depth":
        depth_processor(variant.depth_size).save_pretrained(folder)


def record(path: Path, name: str, entry: dict[str, Any]) -> None:
    """Replaces one estimator's entry in the report."""
    report = json.loads(path.read_text()) if path.exists() else {}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(dict(sorted({**report, name: entry}.items())), indent=2) + "\n")
    partial.replace(path)


def fit(name: str, variant: str, steps: int, threads: int, output: Path, resume: Path | None = None) -> None:
    """Fits and saves one estimator, and records it in the report."""
    chosen = VARIANTS[variant]
    if resume is not None:
        resume.mkdir(parents=True, exist_ok=True)
        resume = resume / f"{variant}-{name}.pt"
    start = time.monotonic()
    model, quality = FITS[name](steps, chosen, resume)
    seconds = round(time.monotonic() - start)
    save(name, model, chosen, output / name)
    entry = {
        "command": f"python -m miniature.fit {name} --variant {variant} --steps {steps} --threads {threads}",
        "seconds": seconds,  # of the last call
        "parameters": sum(p.numel() for p in model.parameters()),
        "held_out": quality,
    }
    record(output / "REPORT.json", name, entry)
    logger.info("%s: %s", name, json.dumps(entry))


def main() -> None:
    parser = Parser(prog="python -m miniature.fit", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("estimator", nargs="?", default="all", choices=[*FITS, "all"])
    parser.add_argument("--variant", default="small", choices=[*VARIANTS], help="the small miniature or the large one")
    parser.add_argument("--steps", type=int, help="optimizer steps; the default depends on the estimator")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="by default, where the miniature reads them")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="keep the state of unfinished fits there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    variant = VARIANTS[arguments.variant]
    output = arguments.output or variant.folder
    with parser.command():
        for name in FITS if arguments.estimator == "all" else [arguments.estimator]:
            steps = arguments.steps or variant.steps[name]
            fit(name, arguments.variant, steps, arguments.threads, output, arguments.resume)


if __name__ == "__main__":
    main()
