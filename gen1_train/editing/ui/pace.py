"""How long an edit still takes, from how far it is."""

import time
from collections.abc import Callable

SETTLED = 2.0  # seconds before the pace of a part of an edit is known; ours


class Pace:
    """The progress of an edit in words. `clock`: seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._title = ""
        self._began = 0.0
        self._began_at = 0.0

    def line(self, title: str, share: float | None, detail: str) -> str:
        """Returns a line such as "sampling, step 3 of 12, 1:20 left"; each part of an edit has its own pace."""
        now = self._clock()
        if title != self._title:
            self._title = title
            self._began = now
            self._began_at = share or 0.0
        words = [title, detail]
        gained = (share or 0.0) - self._began_at
        if share is not None and gained > 0 and now - self._began >= SETTLED:
            seconds = round((now - self._began) / gained * (1 - share))
            words.append(f"{seconds // 60}:{seconds % 60:02d} left")
        return ", ".join(words)
