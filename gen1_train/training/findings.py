"""What is worth a look in a run, in words."""

from collections.abc import Iterator
from datetime import datetime, timedelta

import numpy as np

from gen1_train.page import duration, plural
from gen1_train.training.run_log import Column, RunLog

WAITING = 0.05  # share of the time in which the loader may keep training waiting
BEHIND = 0.10  # by which the slowest rank may be above the mean
LATE = 0.25  # of the rows, the last: how it goes now
QUIET = timedelta(minutes=10)  # at least; a run that writes no row for as long as five rows take has stopped


def findings(log: RunLog) -> Iterator[str]:
    """One line for each thing that somebody should know of."""
    yield from _lost(log)
    if len(waited := _late(log.values("data_wait"))) and (share := float(waited.mean())) > WAITING:
        yield f"Training waits for data {share:.0%} of the time: give more data.workers, or a cache on a faster disk."
    if len(skipped := log.values("skipped_steps")) and skipped[-1] > 0:
        count, last = plural(int(skipped[-1]), "optimizer step"), _last_rise(log.columns["skipped_steps"])
        yield f"{count} skipped, the last by step {last:,}: see the gradient norm."
    yield from _replaced(log)
    if len(excess := _late(log.values("slowest_excess"))) and (share := float(excess.mean())) > BEHIND:
        ranks, counts = np.unique(_late(log.values("slowest_rank")), return_counts=True)
        often = f", mostly rank {ranks[counts.argmax()]:.0f}" if len(ranks) else ""
        yield f"The slowest rank takes {share:.0%} longer than the mean{often}: all others wait for it."


def _late(values: np.ndarray) -> np.ndarray:
    """The last finite ones."""
    values = values[np.isfinite(values)]
    return values[-max(1, round(len(values) * LATE)) :]


def _lost(log: RunLog) -> Iterator[str]:
    """Values that are not finite."""
    for name, column in log.columns.items():
        lost = column.steps[~np.isfinite(column.values)]
        if len(lost):
            often = f" in {plural(len(lost), 'row')}" if len(lost) > 1 else ""
            yield f"{name} is not finite{often}, first at step {lost[0]:,}."


def _last_rise(column: Column) -> int:
    """The last step at which a count had grown."""
    return int(column.steps[np.flatnonzero(np.diff(column.values, prepend=0) > 0)[-1]])


def _replaced(log: RunLog) -> Iterator[str]:
    total = int(np.nansum(log.values("samples_replaced")))
    if total:
        reasons = {
            name.removeprefix("replaced_"): int(np.nansum(column.values))
            for name, column in log.columns.items()
            if name.startswith("replaced_")
        }
        told = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)
        which = f" ({told})" if told else ""
        yield f"{plural(total, 'sample')} could not be read{which}, others took their place: run gen1-data verify."


def state(log: RunLog, now: datetime) -> str:
    """Finished, running with the time that is left, or stopped."""
    if log.finished:
        return "finished"
    each, ago = log.seconds_per_step, now - log.changed
    row = timedelta(seconds=float(log.values("seconds")[-1])) if each else timedelta()
    if ago > max(QUIET, 5 * row):
        return f"no row for {duration(ago.total_seconds())}: stopped"
    if each and log.planned and log.planned > log.last_step:
        return f"running, {duration(each * (log.planned - log.last_step))} left"
    return "running"
