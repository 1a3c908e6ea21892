"""The data state in a checkpoint: the same on every rank, captured after an optimizer step. It takes about half a
kilobyte, and 30 bytes more for each pool.

A run that resumes with the same global batch, mix and shard set reads exactly the samples that it would have read
without the interruption, whatever its ranks, workers and micro-batches are now. With other ones it continues from the
cursors, and the history says what was changed at which step.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from gen1_train.data.mix import MIXES
from gen1_train.data.schedule import Schedule, Settings, Start
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError
from gen1_train.system.records import make_record, require

ORDERS = ("global", "blocks")
AUTO = "auto"  # one of them, see gen1_train.training.planning.data_order
LIMIT = 1000  # bytes of a state as JSON, beyond which the oldest changes are dropped
FIXED = ("seed", "order", "window", "lanes")  # after a change, samples of the epoch would come twice or not at all


@dataclass(frozen=True)
class DataState:
    manifest: str  # hash of the shard set's manifest
    schedule: str  # hash of everything else that decides the stream
    step: int  # optimizer steps done, which is the next step to read
    cursors: Mapping[str, int]  # pool -> samples of it that have been read
    settings: Mapping[str, Any]  # of the schedule, see Settings
    start: Mapping[str, Any]  # of the schedule, see Start
    history: tuple[str, ...] = field(default=())  # what was changed during the run, and at which step

    @classmethod
    def load(cls, content: Mapping[str, Any], source: str) -> "DataState":
        """Parses the state in a checkpoint's JSON. Raises UserError that names `source` if it is invalid."""
        try:
            state = make_record(cls, content)
            settings, start = make_record(Settings, state.settings), make_record(Start, state.start)
            counts = (state.step, start.step, start.round or 0, *state.cursors.values(), *start.cursors.values())
            require(min(counts) >= 0 and start.step <= state.step, "a count is below 0, or the start is after the step")
            sizes = (settings.clips, settings.frames, settings.window, settings.lanes)
            require(min(sizes) > 0 and 0 <= settings.image_ratio <= 1, "a setting is out of its range")
            require(settings.mix in MIXES and settings.order in ORDERS, "its mix or its order is unknown")
            return state
        except ValueError as error:
            problem = f"{source} holds no data state of this version ({error}): use another checkpoint"
            raise UserError(problem) from error

    def make_settings(self) -> Settings:
        return Settings(**self.settings)


def capture(schedule: Schedule, step: int, history: tuple[str, ...] = ()) -> DataState:
    """Returns the state after `step` optimizer steps of a run."""
    state = DataState(
        manifest=schedule.shards.manifest.hash,
        schedule=schedule.hash,
        step=step,
        cursors=schedule.cursors(step),
        settings=asdict(schedule.settings),
        start=asdict(schedule.start),
        history=history,
    )
    while state.history and len(json.dumps(asdict(state), separators=(",", ":"))) > LIMIT:
        state = replace(state, history=state.history[1:])
    return state


def resume(state: DataState, shards: ShardSet, settings: Settings) -> tuple[Schedule, tuple[str, ...]]:
    """Returns the schedule of a run that resumes from a state, and its history, with a new line for any change.

    Raises UserError for a change that cannot be made within a run, and those of Schedule.
    """
    before = state.make_settings()
    _check_fixed(before, settings)
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


def _check_fixed(before: Settings, now: Settings) -> None:
    """Raises UserError if a setting that is fixed within a run was changed."""
    names = FIXED if "blocks" in (before.order, now.order) else ("seed", "order")
    for name in names:
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            change = "" if name == "seed" else f"={new}, but was {old}, and"
            raise UserError(
                f"{_config_name(name)}{change} cannot be changed within a run, because samples would come twice or not "
                "at all: restore it, or start a new run with name="
            )


def _config_name(name: str) -> str:
    """The setting of the config that a field of Settings comes from."""
    return {"seed": "seed", "clips": "data.batch_clips", "frames": "frames of a clip"}.get(name, f"data.{name}")
