"""The settings that a checkpoint recommends for editing with it: a small YAML file in its folder. Ours.

omega: 3
steps: 12
solver: dpm++
prompts:
  - a striped red ball on green ground
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gen1_train.diffusion.sampling import SamplingConfig, with_dials
from gen1_train.errors import UserError
from gen1_train.formats.plain_yaml import MAX_BYTES, parse_yaml

# the dials that can be recommended, and their types; all other settings belong to the user's files and machine
DIALS: dict[str, type] = {
    "omega": float,
    "omega_t": float,
    "rescale": float,
    "t_s": int,
    "init_strength": float,
    "steps": int,
    "solver": str,
}
PROMPTS = "prompts"
MAX_PROMPTS = 50  # and their length in characters; ours
MAX_CHARACTERS = 500


@dataclass(frozen=True)
class Recommended:
    """Dials by name, each of them optional, and example prompts."""

    dials: dict[str, Any] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()

    @property
    def sampling(self) -> SamplingConfig:
        """The recommended settings of the sampler; those without a recommendation have their usual defaults."""
        return with_dials(SamplingConfig(), self.dials)


def read_recommended(path: Path | None) -> Recommended:
    """Reads a file of recommended settings; None means that there is none.

    Raises UserError, in one line that names the file, for an unknown name and for a value of another type or out of its
    range. The file may be a stranger's: its values are compared and copied, and nothing in it is executed or opened.
    """
    if path is None:
        return Recommended()
    try:
        settings = _parse(path)
        dials = {name: _dial(name, value) for name, value in settings.items() if name != PROMPTS}
        recommended = Recommended(dials, _prompts(settings.get(PROMPTS)))
        recommended.sampling.check()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return recommended


def _parse(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise UserError("it is not a file")
        with open(path, "rb") as stream:
            text = stream.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise UserError(f"it is larger than {MAX_BYTES >> 10} KiB: keep only dials and prompts")
        settings = parse_yaml(text.decode())
    except (OSError, ValueError) as error:
        raise UserError(f"it cannot be read ({error}): write NAME: VALUE lines") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise UserError("it must have NAME: VALUE lines")
    return settings


def _dial(name: object, value: object) -> Any:
    """Returns the value in the dial's type. Raises UserError."""
    kind = DIALS.get(name) if isinstance(name, str) else None
    if kind is None:
        shown = repr(name)[:40] if isinstance(name, str) else "a name that is no text"
        raise UserError(f"it sets {shown}; choose from {', '.join([*DIALS, PROMPTS])}")
    if kind is float and type(value) is int and abs(value) < 2**53:  # YAML's 3 is a whole number
        return float(value)
    if type(value) is not kind:
        names = {float: "a number", int: "a whole number", str: "a name"}
        raise UserError(f"{name} must be {names[kind]}")
    return value


def _prompts(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_PROMPTS:
        raise UserError(f"{PROMPTS} must be a list of up to {MAX_PROMPTS} texts")
    for number, prompt in enumerate(value, 1):
        is_line = isinstance(prompt, str) and prompt.strip() and prompt.isprintable()
        if not is_line or len(prompt) > MAX_CHARACTERS:
            raise UserError(f"{PROMPTS}: number {number} must be a text of one line, up to {MAX_CHARACTERS} characters")
    return tuple(prompt.strip() for prompt in value)
