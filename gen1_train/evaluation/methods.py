"""The methods that are compared: Gen-1 over its dials, and baselines that use the same weights.

per_frame   every frame alone, with the temporal layers off: a depth-conditioned image model applied to each frame.
sdedit      every frame alone, from the input's latents noised for a share of the steps, with the structure as free as
            the checkpoint has learned (t_s = 7 after stage 5, all of it at stage 4, none at stage 3): an image model
            that keeps the input through its noised pixels, as SDEdit does (Meng et al., arXiv 2108.01073), applied to
            each frame. It stands for the paper's SDEdit baseline, which is an image model too; that one has no
            structure input, ours has a blurred one, and the strengths are ours.
input       the input itself, measured as if it were an output: the reference, not a method.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from gen1_train.diffusion.guidance import GuidanceConfig
from gen1_train.diffusion.planes import kinds_of, strengths_of
from gen1_train.diffusion.sampling import SamplingConfig
from gen1_train.errors import UserError

GEN1 = "gen1"
PER_FRAME = "per_frame"
SDEDIT = "sdedit"
INPUT = "input"
METHODS = (GEN1, PER_FRAME, SDEDIT)


@dataclass
class SweepConfig:
    methods: list[str] = field(default_factory=lambda: list(METHODS))  # of gen1, per_frame, sdedit
    omega_t: list[float] = field(default_factory=lambda: [0.5, 1.0, 1.5])  # gen1: consistency over time
    t_s: list[int] = field(default_factory=lambda: [0, 2, 4, 7])  # gen1, per_frame: 0 keeps all structure, 7 is freest
    grid: bool = False  # every omega_t with every t_s; else one at a time, the other at 1 and 0 (or its list's first)
    init_strength: list[float] = field(default_factory=lambda: [0.4, 0.6, 0.8])  # sdedit: share of the steps; ours
    omega: float = GuidanceConfig.omega  # content: higher follows the prompt more strongly
    structure: str | None = None  # its planes and their strengths, such as depth+face:0.5; null: all, at strength 1
    rescale: float = GuidanceConfig.rescale  # takes back the contrast that a high omega adds, 0 to 1
    steps: int = SamplingConfig.steps  # of the sampler
    solver: str = SamplingConfig.solver  # or dpm++
    seed: int = SamplingConfig.seed  # of the noise and of the confidence intervals

    def check(self) -> None:
        """Raises UserError for an unknown method, an empty list, a repeated value, or a dial out of its range."""
        if unknown := [name for name in self.methods if name not in METHODS]:
            raise UserError(f"methods: there is no method {unknown[0]!r}; choose from {', '.join(METHODS)}")
        for name in ("methods", "omega_t", "t_s", "init_strength"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise UserError(f"{name}={values} is empty or has a value twice: give a list such as [1,2]")
        for setting in settings_of(self):
            sampling_of(setting, self, self.seed, highest_level=0).check()  # no checkpoint is known yet

    def check_levels(self, highest: int) -> None:
        """Raises UserError for a t_s above the highest one that the checkpoint has learned."""
        for setting in settings_of(self):
            sampling_of(setting, self, self.seed, highest).check_level(highest)

    def check_structure(self, kind: str) -> None:
        """Raises UserError for a plane that a checkpoint with this kind of structure does not have."""
        strengths_of(self.structure, kinds_of(kind))

    @property
    def fixed_omega_t(self) -> float:
        """The value of omega_t while t_s is swept."""
        return _default_or_first(self.omega_t, GuidanceConfig.omega_t)

    @property
    def fixed_t_s(self) -> int:
        """The value of t_s while omega_t is swept."""
        return _default_or_first(self.t_s, SamplingConfig.t_s)


@dataclass(frozen=True)
class Setting:
    """A method with its dials. None: the method does not have the dial."""

    method: str
    omega_t: float | None = None
    t_s: int | None = None
    init_strength: float | None = None

    @property
    def dials(self) -> dict[str, float]:
        values = {"omega_t": self.omega_t, "t_s": self.t_s, "init_strength": self.init_strength}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def name(self) -> str:
        """The name of its files, unique among settings: gen1_omega_t=1_t_s=0."""
        return "_".join([self.method, *(f"{name}={value:g}" for name, value in self.dials.items())])


class Editing(Protocol):
    """The part of an editor that the evaluation uses; see `gen1_train.editing.editor.Gen1Editor`."""

    buckets: list[str]
    highest_level: int  # of the t_s that the model has learned
    clip: Any  # images(uint8 (n, h, w, 3)) -> (n, d), texts([...]) -> (k, d)
    structure_estimator: Any  # uint8 Tensor (n, h, w, 3) -> raw structure (n, h, w), or (n, p, h, w); see `measured`

    def __call__(
        self,
        frames: np.ndarray,
        *,
        prompt: str | None = None,
        image: np.ndarray | None = None,
        sampling: SamplingConfig | None = None,
    ) -> np.ndarray:
        """Edits uint8 frames (n, h, w, 3)."""


def settings_of(sweep: SweepConfig) -> list[Setting]:
    """Returns all settings in the order of the table, the reference first."""
    settings = [Setting(INPUT)]
    if GEN1 in sweep.methods:
        settings += [
            Setting(GEN1, omega_t=float(omega_t), t_s=t_s)
            for t_s in sweep.t_s
            for omega_t in sweep.omega_t
            if sweep.grid or omega_t == sweep.fixed_omega_t or t_s == sweep.fixed_t_s
        ]
    if PER_FRAME in sweep.methods:
        settings += [Setting(PER_FRAME, t_s=t_s) for t_s in sweep.t_s]
    if SDEDIT in sweep.methods:
        settings += [Setting(SDEDIT, init_strength=float(strength)) for strength in sweep.init_strength]
    return settings


def sampling_of(setting: Setting, sweep: SweepConfig, seed: int, highest_level: int) -> SamplingConfig:
    """Returns the sampler's settings for a setting of a method. `highest_level`: of the t_s that the model learned."""
    dials: dict[str, Any] = dict(setting.dials)
    guidance = GuidanceConfig(sweep.omega, dials.pop("omega_t", GuidanceConfig.omega_t), sweep.rescale)
    if setting.method in (PER_FRAME, SDEDIT):
        dials["temporal"] = False
    if setting.method == SDEDIT:
        dials["t_s"] = highest_level
    return SamplingConfig(
        steps=sweep.steps, solver=sweep.solver, seed=seed, structure=sweep.structure, guidance=guidance, **dials
    )


def _default_or_first(values: Sequence[Any], default: Any) -> Any:
    return default if default in values else values[0]
