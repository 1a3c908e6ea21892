"""The settings of sampling and their defaults, declared here once for the editor, gen1-edit and gen1-eval.

Class attributes serve as defaults elsewhere (`steps: int = SamplingConfig.steps`). This module and `guidance` do not
import torch when they are loaded, so that `--help` stays fast.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any

from gen1_train.diffusion.guidance import GuidanceConfig
from gen1_train.diffusion.planes import Choice, read_choice
from gen1_train.errors import UserError, check_choice, check_not_negative

MAX_SPACE_OVERLAP = 0.75  # bounds the number of windows; ours
MAX_STEPS = 1000  # the timesteps of Stable Diffusion's noise schedule


@dataclass
class SamplingConfig:
    """All values are ours: the paper gives none."""

    steps: int = 50  # of the sampler
    solver: str = "ddim"  # or dpm++: the same quality in fewer steps
    t_s: int = 0  # rounds of blur on the structure, 0..7: higher is freer
    structure: Choice | None = None  # strengths of its planes, such as depth+face:0.5; None: all of them at 1
    seed: int = 0  # of the noise: same seed, same frames
    init_strength: float = 1.0  # 1: from pure noise; less: from the input, noised for that share of the steps
    temporal: bool = True  # false: each frame alone, with the temporal layers off in all terms
    overlap: int | None = None  # frames that neighboring windows share in videos longer than one; null: half a window
    space_overlap: float = 0.5  # share of its sides that a window has in common with the next, in larger frames
    batch: int = 4  # windows that go through the UNet together: bounds memory, changes pixels by rounding only
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)

    def check(self) -> None:
        """Raises UserError for a setting that is out of its range."""
        from gen1_train.diffusion.sampler import SOLVERS
        from gen1_train.diffusion.structure import MAX_LEVEL

        if not 0 <= self.t_s <= MAX_LEVEL:
            raise UserError(f"t_s={self.t_s} is out of range: give 0 (the input's structure) to {MAX_LEVEL} (freest)")
        if not 1 <= self.steps <= MAX_STEPS:
            raise UserError(f"steps={self.steps} is out of range: give 1 to {MAX_STEPS}")
        check_choice("solver", self.solver, list(SOLVERS))
        if self.structure is not None:
            read_choice(self.structure)
        if not 0 < self.init_strength <= 1:
            raise UserError(f"init_strength={self.init_strength} is out of range: give a share above 0, up to 1")
        if self.batch < 1:
            raise UserError(f"batch={self.batch} must be 1 or more")
        if self.overlap is not None:
            check_not_negative(overlap=self.overlap)
        if not 0 <= self.space_overlap <= MAX_SPACE_OVERLAP:
            raise UserError(
                f"space_overlap={self.space_overlap} is out of range: give a share from 0 to {MAX_SPACE_OVERLAP}"
            )
        self.guidance.check()

    def check_model(self, highest_level: int, window: int, timesteps: int) -> None:
        """Raises UserError for a setting that a model cannot take, or that it has never seen in training.

        `highest_level`: of t_s in the training of the model; `window`: frames that it takes at once; `timesteps`: of
        its noise schedule.
        """
        self.check_level(highest_level)
        if self.steps > timesteps:
            raise UserError(f"steps={self.steps}: the noise schedule of this checkpoint has {timesteps}: give fewer")
        if self.overlap is not None and self.overlap >= window:
            raise UserError(f"overlap={self.overlap}: this checkpoint takes {window} frames at once: give fewer")

    def check_level(self, highest_level: int) -> None:
        """Raises UserError for a t_s above the highest one in the training of the model."""
        if self.t_s > highest_level:
            learned = f"t_s=0 to {highest_level}" if highest_level else "only t_s=0"
            raise UserError(
                f"t_s={self.t_s}: this checkpoint has learned {learned}: give {highest_level}"
                f"{' or less' if highest_level else ''}, or a checkpoint of stage 5"
            )


def with_dials(sampling: SamplingConfig, dials: dict[str, Any]) -> SamplingConfig:
    """Returns the settings with some of their fields, or of the guidance's, changed. Raises TypeError for others."""
    scales = {field.name for field in fields(GuidanceConfig)}
    guidance = replace(sampling.guidance, **{name: value for name, value in dials.items() if name in scales})
    others = {name: value for name, value in dials.items() if name not in scales}
    return replace(sampling, **{"guidance": guidance, **others})
