"""Progress of long-running commands, in bytes: a bar on a terminal, else a line every few seconds, events for scripts.

Progress goes to stderr, because stdout is for the result; JSON events are the result and go to stdout. The server's
startup is shown by ``relay/terminal.py`` instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from tgis_cli.terminal.capabilities import is_capable
from tgis_cli.terminal.sentences import fit_sentence, print_sentence
from tgis_cli.terminal.status_line import CLEAR_LINE
from tgis_server.words.sizes import format_bytes

WINDOW_S = 10.0  # over which the rate is measured, so that it soon forgets a slow start or a pause
LINE_EVERY_S = 5.0
BAR_EVERY_S = 0.1
EVENT_EVERY_S = 1.0
BAR_COLUMNS = 24


class Progress:
    """Bytes done out of a known total. Call everything from one thread, and ``tick`` at least once a second.

    Args:
        action: such as ``downloading``.
        clock: seconds, monotonic.
    """

    every_s = 0.0  # between displays

    def __init__(
        self, action: str, total_bytes: int, stream: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.action = action
        self.total_bytes = total_bytes
        self.done_bytes = 0
        self.stream = stream
        self._clock = clock
        self._marks = deque([(clock(), 0)])  # (when, bytes moved until then)
        self._moved_bytes = 0
        self._shown_at = clock()

    def add_done(self, num_bytes: int) -> None:
        """Count bytes that were already there, without affecting the rate."""
        self.done_bytes += num_bytes

    def advance(self, num_bytes: int) -> None:
        """Count bytes that were moved; a negative number subtracts the bytes of an abandoned attempt."""
        self.done_bytes += num_bytes
        self._moved_bytes += max(0, num_bytes)
        self.tick()

    def tick(self) -> None:
        """Show the current state, if the last display is old enough."""
        now = self._clock()
        if now - self._shown_at >= self.every_s:
            self._shown_at = now
            self._marks.append((now, self._moved_bytes))
            while len(self._marks) > 2 and now - self._marks[1][0] >= WINDOW_S:
                self._marks.popleft()
            self.show()

    @property
    def bytes_per_s(self) -> float:
        (started_at, before), (now, moved) = self._marks[0], self._marks[-1]
        return (moved - before) / (now - started_at) if now > started_at else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds left at the current rate; ``None`` while nothing moves."""
        rate = self.bytes_per_s
        return max(0, self.total_bytes - self.done_bytes) / rate if rate > 0 else None

    def describe(self) -> str:
        """``downloading: 1.5 GiB of 3.0 GiB (50%), 120 MiB/s, 13 s left``."""
        share = f" ({self.done_bytes / self.total_bytes:.0%})" if self.total_bytes else ""
        text = f"{self.action}: {format_bytes(self.done_bytes)} of {format_bytes(self.total_bytes)}{share}"
        left_s = self.left_s
        if left_s is None:
            return f"{text}, stalled" if self._moved_bytes and self.done_bytes < self.total_bytes else text
        return f"{text}, {format_bytes(int(self.bytes_per_s))}/s, {format_seconds(left_s)} left"

    def show(self) -> None:
        """Display the current state."""

    def tell(self, sentence: str, event: str = "note", **facts: Any) -> None:
        """Print a sentence, or an event with facts."""

    def close(self) -> None:
        """Clean up for the command's next output."""


class LineProgress(Progress):
    """For files and pipes."""

    every_s = LINE_EVERY_S

    def show(self) -> None:
        print(self.describe(), file=self.stream, flush=True)

    def tell(self, sentence: str, event: str = "note", **facts: Any) -> None:
        print_sentence(sentence, self.stream)


class JsonProgress(Progress):
    """For scripts: one object per line."""

    every_s = EVENT_EVERY_S

    def show(self) -> None:
        left_s = self.left_s
        print_event(
            self.stream,
            event="progress",
            action=self.action,
            done_bytes=self.done_bytes,
            total_bytes=self.total_bytes,
            bytes_per_s=round(self.bytes_per_s),
            left_s=None if left_s is None else round(left_s, 1),
        )

    def tell(self, sentence: str, event: str = "note", **facts: Any) -> None:
        print_event(self.stream, event=event, text=sentence, **facts)


class BarProgress(Progress):
    """For a terminal; sentences appear above the bar.

    The bar is redrawn on the cursor's line and changes no terminal state, so a killed process leaves nothing to
    clean up.
    """

    every_s = BAR_EVERY_S

    def show(self) -> None:
        from rich.console import Console
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        console = Console(file=self.stream, highlight=False)
        text = self.describe()
        width = max(4, min(BAR_COLUMNS, console.width - len(text) - 2))
        row = Table.grid(padding=(0, 1))
        row.add_column(width=width)
        row.add_column(no_wrap=True, overflow="ellipsis")
        row.add_row(ProgressBar(max(1, self.total_bytes), self.done_bytes, width=width), text)
        with console.capture() as capture:
            console.print(row, end="")
        self.stream.write(CLEAR_LINE + capture.get().rstrip("\n"))
        self.stream.flush()

    def tell(self, sentence: str, event: str = "note", **facts: Any) -> None:
        self.stream.write(f"{CLEAR_LINE}{fit_sentence(sentence, self.stream)}\n")
        self.show()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone: what ended the work matters more
            self.stream.write(CLEAR_LINE)
            self.stream.flush()


@contextlib.contextmanager
def show_progress(action: str, total_bytes: int, *, as_json: bool) -> Iterator[Progress]:
    """Show a bar, lines or events, whichever suits the output, until the block ends."""
    progress: Progress
    if as_json:
        progress = JsonProgress(action, total_bytes, sys.stdout)
    elif is_capable(sys.stderr, os.environ):
        progress = BarProgress(action, total_bytes, sys.stderr)
    else:
        progress = LineProgress(action, total_bytes, sys.stderr)
    try:
        yield progress
    finally:
        progress.close()


def tell(sentence: str, event: str = "note", *, as_json: bool, **facts: Any) -> None:
    """Print a sentence on stderr, or an event on stdout, outside any display of progress."""
    if as_json:
        print_event(sys.stdout, event=event, text=sentence, **facts)
    else:
        print_sentence(sentence, sys.stderr)


def tell_result(model_dir: Path, *, as_json: bool, **facts: Any) -> None:
    """Print a command's result, the directory of a model, on stdout."""
    if as_json:
        tell("ready", "done", as_json=True, model_dir=model_dir, **facts)
    else:
        print(model_dir)


def print_event(stream: TextIO, **record: Any) -> None:
    print(json.dumps(record, default=str), file=stream, flush=True)


def format_seconds(seconds: float) -> str:
    """``0.3 s``, ``45 s``, ``12 min``, ``3 h 20 min``."""
    if 0 < seconds < 1:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
