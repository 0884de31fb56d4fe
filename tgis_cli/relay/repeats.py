"""Withholds lines that one process repeats. Clocks are arguments.

In each window, the first few of several equal lines are admitted; the rest are counted, and reported when the window
ends. Lines that differ only in clock times count as equal.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_ADMITTED = 5  # equal lines in a window
WINDOW_S = 10.0  # from the first of them
MAX_REMEMBERED = 256  # different lines
MAX_KEPT_CHARS = 500  # of each line, which may be a megabyte long

CLOCK = re.compile(r"\d\d:\d\d:\d\d([.,]\d+)?")


@dataclass(slots=True)
class RepeatedLine:
    """Equal lines in one window."""

    level: str
    text: str  # the start of the first one
    since: float
    num_admitted: int = 0
    num_withheld: int = 0


class Repeats:
    """The lines that one process has written recently."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], RepeatedLine] = {}  # by level and hash; the oldest window is first
        self.is_withholding = False

    def admit(self, level: str, text: str, now: float) -> bool:
        """Whether to write a line. Call :meth:`pop_ended` first."""
        key = level, hash(CLOCK.sub("", text))
        seen = self._seen.setdefault(key, RepeatedLine(level, text[:MAX_KEPT_CHARS], now))
        if seen.num_admitted < MAX_ADMITTED:
            seen.num_admitted += 1
            return True
        seen.num_withheld += 1
        self.is_withholding = True
        return False

    def pop_ended(self, now: float, window_s: float = WINDOW_S) -> list[RepeatedLine]:
        """Forget the windows that have ended, and return those of their lines that were withheld at least once."""
        ended = []
        while self._seen:
            oldest = next(iter(self._seen))
            if now - self._seen[oldest].since < window_s and len(self._seen) <= MAX_REMEMBERED:
                break
            ended.append(self._seen.pop(oldest))
        if ended:
            self.is_withholding = any(seen.num_withheld for seen in self._seen.values())
        return [seen for seen in ended if seen.num_withheld]
