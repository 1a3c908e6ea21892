"""Progress of an edit: frames that are read or written, and steps of the sampler, on a bar or for the page."""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate

from gen1_train.system.console import progress

# called with the name of what is computed, the share of it that is done (None: unknown), and "step 3 of 12" or the like
OnProgress = Callable[[str, float | None, str], object]
SAMPLING = "{desc} |{bar}| {percentage:3.0f} %, {remaining} left"  # tqdm's format of the sampler's bar


@contextmanager
def frame_counter(
    title: str, total: int | None, on_progress: OnProgress | None, keep: bool = True
) -> Iterator[Callable[[int], object]]:
    """Yields a function that adds to the frames that are done: for `on_progress`, or on a bar without it."""
    if on_progress is None:
        with progress(title=title, unit="frame", total=total, keep=keep) as bar:
            yield bar.update
        return
    done = 0

    def count(frames: int) -> None:
        nonlocal done
        done += frames
        of_total = f" of {total}" if total else ""
        on_progress(title, min(1.0, done / total) if total else None, f"{done}{of_total} frames")

    count(0)
    yield count


@contextmanager
def step_counter(
    title: str, step_frames: list[int], on_progress: OnProgress | None
) -> Iterator[Callable[[int], object]]:
    """Yields a function that adds to the frames that went through the network, and shows them as steps of the sampler.

    `step_frames`: how many go through it in each step. The share also grows within a step, which takes long in a long
    video.
    """
    ends = list(accumulate(step_frames))
    done = 0

    def step() -> str:
        return f"step {min(bisect_right(ends, done) + 1, len(ends))} of {len(ends)}"

    if on_progress is None:
        with progress(title=f"{title}: {step()}", unit="frame", total=ends[-1], shape=SAMPLING) as bar:

            def draw(frames: int) -> None:
                nonlocal done
                done += frames
                bar.set_description_str(f"{title}: {step()}", refresh=False)
                bar.update(frames)

            yield draw
        return

    def count(frames: int) -> None:
        nonlocal done
        done += frames
        on_progress(title, done / ends[-1], step())

    count(0)
    yield count
