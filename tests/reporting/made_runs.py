"""Run folders like those of long runs, without training: seeded, with the incidents that a page must show."""

import csv
import json
from pathlib import Path

import numpy as np
import yaml

CONFIG = {"stage": {"name": "4", "steps": 25_000, "predecessor": "3"}, "name": "gen1", "optim": {"lr": 3e-5}}
PHASES = {"forward": 0.27, "backward": 0.52, "optimizer": 0.06, "ema": 0.01}


def write_run(
    folder: Path,
    columns: dict[str, np.ndarray],
    steps: np.ndarray,
    config: dict[str, object] | None = CONFIG,
    checkpoint: tuple[int, bool] | None = None,
) -> Path:
    """Writes a run folder: nan becomes an empty cell, infinity a loss that is not finite."""
    folder.mkdir(parents=True)
    with open(folder / "metrics.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["step", *columns])
        for row, step in enumerate(steps):
            cells = [values[row] for values in columns.values()]
            writer.writerow([step, *("" if np.isnan(cell) else f"{cell:.9g}" for cell in cells)])
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    if checkpoint is not None:
        path = folder / "checkpoints" / f"step-{checkpoint[0]:08d}"
        path.mkdir(parents=True)
        (path / "checkpoint.json").write_text(json.dumps({"step": checkpoint[0], "finished": checkpoint[1]}))
    return folder


def long_columns(steps: np.ndarray, seed: int = 0, levels: int = 8) -> dict[str, np.ndarray]:
    """Returns all columns of a realistic run: noise, warmup, regular validation, two spikes, a slow machine."""
    rng, count = np.random.default_rng(seed), len(steps)
    far = steps / steps[-1]

    def noisy(mean: np.ndarray | float, spread: float) -> np.ndarray:
        return mean * np.exp(rng.normal(0, spread, count))

    level = 0.115 + 0.07 * np.exp(-steps / 2500) - 0.012 * far
    made = {
        "loss": noisy(level, 0.06),
        "loss_image": noisy(level * 1.15, 0.16),
        "loss_video": noisy(level * 0.98, 0.07),
    }
    for quarter, factor in enumerate((2.1, 0.95, 0.55, 0.4), start=1):
        made[f"loss_t{quarter}"] = noisy(level * factor, 0.09)
    for number in range(levels):
        made[f"loss_level_{number}"] = noisy(level * (0.9 + 0.035 * number), 0.12)
    validated = steps % 500 == 0
    for name, factor, lag in (("val_loss", 1.02, 0.0), ("val_loss_ema", 0.97, 0.03 * np.exp(-steps / 1500))):
        made[name] = np.where(validated, noisy(level * factor + lag, 0.008), np.nan)
        for quarter, share in enumerate((2.1, 0.95, 0.55, 0.4), start=1):
            made[f"{name}_t{quarter}"] = np.where(validated, noisy(level * factor * share, 0.012), np.nan)
    made["grad_norm"] = noisy(0.35 + 1.4 * np.exp(-steps / 400), 0.12)
    made["grad_norm_max"] = made["grad_norm"] * (1 + rng.exponential(0.5, count))
    made["grad_norm_max"][[count // 3, count * 2 // 3]] *= [40, 90]
    made["lr"] = 3e-5 * np.minimum(1, steps / 1000)
    made["skipped_steps"] = (steps > steps[count // 3]) * 1.0 + (steps > steps[count * 2 // 3])
    made["image_share"] = 0.125 + rng.normal(0, 0.2, count) / np.sqrt(steps)
    made["content_dropped"] = rng.binomial(1152, 0.1, count) / 1152
    made["samples_replaced"] = rng.poisson(0.02, count) * 1.0
    made["replaced_checksum"] = made["samples_replaced"]
    return made | speed_columns(steps, rng)


def speed_columns(steps: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns the time columns for rows of ten steps, on 32 ranks with a slow one in the last third."""
    count = len(steps)
    late = steps > steps[-1] * 0.7
    spent = {"data_wait": np.abs(rng.normal(0.012, 0.008, count)) + late * 0.06}
    spent |= {f"time_{name}": np.full(count, share) * rng.normal(1, 0.01, count) for name, share in PHASES.items()}
    spent["time_checkpoint"] = (steps % 1000 == 0) * 0.5
    spent["time_validation"] = (steps % 500 == 0) * 0.35
    spent["time_other"] = np.full(count, 0.02)
    total = sum(spent.values())
    seconds = 92 * total / np.median(total)
    made: dict[str, np.ndarray] = {"seconds": seconds}
    made["samples_per_second"] = 10 * 1152 * 1.9 / seconds
    made["frames_per_second"] = 10 * 1152 * 8 / seconds
    made["tflops_per_second"] = 10 * 10_200 / seconds
    made["mfu"] = made["tflops_per_second"] / 32 / 92
    made["mfu_peak"] = made["tflops_per_second"] / 32 / 312
    made |= {name: share / total for name, share in spent.items()}
    made["slowest_rank"] = np.where(late, 17, rng.integers(0, 32, count)) * 1.0
    made["slowest_excess"] = np.abs(rng.normal(0.03, 0.01, count)) + late * 0.11
    made["memory_gigabytes"] = 61.3 + (steps > 4000) * 1.2
    return made
