"""The edits of one call of gen1-edit: a single one, one for each of several prompts, or a sweep over a dial."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gen1_train.diffusion.recommended import Recommended, with_dials
from gen1_train.diffusion.sampling import SamplingConfig
from gen1_train.editing.config import EditConfig
from gen1_train.errors import UserError

# dial -> the function that parses one of its values, and the values of a sweep that names none
DIALS: dict[str, tuple[Callable[[str], Any], tuple[Any, ...]]] = {
    "omega": (float, (1.0, 3.0, 7.5, 12.0)),
    "omega_t": (float, (0.0, 0.5, 1.0, 1.5)),
    "rescale": (float, (0.0, 0.35, 0.7, 1.0)),
    "t_s": (int, (0, 2, 4, 7)),
    "structure": (str, ()),
    "init_strength": (float, (0.4, 0.6, 0.8, 1.0)),
    "steps": (int, (5, 10, 20, 50)),
    "seed": (int, (0, 1, 2, 3)),
    "solver": (str, ("ddim", "dpm++")),
    "image_share": (float, (0.0, 0.25, 0.5, 0.75, 1.0)),
    "prompt": (str, ()),
}


@dataclass(frozen=True)
class Variant:
    """One edit."""

    label: str
    sampling: SamplingConfig  # without a checkpoint's recommendations until `with_recommended`
    given: dict[str, Any]  # the dials that the user has set
    prompt: str | None
    image_share: float

    def with_recommended(self, recommended: Recommended) -> "Variant":
        """Returns the edit with a checkpoint's recommendations for the dials that the user has not set."""
        return replace(self, sampling=with_dials(self.sampling, {**recommended.dials, **self.given}))


def variants(config: EditConfig) -> list[Variant]:
    """Returns the edits that the settings ask for. Raises UserError for settings that are wrong; nothing is loaded."""
    if config.sweep is not None and config.prompts is not None:
        raise UserError("sweep= and prompts= cannot be combined: leave one out, or write sweep=prompt=ONE|OTHER")
    if config.sweep is not None:
        dial, values = read_sweep(config.sweep)
        return [
            _variant(replace(config, **{dial: value}), value if dial == "prompt" else f"{dial}={_short(value)}")
            for value in values
        ]
    if config.prompts is not None:
        if config.prompt is not None:
            raise UserError("give prompt= or prompts=, not both")
        return [_variant(replace(config, prompt=line), line) for line in read_prompts(config.prompts)]
    return [_variant(config, "")]


def _variant(config: EditConfig, label: str) -> Variant:
    config.check_variant()
    return Variant(label, config.sampling, config.given, config.prompt, config.image_share)


def read_sweep(sweep: str) -> tuple[str, list[Any]]:
    """Parses `omega_t`, `omega_t=0.5,1` or `prompt=a|b` to the dial and its values. Raises UserError."""
    dial, equals, text = sweep.partition("=")
    dial = dial.strip()
    if dial not in DIALS:
        raise UserError(f"sweep={sweep}: {dial!r} is not a dial; choose from {', '.join(DIALS)}")
    parse, values = DIALS[dial]
    if equals:
        parts = [part.strip() for part in text.split("|" if dial == "prompt" or "|" in text else ",")]
        try:
            values = tuple(parse(part) for part in parts if part)
        except ValueError:
            raise UserError(f"sweep={sweep}: separate numbers with commas, as in sweep={dial}=0,1") from None
    if not values:
        example = {"structure": "depth|depth+edges"}.get(dial, "a red ball|a cat")
        raise UserError(f"sweep={sweep} has no values: separate them with |, as in sweep={dial}={example}")
    return dial, list(values)


def read_prompts(path: str) -> list[str]:
    """Reads the lines of a text file that are not empty. Raises UserError."""
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts={path} cannot be read ({error}): give a text file, one prompt per line") from error
    if not any(lines):
        raise UserError(f"prompts={path} has no prompts: write one per line")
    return [line for line in lines if line]


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
