"""Lines of processes in one shape, both their own JSON lines and whatever libraries write directly.

Clocks are arguments. ``Lines`` decides which lines are written; ``terminal.py`` writes them.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from datetime import datetime

from tgis_cli.relay.repeats import WINDOW_S, Repeats
from tgis_server.logs import escape, make_line, text_of

ANSI_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
# glog, abseil (gRPC) and torch: W1122 21:30:00.123456 file.cpp:12] or [rank0]:[W1122 21:30:00.123456 file.cpp:12]
INITIAL = re.compile(r"(?:\[rank\d+\]:)?\s*\[?([IWEF])\d{4} \d\d:\d\d:")
INITIALS = {"I": "info", "W": "warning", "E": "error", "F": "critical"}
# Other signs of a line's level; the first match counts.
MARKS = (
    (re.compile(r"\bNCCL (INFO|TRACE)\b|^\W*INFO\b"), "info"),
    (re.compile(r"\bNCCL WARN\b|^\W*WARN(ING)?\b|Warning: "), "warning"),
    (re.compile(r"^\W*DEBUG\b"), "debug"),
    (re.compile(r"^\W*(ERROR|FATAL|CRITICAL)\b|^Fatal |\b[Ee]rror: |^\w[\w.]*(Error|Exception)\b"), "error"),
    (re.compile(r"^Traceback |^(Current thread|Thread) 0x|^terminate called"), "error"),
)


@dataclass(frozen=True, slots=True)
class Line:
    """One record of one process."""

    process: str
    created: float  # seconds since the epoch
    level: str
    text: str  # message and fields
    traceback: tuple[str, ...]
    as_json: str

    def as_text(self, width: int) -> list[str]:
        """``shard-0  | 12:30:01.250 info    message key=value``, then the lines of the traceback in the same form."""
        return [
            f"{self.process:<{width}} | {self.clock} {self.level:<7} {text}" for text in (self.text, *self.traceback)
        ]

    @property
    def clock(self) -> str:
        return f"{time.strftime('%H:%M:%S', time.localtime(self.created))}.{int(self.created % 1 * 1000):03d}"


class Lines:
    """The lines that one process writes, with repetitions withheld."""

    def __init__(self, process: str) -> None:
        self._process = process
        self._repeats = Repeats()
        # is_stderr -> level of the last line, and whether it was admitted
        self._above = {True: ("warning", True), False: ("info", True)}

    @property
    def is_withholding(self) -> bool:
        return self._repeats.is_withholding

    def take(self, raw: str, now: float, wall: float, *, is_stderr: bool) -> Line | None:
        """The line to write; ``None`` if it is withheld. Call :meth:`pop_ended` first.

        Args:
            now: monotonic clock.
            wall: seconds since the epoch, for a line without a time.
        """
        if line := read_own_line(self._process, raw):
            return line if self._repeats.admit(line.level, "\n".join((line.text, *line.traceback)), now) else None
        if not raw.strip():
            return None
        if not raw[0].isspace():
            level = guess_level(raw, "warning" if is_stderr else "info")
            self._above[is_stderr] = level, self._repeats.admit(level, raw, now)
        level, is_admitted = self._above[is_stderr]  # an indented line, as in a stack, goes with the line above it
        return make_foreign_line(self._process, wall, level, raw) if is_admitted else None

    def pop_ended(self, now: float, wall: float, window_s: float = WINDOW_S) -> list[Line]:
        """Lines that report what was withheld in windows that have ended; with a window of 0, in all windows."""
        return [
            make_foreign_line(
                self._process,
                wall,
                seen.level,
                f"repeated {seen.num_withheld} times in {min(now - seen.since, WINDOW_S):.0f} s: "
                + seen.text.partition("\n")[0],
            )
            for seen in self._repeats.pop_ended(now, window_s)
        ]


def read_own_line(process: str, raw: str) -> Line | None:
    """Parse a line that ``tgis_server.logs`` made in this process; ``None`` for any other line."""
    if not raw.startswith('{"time": "') or raw != escape(raw):
        return None
    try:
        fields = json.loads(raw)
        created = datetime.fromisoformat(fields["time"]).timestamp()
        traceback = tuple(map(escape, fields.get("traceback", "").splitlines()))
        line = Line(process, created, escape(str(fields["level"])), text_of(fields), traceback, raw)
        return line if fields["process"] == process else None
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None


def make_foreign_line(process: str, wall: float, level: str, raw: str) -> Line:
    """A line that a library wrote directly, with its colours removed."""
    plain = ANSI_SEQUENCE.sub("", raw)
    return Line(process, wall, level, escape(plain), (), make_line(process, wall, level, plain, {}))


def guess_level(raw: str, default: str) -> str:
    if match := INITIAL.match(raw):
        return INITIALS[match[1]]
    return next((level for mark, level in MARKS if mark.search(raw)), default)


def plain_lines(process: str, raw: str) -> list[str]:
    """A line without its time and level, for the files kept of a failed run.

    Empty for a debug line, which may contain text that others should not read.
    """
    line = read_own_line(process, raw)
    if (line.level if line else guess_level(raw, "")) == "debug":
        return []
    return [raw] if line is None else [line.text, *line.traceback]
