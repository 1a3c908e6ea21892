"""The panels of a run, defined once: `gen1-train report=` draws them as a page, `gen1-train dashboard=` in W&B.

docs/metrics.md tells of every column; a test holds it against these.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

OTHER = "Other columns"  # the section of what no panel names


class Style(Enum):
    LINES = "lines"
    EXACT = "exact"  # lines of what has little noise, or none: there is nothing to smooth
    POINTS = "points"  # values that are names, such as a rank
    AREAS = "areas"  # shares of a whole, on top of each other


@dataclass(frozen=True)
class Panel:
    title: str
    columns: tuple[str, ...]  # in the order of the legend; with a * at the end: all that begin so
    unit: str  # of the vertical axis; "" for a number without
    about: str  # one line under the title
    style: Style = Style.LINES
    log: bool = False  # logarithmic vertical axis, where all values are above zero

    def matching(self, columns: Iterable[str]) -> list[str]:
        """Those of the columns that belong here, in this panel's order."""
        present = sorted(columns)
        found = [name for pattern in self.columns for name in present if _matches(name, pattern)]
        return list(dict.fromkeys(found))


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


@dataclass(frozen=True)
class Section:
    title: str
    panels: tuple[Panel, ...]


QUARTERS, LEVELS = range(1, 5), range(8)
TIMES = ("forward", "backward", "optimizer", "ema", "checkpoint", "validation", "other")

LOSS = Section(
    "Loss",
    (
        Panel(
            "Training loss",
            ("loss", "loss_image", "loss_video"),
            "MSE of v",
            "Mean over the samples since the row before: of all, of images, of clips.",
            log=True,
        ),
        Panel(
            "Validation loss",
            ("val_loss", "val_loss_ema"),
            "MSE of v",
            "Fixed clips, noise and timesteps: the line that tells whether it learns. Raw and EMA weights.",
            Style.EXACT,
            log=True,
        ),
        Panel(
            "Subject loss",
            ("subject_loss", "subject_loss_ema"),
            "MSE of v",
            "Customization: held-out images of the subject, at fixed noise and timesteps. Raw and EMA weights.",
            Style.EXACT,
            log=True,
        ),
        Panel(
            "Above the best validation",
            tuple(f"{loss}{kind}_above_best" for loss in ("val_loss", "subject_loss") for kind in ("", "_ema")),
            "share",
            "Customization: of each loss above its best so far; what stays above customize.rise is warned of.",
            Style.EXACT,
        ),
        Panel(
            "Training loss by timestep",
            tuple(f"loss_t{quarter}" for quarter in QUARTERS),
            "MSE of v",
            "Quarters of the diffusion timestep, t1 with the least noise.",
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
            "Before clipping: mean and largest of the steps since the row before.",
            log=True,
        ),
        Panel("Learning rate", ("lr",), "", "AdamW's, of the row's last step.", Style.EXACT),
        Panel("Skipped steps", ("skipped_steps",), "steps", "Of the optimizer, since the run began.", Style.EXACT),
    ),
)
DATA = Section(
    "Data",
    (
        Panel("Image steps", ("image_share",), "share", "Of all steps since the run began.", Style.EXACT),
        Panel("Dropped content", ("content_dropped",), "share", "Of the samples, for guidance without a condition."),
        Panel(
            "Replaced samples",
            ("samples_replaced", "replaced_*"),
            "samples",
            "Could not be read and were replaced by others since the row before; by reason.",
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
            "Of the wall time, mean over the ranks.",
            Style.AREAS,
        ),
        Panel(
            "Waiting for data",
            ("data_wait",),
            "share",
            "Of the wall time, in which the loader kept training waiting; below 0.05 it does not matter.",
        ),
        Panel("Samples", ("samples_per_second",), "1/s", "Clips and images of all ranks."),
        Panel("Frames", ("frames_per_second",), "1/s", "Of all ranks; comparable over image and video steps."),
        Panel("Computed", ("tflops_per_second",), "TFLOP/s", "Of all ranks, counted from the model's shapes."),
        Panel("MFU", ("mfu",), "share", "Of the rate of large matrix products, measured at the start."),
        Panel("Time of a row", ("seconds",), "s", "Wall time since the row before.", log=True),
        Panel("Memory", ("memory_gigabytes",), "GB", "Peak of the fullest rank: GPU, or resident set on a CPU."),
        Panel(
            "Slowest rank's excess",
            ("slowest_excess",),
            "share",
            "Time of the slowest rank above the mean of all; above 0.1 look at that machine.",
        ),
        Panel("Slowest rank", ("slowest_rank",), "rank", "A line of points is one machine.", Style.POINTS),
    ),
)
WAYS = ("", "_ema", "_text", "_mean_image")  # weights, average; two baselines, see training.prior_validation
PRIOR = Section(
    "Prior",
    (
        Panel(
            "Prior's loss",
            ("x_loss", "val_x_loss", "val_x_loss_ema"),
            "MSE of x0",
            "Of scaled image embeddings; 1 is what the mean image has. Held-out pairs at fixed noise and timesteps.",
            log=True,
        ),
        Panel(
            "Cosine to the true image",
            tuple(f"val_cosine{way}" for way in WAYS),
            "cosine",
            "Of held-out pairs: what the prior makes of the text, the text embedding itself, the mean image embedding.",
            Style.EXACT,
        ),
        Panel(
            "Closest to its own image",
            tuple(f"val_own{way}" for way in WAYS),
            "share",
            "Of held-out pairs, whose own image is the closest of all held-out ones.",
            Style.EXACT,
        ),
        Panel("Epochs", ("epochs",), "", "How often each pair was read since the run began.", Style.EXACT),
    ),
)
SECTIONS = (LOSS, PRIOR, OPTIMIZATION, DATA, SPEED)


def sections_for(columns: Iterable[str]) -> list[Section]:
    """The sections and panels that have any of the columns; the last has one for each that no panel names."""
    present = [name for name in columns if name != "step"]
    shown = [Section(s.title, tuple(panel for panel in s.panels if panel.matching(present))) for s in SECTIONS]
    named = {name for section in SECTIONS for panel in section.panels for name in panel.matching(present)}
    rest = tuple(Panel(name, (name,), "", "Named by no panel.") for name in present if name not in named)
    return [section for section in (*shown, Section(OTHER, rest)) if section.panels]
