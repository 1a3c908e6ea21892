"""Findings about a run: lines of text about what needs attention."""

from collections.abc import Iterator
from datetime import datetime, timedelta

import numpy as np

from gen1_train.html import duration, plural
from gen1_train.reporting.run_log import Column, RunLog

WAITING = 0.05  # share of the time that training may wait for data
BEHIND = 0.10  # share by which the slowest rank may exceed the mean
LATE = 0.25  # share of the rows, the last ones, that describe the current state
QUIET = timedelta(minutes=10)  # a run without a row for five times as long as a row takes has stopped; at least this


def findings(log: RunLog) -> Iterator[str]:
    """Yields one line per finding."""
    yield from _not_finite(log)
    if len(waits := _late(log.values("data_wait"))) and (share := float(waits.mean())) > WAITING:
        yield f"Training waits for data {share:.0%} of the time: raise data.workers, or use a cache on a faster disk."
    if len(skipped := log.values("skipped_steps")) and skipped[-1] > 0:
        count, last = plural(int(skipped[-1]), "optimizer step"), _last_rise(log.columns["skipped_steps"])
        yield f"{count} skipped, the last one by step {last:,}: see the gradient norm."
    yield from _replaced(log)
    if len(excess := _late(log.values("slowest_excess"))) and (share := float(excess.mean())) > BEHIND:
        ranks, counts = np.unique(_late(log.values("slowest_rank")), return_counts=True)
        which = f", mostly rank {ranks[counts.argmax()]:.0f}" if len(ranks) else ""
        yield f"The slowest rank takes {share:.0%} longer than the mean{which}: all others wait for it."


def _late(values: np.ndarray) -> np.ndarray:
    """Returns the last finite values."""
    values = values[np.isfinite(values)]
    return values[-max(1, round(len(values) * LATE)) :]


def _not_finite(log: RunLog) -> Iterator[str]:
    for name, column in log.columns.items():
        steps = column.steps[~np.isfinite(column.values)]
        if len(steps):
            rows = f" in {plural(len(steps), 'row')}" if len(steps) > 1 else ""
            yield f"{name} is not finite{rows}, first at step {steps[0]:,}."


def _last_rise(column: Column) -> int:
    """Returns the last step at which a count increased."""
    return int(column.steps[np.flatnonzero(np.diff(column.values, prepend=0) > 0)[-1]])


def _replaced(log: RunLog) -> Iterator[str]:
    total = int(np.nansum(log.values("samples_replaced")))
    if total:
        reasons = {
            name.removeprefix("replaced_"): int(np.nansum(column.values))
            for name, column in log.columns.items()
            if name.startswith("replaced_")
        }
        listed = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)
        details = f" ({listed})" if listed else ""
        yield f"{plural(total, 'sample')} could not be read{details} and were replaced by others: run gen1-data verify."


def state(log: RunLog, now: datetime) -> str:
    """Describes the state: finished, running with the remaining time, or stopped."""
    if log.finished:
        return "finished"
    seconds, age = log.seconds_per_step, now - log.changed
    row = timedelta(seconds=float(log.values("seconds")[-1])) if seconds else timedelta()
    if age > max(QUIET, 5 * row):
        return f"no row for {duration(age.total_seconds())}: stopped"
    if seconds and log.planned and log.planned > log.last_step:
        return f"running, {duration(seconds * (log.planned - log.last_step))} left"
    return "running"
