"""A terminal for tests: a real pseudo-terminal to write to, and a screen that obeys what arrives there.

The screen knows only the sequences that our commands may send. Any other one fails the test, so text that controls the
terminal cannot pass unnoticed.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from tgis_cli.terminal.word_wrap import get_character_width

DEADLINE_S = 10.0
# Of those with a question mark, 2004 asks for marks around pasted text, 1049 for the alternate screen, 25 for a cursor.
SEQUENCE = re.compile(
    r"\x1b(?:7|8|\[(?P<number>\d*)(?P<command>[ADGHJK])|\[(?P<style>[\d;]*)m|"
    r"\[\?(?P<mode>2004|1049|25)(?P<switch>[hl]))"
)
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class Screen:
    """Rows of characters as a terminal shows them, without a last row; it wraps at the right edge like xterm."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows: list[list[str]] = [[]]
        self.styles: list[tuple[str, str]] = []  # each stretch of text with the SGR number that it is written in
        self.row = self.column = 0  # a column after the last one: the next character wraps
        self._style = ""
        self._saved = (0, 0, "")
        self._main: tuple[list[list[str]], int, int] | None = None  # while the alternate screen is shown
        self.has_cursor = True
        self._rest = ""  # the beginning of a sequence

    @property
    def is_alternate(self) -> bool:
        return self._main is not None

    @property
    def lines(self) -> list[str]:
        """What people see."""
        return ["".join(row).rstrip() for row in self.rows]

    def styled(self, style: str) -> str:
        """All text that was written in a style, such as "2" for dim."""
        return "".join(text for text, number in self.styles if number == style)

    def feed(self, text: str) -> None:
        text = self._rest + text
        self._rest = ""
        while text:
            if text[0] == "\x1b":
                match = SEQUENCE.match(text)
                if match is None:
                    assert len(text) < 16, f"an unknown escape sequence: {text[:20]!r}"
                    self._rest = text
                    return
                self._obey(match)
                text = text[match.end() :]
            else:
                self._put(text[0])
                text = text[1:]

    def _obey(self, match: re.Match[str]) -> None:
        count = int(match["number"] or 1) if match["command"] in ("A", "D") else 0
        if match["mode"]:
            self._switch(match["mode"], is_on=match["switch"] == "h")
            return
        match match["command"] or match[0][-1]:
            case "7":
                self._saved = (self.row, self.column, self._style)
            case "8":
                self.row, self.column, self._style = self._saved
            case "A":
                self.row = max(0, self.row - count)
            case "J":
                assert not match["number"]
                self.rows[self.row][self.column :] = []
                del self.rows[self.row + 1 :]
            case "D":
                self.column = max(0, min(self.column, self.columns - 1) - count)
            case "G":
                self.column = int(match["number"]) - 1
            case "H":
                assert not match["number"]
                self.row = self.column = 0
            case "K":
                assert match["number"] in ("", "2")
                self.rows[self.row][0 if match["number"] else self.column :] = []
            case "m":
                self._style = match["style"].removeprefix("0")

    def _switch(self, mode: str, *, is_on: bool) -> None:
        if mode == "25":
            self.has_cursor = is_on
        elif mode == "1049" and is_on:
            self._main = self.rows, self.row, self.column
            self.rows, self.row, self.column = [[]], 0, 0
        elif mode == "1049" and self._main:
            self.rows, self.row, self.column = self._main
            self._main = None

    def _put(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self._move_down()
        else:
            assert not CONTROLS.match(character), f"the control character {character!r}"
            self._show(character)

    def _show(self, character: str) -> None:
        width = get_character_width(character)
        row = self.rows[self.row]
        if width == 0:
            row[-1:] = ["".join(row[-1:]) + character]
            return
        if self.column + width > self.columns:
            self.column = 0
            self._move_down()
            row = self.rows[self.row]
        row.extend([" "] * (self.column + width - len(row)))
        row[self.column : self.column + width] = [character, ""][:width]
        self.column += width
        self.styles.append((character, self._style))

    def _move_down(self) -> None:
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append([])


class Terminal:
    """A pseudo-terminal whose output goes to a screen."""

    def __init__(self, columns: int = 40) -> None:
        self._master, slave = pty.openpty()
        self.stream: TextIO = os.fdopen(slave, "w", encoding="utf-8", newline="\n")
        self.screen = Screen(columns)
        self.raw = ""  # everything that was written
        self.resize(columns)
        self._error: AssertionError | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def resize(self, columns: int) -> None:
        """Like a terminal without reflow: what is shown stays."""
        fcntl.ioctl(self.stream.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.screen.columns = columns

    def start(self, command: Sequence[str | Path], environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start a process whose terminal this is: what is typed here goes to it, Ctrl-C as a signal."""
        slave = self.stream.fileno()
        return subprocess.Popen(
            command,
            env=dict(environ),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, condition: Callable[[Screen], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition(self.screen):
            self._check()
            assert time.monotonic() < deadline, f"waited {DEADLINE_S} s; the screen shows {self.screen.lines}"
            time.sleep(0.005)

    def close(self) -> Screen:
        """Wait until everything has arrived."""
        self.stream.close()
        self._reader.join(DEADLINE_S)
        self._check()
        return self.screen

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _read(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")()
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while data := os.read(self._master, 65536):
                text = decoder.decode(data)
                self.raw += text
                try:
                    self.screen.feed(text)
                except AssertionError as error:
                    self._error = self._error or error
        os.close(self._master)


@contextlib.contextmanager
def open_terminal(columns: int = 40) -> Iterator[Terminal]:
    terminal = Terminal(columns)
    try:
        yield terminal
    finally:
        with contextlib.suppress(ValueError):
            terminal.close()
