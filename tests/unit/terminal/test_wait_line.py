"""What a command waits for: one line that is gone afterwards on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io

import pytest

from tgis_cli.terminal.capabilities import is_capable
from tgis_cli.terminal.wait_line import WaitLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show_two(stream: io.StringIO, term: str) -> str:
    with WaitLine(stream, {"TERM": term}) as line:
        for text in ("2 calls", "2 calls", "1 call"):
            line.show(text)
    return stream.getvalue()


def test_on_a_terminal_the_line_changes_and_is_gone_afterwards():
    assert show_two(Terminal(), "xterm") == "\r\x1b[K2 calls\r\x1b[K1 call\r\x1b[K"


@pytest.mark.parametrize(("stream", "term"), [(io.StringIO(), "xterm"), (Terminal(), "dumb")])
def test_elsewhere_each_change_is_a_line(stream: io.StringIO, term: str):
    assert show_two(stream, term) == "2 calls\n1 call\n"


def test_without_a_wait_nothing_is_written():
    stream = Terminal()

    with WaitLine(stream, {"TERM": "xterm"}):
        pass

    assert stream.getvalue() == ""


@pytest.mark.parametrize(("term", "expected"), [("xterm-256color", True), ("dumb", False), ("", False)])
def test_a_terminal_must_understand_escape_sequences(term: str, expected: bool):
    assert is_capable(Terminal(), {"TERM": term}) is expected
    assert not is_capable(io.StringIO(), {"TERM": term})
