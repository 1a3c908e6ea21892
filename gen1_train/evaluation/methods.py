"""What is compared: Gen-1 over its dials, and baselines that are made from the same weights.

per_frame   every frame alone, the temporal layers off: a depth-conditioned image model applied to each frame.
sdedit      every frame alone, from the input's latents noised to a share of the steps, with the structure as free as
            it goes (t_s = 7): an image model that keeps the input by its noised pixels, as SDEdit does (Meng et al.,
            arXiv 2108.01073), applied to each frame. It stands for the paper's SDEdit baseline, an image model too;
            that one has no structure input at all, ours a nearly empty one, and the strengths are ours.
input       the input itself, measured as an output: the reference, no method.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from gen1_train.errors import UserError

GEN1, PER_FRAME, SDEDIT, INPUT = "gen1", "per_frame", "sdedit", "input"
METHODS = (GEN1, PER_FRAME, SDEDIT)


@dataclass
class SweepConfig:
    methods: list[str] = field(default_factory=lambda: list(METHODS))  # of gen1, per_frame, sdedit
    omega_t: list[float] = field(default_factory=lambda: [0.5, 1.0, 1.5])  # gen1: consistency over time
    t_s: list[int] = field(default_factory=lambda: [0, 2, 4, 7])  # gen1, per_frame: 0 keeps all structure, 7 is freest
    grid: bool = False  # every omega_t with every t_s; else each by itself, the other at 1 and 0 (or its list's first)
    init_strength: list[float] = field(default_factory=lambda: [0.4, 0.6, 0.8])  # sdedit: share of the steps; ours
    omega: float = 7.5  # content: higher follows the prompt harder
    steps: int = 50  # of the sampler
    solver: str = "ddim"  # or dpm++
    seed: int = 0  # of the noise and of the confidence intervals


@dataclass(frozen=True)
class Setting:
    """A method with its dials; None: the method has no such dial."""

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
        """Of its files, one name a setting: gen1_omega_t=1_t_s=0."""
        return "_".join([self.method, *(f"{name}={value:g}" for name, value in self.dials.items())])


class Editing(Protocol):
    """What the evaluation needs of an editor; `gen1_train.editor.Gen1Editor` is one."""

    buckets: list[str]
    clip: Any  # images(uint8 (n, h, w, 3)) -> (n, d), texts([...]) -> (k, d)
    structure_estimator: Any  # uint8 Tensor (n, h, w, 3) -> raw structure (n, h, w)

    @property
    def __call__(self) -> Callable[..., np.ndarray]:
        """Edits uint8 frames (n, h, w, 3), see Gen1Editor."""


def held(values: Sequence[Any], usual: Any) -> Any:
    """The value of a dial while another one is swept."""
    return usual if usual in values else values[0]


def settings_of(sweep: SweepConfig) -> list[Setting]:
    """All settings in the order of the table, the reference first. Raises UserError, see `check`."""
    check(sweep)
    omega_t, t_s = held(sweep.omega_t, 1.0), held(sweep.t_s, 0)
    settings = [Setting(INPUT)]
    if GEN1 in sweep.methods:
        settings += [
            Setting(GEN1, omega_t=float(time), t_s=level)
            for level in sweep.t_s
            for time in sweep.omega_t
            if sweep.grid or time == omega_t or level == t_s
        ]
    if PER_FRAME in sweep.methods:
        settings += [Setting(PER_FRAME, t_s=level) for level in sweep.t_s]
    if SDEDIT in sweep.methods:
        settings += [Setting(SDEDIT, init_strength=float(strength)) for strength in sweep.init_strength]
    return settings


def edit(
    editor: Editing, setting: Setting, sweep: SweepConfig, frames: np.ndarray, content: dict[str, Any], seed: int
) -> np.ndarray:
    """The input's frames (n, h, w, 3) as the method edits them; the input itself comes back as it is.

    `content`: the editor's prompt= or image=.
    """
    from gen1_train.diffusion.structure import MAX_LEVEL

    common = {**content, "omega": sweep.omega, "steps": sweep.steps, "solver": sweep.solver, "seed": seed}
    match setting.method:
        case "gen1":
            return editor(frames, omega_t=setting.omega_t, t_s=setting.t_s, **common)
        case "per_frame":
            return editor(frames, temporal=False, t_s=setting.t_s, **common)
        case "sdedit":
            return editor(frames, temporal=False, t_s=MAX_LEVEL, init_strength=setting.init_strength, **common)
    return frames


def check(sweep: SweepConfig) -> None:
    """Raises UserError: an unknown method, an empty list, a value twice. The ranges of dials are the editor's."""
    if unknown := [name for name in sweep.methods if name not in METHODS]:
        raise UserError(f"methods: there is no method {unknown[0]!r}; choose from {', '.join(METHODS)}")
    for name in ("methods", "omega_t", "t_s", "init_strength"):
        values = getattr(sweep, name)
        if not values or len(set(values)) != len(values):
            raise UserError(f"{name}={values} is empty or names a value twice: give a list such as [1,2]")
