"""The panels of a run, defined once: `gen1-train report=` draws them on a page, `gen1-train dashboard=` in W&B.

docs/metrics.md documents every column; a test compares it with the panels.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

OTHER = "Other columns"  # the section for columns that no panel names


class Style(Enum):
    LINES = "lines"
    EXACT = "exact"  # lines with little or no noise, which are not smoothed
    POINTS = "points"  # values that are names, such as a rank
    AREAS = "areas"  # shares of a whole, stacked


@dataclass(frozen=True)
class Panel:
    title: str
    columns: tuple[str, ...]  # in the order of the legend; a trailing * matches any suffix
    unit: str  # of the vertical axis; "" for none
    about: str  # one line under the title
    style: Style = Style.LINES
    log: bool = False  # logarithmic vertical axis, if all values are positive

    def matching(self, columns: Iterable[str]) -> list[str]:
        """Returns those of the columns that the panel shows, in its order."""
        present = sorted(columns)
        matches = [name for pattern in self.columns for name in present if _matches(name, pattern)]
        return list(dict.fromkeys(matches))


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


@dataclass(frozen=True)
class Section:
    title: str
    panels: tuple[Panel, ...]


QUARTERS = range(1, 5)
LEVELS = range(8)
TIMES = ("forward", "backward", "optimizer", "ema", "checkpoint", "validation", "other")

LOSS = Section(
    "Loss",
    (
        Panel(
            "Training loss",
            ("loss", "loss_image", "loss_video"),
            "MSE of v",
            "Mean over the samples since the last row: all, images, clips.",
            log=True,
        ),
        Panel(
            "Validation loss",
            ("val_loss", "val_loss_ema"),
            "MSE of v",
            "Fixed clips, noise and timesteps: shows whether the model learns. Raw and EMA weights.",
            Style.EXACT,
            log=True,
        ),
        Panel(
            "Subject loss",
            ("subject_loss", "subject_loss_ema"),
            "MSE of v",
            "Customization: held-out images of the subject, fixed noise and timesteps. Raw and EMA weights.",
            Style.EXACT,
            log=True,
        ),
        Panel(
            "Above the best validation",
            tuple(f"{loss}{kind}_above_best" for loss in ("val_loss", "subject_loss") for kind in ("", "_ema")),
            "share",
            "Customization: excess of each loss over its best so far; staying above customize.rise causes a warning.",
            Style.EXACT,
        ),
        Panel(
            "Training loss by timestep",
            tuple(f"loss_t{quarter}" for quarter in QUARTERS),
            "MSE of v",
            "By quarters of the diffusion timestep; t1 has the least noise.",
            log=True,
        ),
        Panel(
            "Validation by timestep",
            tuple(f"val_loss_t{quarter}" for quarter in QUARTERS),
            "MSE of v",
            "By quarters of the timestep, at fixed clips; raw weights.",
            Style.EXACT,
            log=True,
        ),
        Panel(
            "Validation by timestep, EMA",
            tuple(f"val_loss_ema_t{quarter}" for quarter in QUARTERS),
            "MSE of v",
            "By quarters of the timestep, at fixed clips; EMA weights.",
            Style.EXACT,
            log=True,
        ),
        Panel(
            "Training loss by t_s",
            tuple(f"loss_level_{level}" for level in LEVELS),
            "MSE of v",
            "By rounds of blur of the structure; level 0 sees all of it and is easiest.",
            log=True,
        ),
    ),
)
OPTIMIZATION = Section(
    "Optimization",
    (
        Panel(
            "Gradient norm",
            ("grad_norm", "grad_norm_max"),
            "",
            "Before clipping: mean and maximum over the steps since the last row.",
            log=True,
        ),
        Panel("Learning rate", ("lr",), "", "Of AdamW, in the row's last step.", Style.EXACT),
        Panel("Skipped steps", ("skipped_steps",), "steps", "Skipped since the run began.", Style.EXACT),
    ),
)
DATA = Section(
    "Data",
    (
        Panel("Image steps", ("image_share",), "share", "Share of all steps since the run began.", Style.EXACT),
        Panel("Dropped content", ("content_dropped",), "share", "Share of the samples, for unconditional guidance."),
        Panel(
            "Replaced samples",
            ("samples_replaced", "replaced_*"),
            "samples",
            "Unreadable samples that were replaced by others since the last row, by reason.",
            Style.EXACT,
        ),
    ),
)
SPEED = Section(
    "Speed",
    (
        Panel(
            "Where the time goes",
            ("data_wait", *(f"time_{phase}" for phase in TIMES)),
            "share",
            "Shares of the wall time, mean over the ranks.",
            Style.AREAS,
        ),
        Panel(
            "Waiting for data",
            ("data_wait",),
            "share",
            "Share of the wall time that training waits for the loader; below 0.05 it does not matter.",
        ),
        Panel("Samples", ("samples_per_second",), "1/s", "Clips and images of all ranks."),
        Panel("Frames", ("frames_per_second",), "1/s", "Of all ranks; comparable between image and video steps."),
        Panel("Computed", ("tflops_per_second",), "TFLOP/s", "Of all ranks, computed from the model's shapes."),
        Panel(
            "MFU",
            ("mfu", "mfu_peak"),
            "share",
            "Share of the rate of large matrix products, measured at the start; of the peak in the GPU's data sheet.",
        ),
        Panel("Time of a row", ("seconds",), "s", "Wall time since the last row.", log=True),
        Panel("Memory", ("memory_gigabytes",), "GB", "Peak over the ranks: allocated on a GPU, or resident on a CPU."),
        Panel(
            "Slowest rank's excess",
            ("slowest_excess",),
            "share",
            "Time of the slowest rank in excess of the mean; above 0.1, check that machine.",
        ),
        Panel(
            "Slowest rank",
            ("slowest_rank",),
            "rank",
            "A row of points means always the same machine.",
            Style.POINTS,
        ),
    ),
)
PREDICTORS = (
    "",
    "_ema",
    "_text",
    "_mean_image",
)  # weights, average, two baselines: training/prior/validation.py
PRIOR = Section(
    "Prior",
    (
        Panel(
            "Prior's loss",
            ("x_loss", "val_x_loss", "val_x_loss_ema"),
            "MSE of x0",
            "Of scaled image embeddings; the mean image has 1. Held-out pairs at fixed noise and timesteps.",
            log=True,
        ),
        Panel(
            "Cosine to the true image",
            tuple(f"val_cosine{predictor}" for predictor in PREDICTORS),
            "cosine",
            "Held-out pairs: the prior's prediction, the text embedding itself, and the mean image embedding.",
            Style.EXACT,
        ),
        Panel(
            "Closest to its own image",
            tuple(f"val_own{predictor}" for predictor in PREDICTORS),
            "share",
            "Share of the held-out pairs whose own image is the closest of all held-out ones.",
            Style.EXACT,
        ),
        Panel("Epochs", ("epochs",), "", "How often each pair was read since the run began.", Style.EXACT),
    ),
)
SECTIONS = (LOSS, PRIOR, OPTIMIZATION, DATA, SPEED)


def sections_for(columns: Iterable[str]) -> list[Section]:
    """Returns the sections and panels with any of the columns; a last section has those that no panel names."""
    present = [name for name in columns if name != "step"]
    sections = [Section(s.title, tuple(panel for panel in s.panels if panel.matching(present))) for s in SECTIONS]
    named = {name for section in SECTIONS for panel in section.panels for name in panel.matching(present)}
    rest = tuple(Panel(name, (name,), "", "A column without its own panel.") for name in present if name not in named)
    return [section for section in (*sections, Section(OTHER, rest)) if section.panels]
