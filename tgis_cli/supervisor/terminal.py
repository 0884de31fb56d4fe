"""Everything that the launcher and its children write to the terminal, in one thread.

A reader that stops reading (``| less``, a suspended terminal) blocks this thread and nothing else: supervision goes
on. Lines get the name of their process in front; as JSON they are objects. While a live status is shown, lines scroll
above it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from tgis_server.logs import JsonFormatter, TextFormatter

MAX_PENDING_LINES = 20_000  # when nobody reads, newer lines are dropped and counted
STYLES = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta")


class Terminal:
    """Writes lines, a live status and panels. All methods return at once, except :meth:`close`."""

    def __init__(
        self, stdout: TextIO, stderr: TextIO, environ: Mapping[str, str], *, as_json: bool, names: list[str]
    ) -> None:
        self.as_json = as_json
        self.is_interactive = stderr.isatty() and not as_json and environ.get("TERM") != "dumb"
        self._stdout, self._stderr = stdout, stderr
        self._width = max(len(name) for name in names)
        self._styles = dict(zip(names, STYLES * len(names), strict=False))
        self._live: Any = None
        self._console: Any = self._make_console() if self.is_interactive else None
        self._num_dropped = 0
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="terminal", daemon=True)
        self._thread.start()

    def relay(self, name: str, line: str, *, to_stderr: bool) -> None:
        """Write a line of a process."""
        self._post(lambda: self._write_line(name, line, to_stderr))

    def print(self, text: str) -> None:
        """Write a result to stdout as it is."""
        self._post(lambda: self._write(self._stdout, text + "\n"))

    def print_last(self, text: str) -> None:
        """Write to stderr what shall be its last line, without a process name in front."""
        self._post(lambda: self._write(self._stderr, text + "\n"))

    def print_panel(self, panel: Any) -> None:
        """Show a renderable of rich; only on an interactive terminal."""
        self._post(lambda: self._console.print(panel))

    def show_status(self, status: Any) -> None:
        """Show a renderable of rich below all lines, replacing the one before; ``None`` ends it."""
        if self.is_interactive:
            self._post(lambda: self._update_live(status))

    def close(self, timeout_s: float) -> bool:
        """Write what is pending; returns whether everything was written in time."""
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _post(self, job: Callable[[], None]) -> None:
        if self._jobs.qsize() < MAX_PENDING_LINES:
            self._jobs.put(job)
        else:
            self._num_dropped += 1

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._num_dropped:
                dropped, self._num_dropped = self._num_dropped, 0
                self._write_line("launcher", f"{dropped} lines were dropped: nobody read them.", True)
            job()
        self._update_live(None)

    def _write_line(self, name: str, line: str, to_stderr: bool) -> None:
        stream = self._stderr if to_stderr else self._stdout
        if self.as_json:
            self._write(stream, as_json_line(name, line, "warning" if to_stderr else "info") + "\n")
        elif self._console and stream.isatty():
            from rich.text import Text

            prefix = Text(f"{name:<{self._width}} │ ", style=self._styles.get(name, ""))
            self._print(prefix.append(Text(line, style="default")))
        else:
            self._write(stream, f"{name:<{self._width}} | {line}\n")

    def _write(self, stream: TextIO, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the reader is gone; a server goes on without one
            stream.write(text)
            stream.flush()

    def _print(self, text: Any) -> None:
        with contextlib.suppress(OSError):  # as above
            self._console.print(text, soft_wrap=True, highlight=False)

    def _make_console(self) -> Any:
        from rich.console import Console

        return Console(file=self._stderr, highlight=False)

    def _update_live(self, status: Any) -> None:
        if status is None:
            if self._live is not None:
                self._live.stop()
                self._live = None
            return
        if self._live is None:
            from rich.live import Live

            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(status, refresh=True)


class TerminalHandler(logging.Handler):
    """The launcher's own log lines, on the same terminal as its children's."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal
        self.setFormatter(JsonFormatter("launcher") if terminal.as_json else TextFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self._terminal.relay("launcher", self.format(record), to_stderr=True)


def as_json_line(name: str, line: str, level: str) -> str:
    """Pass on a line that is a JSON object already; wrap any other."""
    return line if is_json_object(line) else make_json_line(name, line, level)


def is_json_object(line: str) -> bool:
    if not line.startswith("{"):
        return False
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def make_json_line(name: str, message: str, level: str, **fields: object) -> str:
    """A line in the format of ``tgis_server.logs``."""
    number = logging.getLevelNamesMapping()[level.upper()]
    record = logging.makeLogRecord({"msg": message, "levelname": level, "levelno": number, **fields})
    return JsonFormatter(name).format(record)
