"""What a command is doing: one line that is gone afterwards on a terminal, lines or nothing elsewhere."""

from __future__ import annotations

import contextlib
import io
import itertools
import math

import pytest

from tgis_cli.terminal.status_line import StatusLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show_two(stream: io.StringIO, term: str, **options: float) -> str:
    line = StatusLine(stream, {"TERM": term}, itertools.count().__next__, **options)
    for text in ("2 calls", "2 calls", "1 call"):
        line.show(lambda text=text: text)
    line.clear()
    return stream.getvalue()


def test_on_a_terminal_the_line_changes_and_is_gone_afterwards():
    assert show_two(Terminal(), "xterm") == "\r\x1b[2K2 calls\r\x1b[2K1 call\r\x1b[2K"


@pytest.mark.parametrize(("stream", "term"), [(io.StringIO(), "xterm"), (Terminal(), "dumb")])
def test_elsewhere_each_change_is_a_line(stream: io.StringIO, term: str):
    assert show_two(stream, term) == "2 calls\n1 call\n"


def test_elsewhere_nothing_is_written_if_lines_are_not_wanted():
    assert show_two(io.StringIO(), "xterm", elsewhere_every_s=math.inf) == ""


def test_elsewhere_lines_can_be_kept_apart_in_time():
    assert show_two(io.StringIO(), "xterm", elsewhere_every_s=2) == "2 calls\n1 call\n"
    assert show_two(io.StringIO(), "xterm", elsewhere_every_s=3) == "2 calls\n"


def test_a_full_or_closed_stream_does_not_end_the_command():
    closed, full = io.StringIO(), open("/dev/full", "w")  # noqa: SIM115  closing it fails
    closed.close()
    for stream in (closed, full):
        StatusLine(stream, {"TERM": "xterm"}).show(lambda: "2 calls")
    with contextlib.suppress(OSError):
        full.close()


def test_a_line_that_was_never_shown_is_not_cleared():
    stream = Terminal()

    StatusLine(stream, {"TERM": "xterm"}).clear()

    assert stream.getvalue() == ""
