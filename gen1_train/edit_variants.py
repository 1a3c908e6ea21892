"""The edits that one call of gen1-edit asks for: one, one for each of several prompts, or a sweep over a dial."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen1_train.diffusion.editing import SamplingConfig
from gen1_train.diffusion.guidance import GuidanceConfig
from gen1_train.editor import check
from gen1_train.errors import UserError

if TYPE_CHECKING:
    from gen1_train.edit import EditConfig

# dial -> how a value of it is read, and the values of a sweep that names none
DIALS: dict[str, tuple[Callable[[str], Any], tuple[Any, ...]]] = {
    "omega": (float, (1.0, 3.0, 7.5, 12.0)),
    "omega_t": (float, (0.0, 0.5, 1.0, 1.5)),
    "t_s": (int, (0, 2, 4, 7)),
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
    sampling: SamplingConfig
    prompt: str | None
    image_share: float


def variants(config: "EditConfig") -> list[Variant]:
    """What is to be made. Raises UserError for settings that make no sense, before anything is loaded."""
    if config.sweep is not None and config.prompts is not None:
        raise UserError("sweep= and prompts= go each by itself: leave one out, or write sweep=prompt=ONE|OTHER")
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


def _variant(config: "EditConfig", label: str) -> Variant:
    guidance = GuidanceConfig(config.omega, config.omega_t)
    sampling = SamplingConfig(
        *(config.steps, config.solver, config.t_s, config.seed, config.init_strength, config.temporal),
        batch=config.batch,
        guidance=guidance,
    )
    check(sampling)
    if not 0 <= config.image_share <= 1:
        raise UserError(f"image_share={config.image_share} is a share: give a number from 0 to 1")
    if config.prompt is None and config.image is None:
        raise UserError("the content is not given: add prompt=TEXT or image=FILE")
    for name in ("prompt", "negative_prompt"):
        text = getattr(config, name)
        if text is not None and not text.strip():
            raise UserError(f"{name}= is empty: say what the video should show, or leave it out and give image=FILE")
    return Variant(label, sampling, config.prompt, config.image_share)


def read_sweep(sweep: str) -> tuple[str, list[Any]]:
    """`omega_t`, `omega_t=0.5,1` or `prompt=a|b` -> the dial and its values. Raises UserError."""
    dial, equals, given = sweep.partition("=")
    dial = dial.strip()
    if dial not in DIALS:
        raise UserError(f"sweep={sweep}: {dial!r} is no dial; choose from {', '.join(DIALS)}")
    read, values = DIALS[dial]
    if equals:
        texts = [text.strip() for text in given.split("|" if dial == "prompt" or "|" in given else ",")]
        try:
            values = tuple(read(text) for text in texts if text)
        except ValueError:
            raise UserError(f"sweep={sweep}: write numbers with commas between them, as in sweep={dial}=0,1") from None
    if not values:
        raise UserError(
            f"sweep={sweep} has no values: write them with | between them, as in sweep={dial}=a red ball|a cat"
        )
    return dial, list(values)


def read_prompts(path: str) -> list[str]:
    """The lines of a text file that are not empty. Raises UserError."""
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts={path} cannot be read ({error}): give a text file with a prompt a line") from error
    if not any(lines):
        raise UserError(f"prompts={path} holds no prompt: write one on each line")
    return [line for line in lines if line]


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
