"""Writes all output of the launcher and its children to the terminal and the log file, in one thread.

A reader that stops reading (``| less``, a suspended terminal) blocks only this thread, not supervision. Lines are
prefixed with the name of their process, or are JSON objects. On a terminal they are selected and wrapped by
``screen.py``; while a live status is shown, they scroll above it.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from traceback import format_exc
from typing import Any, TextIO

from tgis_cli.relay.lines import Line, Lines, make_foreign_line
from tgis_cli.relay.log_file import LogFile
from tgis_cli.relay.repeats import WINDOW_S
from tgis_cli.relay.screen import make_prefix, select, wrap_line
from tgis_cli.terminal.capabilities import can_draw, get_width, is_capable, is_terminal
from tgis_server.logs import make_line
from tgis_server.words.control_characters import escape_controls
from tgis_server.words.layout import wrap
from tgis_server.words.processes import LAUNCHER

MAX_PENDING_LINES = 20_000  # beyond this, new lines are dropped and counted
DETAILS = logging.getLogger("tgis_cli.details")  # for records that a terminal shows with --verbose only
FLUSH_S = 1.0  # between checks for withheld lines to report, when no other lines arrive
STYLES = ("cyan", "green", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta", "bright_blue")
LEVEL_STYLES = {"warning": "yellow", "error": "bold red", "critical": "bold red"}


class Terminal:
    """Writes lines, a live status and panels. All methods return at once, except :meth:`close`."""

    def __init__(
        self,
        stdout: TextIO,
        stderr: TextIO,
        environ: Mapping[str, str],
        *,
        as_json: bool,
        names: list[str],
        log_file: Path | None = None,
        is_verbose: bool = False,
        is_shared: bool = False,
    ) -> None:
        """
        Args:
            names: the names of the processes.
            is_verbose: show every line on a terminal too; without it, only those that people need.
            is_shared: another process writes to the terminal too, and may have left the cursor within a line.
        """
        self.as_json = as_json
        self.has_reader = is_terminal(stderr) and not as_json  # a person
        self.is_interactive = self.has_reader and is_capable(stderr, environ)
        self.has_boxes = self.has_reader and can_draw(stderr, environ)
        self.is_verbose = is_verbose
        self._is_shared = is_shared
        self._stdout, self._stderr = stdout, stderr
        self._file = LogFile(log_file) if log_file else None
        self._width = max(len(name) for name in names)
        self._styles = dict(zip(names, STYLES * len(names), strict=False))
        self._lines = {name: Lines(name) for name in names}
        self._live: Any = None
        self._console: Any = self._make_console(environ) if self.is_interactive else None
        self._num_dropped = 0
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="terminal", daemon=True)
        self._thread.start()

    @property
    def width(self) -> int:
        """Columns of the terminal."""
        return get_width(self._stderr)

    def relay(self, name: str, line: str, *, to_stderr: bool, is_detail: bool = False) -> None:
        """Write a line of a process, unless it is repeated too often.

        Args:
            is_detail: a terminal shows it with ``--verbose`` only.
        """
        self._post(lambda: self._relay(name, line, to_stderr, is_detail))

    def summarize(self, headline: str, rows: Iterable[str]) -> None:
        """Show a few lines in place of details, on a terminal without ``--verbose`` only."""
        if self.has_reader and not self.is_verbose:
            lines = [headline, *(f"  {row}" for row in rows)]
            self._post(lambda: self._show_lines([row for line in lines for row in wrap(line, self.width)]))

    def print(self, text: str, shown: Any = None) -> None:
        """Write a result to stdout as it is; a terminal shows ``shown`` instead, a text or a rich renderable."""
        self._post(lambda: self._print_result(text, shown))

    def print_last(self, text: str) -> None:
        """Write the last line of stderr, without a process name. It is never dropped."""
        self._jobs.put(lambda: self._print_last(text))

    def show_status(self, status: Any) -> None:
        """Show a rich renderable below all lines, in place of the previous one; ``None`` removes it."""
        if self.is_interactive:
            self._post(lambda: self._update_live(status))

    def reopen(self) -> None:
        """Reopen the log file by its name, as after a rotation."""
        if self._file:
            self._post(self._reopen)

    def close(self, timeout_s: float) -> bool:
        """Write pending lines; returns whether all were written in time."""
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _post(self, job: Callable[[], None]) -> None:
        if self._jobs.qsize() < MAX_PENDING_LINES:
            self._jobs.put(job)
        else:
            self._num_dropped += 1

    def _work(self) -> None:
        while (job := self._next_job()) is not None:
            self._do(job, WINDOW_S)
        self._do(lambda: self._update_live(None), 0)

    def _do(self, job: Callable[[], None], window_s: float) -> None:
        """Do one job, after reporting withheld and dropped lines. An error does not stop later jobs."""
        try:
            self._tell_withheld(window_s)
            if self._num_dropped:
                dropped, self._num_dropped = self._num_dropped, 0
                self._warn(f"{dropped} lines were dropped: they came faster than they were read.")
            job()
        except Exception:  # noqa: BLE001  a bug here must not silence the server
            line = make_json_line(LAUNCHER, "A line could not be written.", "error", traceback=format_exc())
            self._write(self._stderr, line + "\n")

    def _next_job(self) -> Callable[[], None] | None:
        is_withholding = any(lines.is_withholding for lines in self._lines.values())
        try:
            return self._jobs.get(timeout=FLUSH_S if is_withholding else None)
        except queue.Empty:
            return lambda: None

    def _relay(self, name: str, raw: str, to_stderr: bool, is_detail: bool) -> None:
        if line := self._lines[name].take(raw, time.monotonic(), time.time(), is_stderr=to_stderr):
            self._write_line(line, to_stderr=to_stderr, is_detail=is_detail)

    def _tell_withheld(self, window_s: float) -> None:
        for lines in self._lines.values():
            for line in lines.pop_ended(time.monotonic(), time.time(), window_s):
                self._write_line(line, to_stderr=True)

    def _reopen(self) -> None:
        """Reopen the file; the line that says so is the first one in the new file."""
        assert self._file is not None, "there is a log file"
        self._file.close()
        text = f"log file {self._file.path} was reopened"
        self._write_line(make_foreign_line(LAUNCHER, time.time(), "info", text), to_stderr=True)

    def _warn(self, text: str) -> None:
        self._write_line(make_foreign_line(LAUNCHER, time.time(), "warning", text), to_stderr=True)

    def _print_result(self, text: str, shown: Any) -> None:
        text = escape_controls(text)
        if shown is None or not self._show(shown):
            self._write(self._stdout, text + "\n")
        self._copy(text, "info")

    def _print_last(self, text: str) -> None:
        self._tell_withheld(0)
        self._write(self._stderr, "\n".join(wrap(text, self.width if self.has_reader else None)) + "\n")
        self._copy(text, "error")

    def _write_line(self, line: Line, *, to_stderr: bool, is_detail: bool = False) -> None:
        stream = self._stderr if to_stderr else self._stdout
        text = self._format(line)
        if not self.has_reader or not is_terminal(stream):
            self._write(stream, text)
        elif selected := select(line, is_verbose=self.is_verbose, is_detail=is_detail):
            self._show_lines(wrap_line(selected, self._width, self.width), selected)
        self._write_to_file(text)

    def _format(self, line: Line) -> str:
        return "\n".join([line.as_json] if self.as_json else line.as_text(self._width)) + "\n"

    def _copy(self, text: str, level: str) -> None:
        """Copy a result to the log file, as lines of the launcher."""
        if self.as_json:
            self._write_to_file(text + "\n")
        else:
            lines = (make_foreign_line(LAUNCHER, time.time(), level, line) for line in text.splitlines())
            self._write_to_file("".join(map(self._format, lines)))

    def _write_to_file(self, text: str) -> None:
        if self._file and (problem := self._file.write(text)):
            self._warn(problem)

    def _write(self, stream: TextIO, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the reader is gone; the server runs on without one
            stream.write(text)
            stream.flush()

    def _show(self, renderable: Any, **options: Any) -> bool:
        """Show a text or a renderable; returns whether there is a terminal to show it on."""
        if not self.is_interactive:
            self._write(self._stderr, f"{renderable}\n")
            return True
        with self._drawing():
            if self._console:
                if self._is_shared and not self._live:
                    self._start_line()
                self._console.print(renderable, width=self.width, crop=False, **options)
        return self._console is not None

    def _start_line(self) -> None:
        """Move to the start of the next line if the cursor is within one, wherever: only then do the blanks wrap."""
        self._stderr.write(" " * self.width + "\r")
        self._stderr.flush()

    @contextlib.contextmanager
    def _drawing(self) -> Iterator[None]:
        """Give up on a terminal that is gone: rich would keep and retry everything that it cannot write."""
        try:
            yield
        except (OSError, ValueError):
            self._console = self._live = None

    def _show_lines(self, rows: list[str], line: Line | None = None) -> None:
        """Show rows on the terminal, the start of the first one in the colours of ``line``."""
        if not self.is_interactive:
            self._show("\n".join(rows))
            return
        from rich.text import Text

        text = Text("\n".join(rows))
        if line:
            clock, name, level = make_prefix(line, self._width)
            ends = accumulate((len(clock), len(name), len(level)))
            text.stylize("dim", 0, start := next(ends))
            text.stylize(self._styles.get(line.process, ""), start, start := next(ends))
            text.stylize(LEVEL_STYLES.get(line.level, ""), start, next(ends))
        self._show(text, soft_wrap=True)

    def _make_console(self, environ: Mapping[str, str]) -> Any:
        from rich.console import Console

        # With NO_COLOR, rich would still write bold text; without a color system, it writes no styles at all.
        color_system: Any = None if environ.get("NO_COLOR") else "auto"
        return Console(file=self._stderr, highlight=False, color_system=color_system, _environ=environ)

    def _update_live(self, status: Any) -> None:
        with self._drawing():
            if status is None:
                if self._live:
                    self._live.stop()
                self._live = None
            elif self._console:
                self._live = self._live or self._start_live()
                self._live.update(status, refresh=True)

    def _start_live(self) -> Any:
        from rich.live import Live

        live = Live(
            console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        live.start()
        return live


class TerminalHandler(logging.Handler):
    """Sends the launcher's own log records to the terminal."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        is_detail = record.name == DETAILS.name
        self._terminal.relay(LAUNCHER, self.format(record), to_stderr=True, is_detail=is_detail)


def make_json_line(name: str, message: str, level: str, **fields: object) -> str:
    """A JSON line in the format of ``tgis_server.logs``."""
    return make_line(name, time.time(), level, message, fields)
