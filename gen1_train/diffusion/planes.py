"""Structures of several planes, such as `depth+edges`: their names, and how strongly an edit follows each.

The paper has one plane, of depth. Several are ours: the autoencoder encodes them as the red, green and blue of one
picture, so that the UNet's input keeps its channels. A plane that is absent is all 0.
"""

import re
from collections.abc import Mapping, Sequence

from gen1_train.errors import UserError

JOIN = "+"  # between the kinds of a structure; a comma would be a sweep on the command line

Strengths = tuple[float, ...]  # of each plane, from 0 (absent) to 1
Choice = str | Mapping[str, float]  # depth+face:0.5, or {"depth": 1, "face": 0.5}


def kinds_of(structure: str) -> tuple[str, ...]:
    """Returns the kind of each plane: depth+edges -> (depth, edges)."""
    return tuple(structure.split(JOIN))


def read_choice(choice: Choice) -> dict[str, float]:
    """Parses `depth`, or `depth+face:0.5`, to kinds and strengths; one without a number has 1. Raises UserError.

    A comma separates kinds, too.
    """
    if isinstance(choice, Mapping):
        pairs = [(str(kind), strength) for kind, strength in choice.items()]
    else:
        pairs = [_read_pair(text.strip(), choice) for text in re.split(r"[+,]", choice)]
    for kind, strength in pairs:
        if not 0 <= strength <= 1:
            raise UserError(f"structure={_text(choice)}: the strength of {kind} is from 0 to 1")
    if len(dict(pairs)) < len(pairs):
        raise UserError(f"structure={_text(choice)} names a kind twice: give each once")
    if not any(strength for _, strength in pairs):
        raise UserError(f"structure={_text(choice)} leaves nothing of the structure: give one of its kinds a strength")
    return dict(pairs)


def strengths_of(choice: Choice | None, kinds: Sequence[str]) -> Strengths:
    """Returns the strength of each plane of a checkpoint; kinds that are not named have 0. None: all have 1.

    Raises UserError, see `read_choice`, and for a kind that the checkpoint has no plane of.
    """
    if choice is None:
        return (1.0,) * len(kinds)
    given = read_choice(choice)
    if unknown := [kind for kind in given if kind not in kinds]:
        raise UserError(
            f"structure={_text(choice)}: this checkpoint has learned no plane of {unknown[0]!r}; choose from "
            f"{', '.join(kinds)}"
        )
    return tuple(given.get(kind, 0.0) for kind in kinds)


def _read_pair(text: str, choice: str) -> tuple[str, float]:
    kind, colon, number = text.partition(":")
    try:
        strength = float(number) if colon else 1.0
    except ValueError:
        strength = None
    if not kind.strip() or strength is None:
        raise UserError(f"structure={choice}: give kinds with strengths from 0 to 1, such as depth{JOIN}face:0.5")
    return kind.strip(), strength


def _text(choice: Choice) -> str:
    if isinstance(choice, str):
        return choice
    return JOIN.join(f"{kind}:{strength:g}" for kind, strength in choice.items())
