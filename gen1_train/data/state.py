"""What a checkpoint keeps of the data: under a kilobyte, the same on every rank, taken when an optimizer step is done.

A run that goes on with the same global batch, mix and shard set reads on bit for bit, whatever its ranks, workers and
micro-batches are now. With others it reads on from the cursors, and the history says what was changed at which step.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from gen1_train.data.schedule import Schedule, Settings, Start
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError

LIMIT = 1000  # bytes of a state as JSON; the oldest changes give way
FIXED = ("seed", "order", "window", "lanes")  # with another one, samples of the epoch would come twice or not at all


@dataclass(frozen=True)
class DataState:
    manifest: str  # hash of the shard set's manifest
    schedule: str  # hash of all else that decides the stream
    step: int  # optimizer steps done: the next one to read
    cursors: Mapping[str, int]  # pool -> samples read of it so far
    settings: Mapping[str, Any]  # of the schedule, see Settings
    start: Mapping[str, Any]  # of the schedule, see Start
    history: tuple[str, ...] = field(default=())  # what was changed in the course of the run, and at which step

    @classmethod
    def load(cls, content: Mapping[str, Any], place: str) -> "DataState":
        """The state from a checkpoint's JSON. Raises UserError that names `place` when it is none."""
        try:
            state = cls(**{**content, "history": tuple(content["history"])})
            state.make_settings()
            Start(**state.start)
            return state
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(f"{place} holds no data state of this version ({error}); use another checkpoint") from error

    def make_settings(self) -> Settings:
        return Settings(**self.settings)


def capture(schedule: Schedule, step: int, history: tuple[str, ...] = ()) -> DataState:
    """The state after `step` optimizer steps of a run."""
    manifest, settings, start = schedule.shards.manifest.hash, asdict(schedule.settings), asdict(schedule.start)
    state = DataState(manifest, schedule.hash, step, schedule.cursors(step), settings, start, history)
    while state.history and len(json.dumps(asdict(state), separators=(",", ":"))) > LIMIT:
        state = replace(state, history=state.history[1:])
    return state


def resume(state: DataState, shards: ShardSet, settings: Settings) -> tuple[Schedule, tuple[str, ...]]:
    """The schedule of a run that goes on from a state, and its history, longer by a line if something was changed.

    Raises UserError for a change that cannot be made within a run, and as Schedule does.
    """
    before = state.make_settings()
    _refuse(before, settings)
    schedule = Schedule(shards, settings, Start(**state.start))
    if (schedule.hash, shards.manifest.hash) == (state.schedule, state.manifest):
        return schedule, state.history
    changes = [
        f"{_config_name(name)} {old} -> {new}"
        for (name, old), new in zip(asdict(before).items(), asdict(schedule.settings).values(), strict=True)
        if old != new
    ]
    if shards.manifest.hash != state.manifest:
        changes.append(f"shard set {state.manifest[:8]} -> {shards.manifest.hash[:8]}")
    line = f"from step {state.step}: {', '.join(changes) or 'another version of the schedule'}"
    start = Start(state.step, state.cursors, state.start["round"] or before.clips)
    return Schedule(shards, settings, start), (*state.history, line)


def _refuse(before: Settings, now: Settings) -> None:
    names = FIXED if "blocks" in (before.order, now.order) else ("seed", "order")
    for name in names:
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            change = "" if name == "seed" else f"={new}, but was {old}, and"
            raise UserError(
                f"{_config_name(name)}{change} cannot be changed within a run, samples would come twice or not at all: "
                "set it as it was, or start a new run with name="
            )


def _config_name(name: str) -> str:
    """How the user sets a field of Settings."""
    return {"seed": "seed", "clips": "data.batch_clips", "frames": "frames of a clip"}.get(name, f"data.{name}")
