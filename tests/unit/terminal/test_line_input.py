"""The prompt of a prompt loop, on a real terminal."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from screens import open_terminal
from tgis_cli.terminal.line_input import LineInput

READ_A_LINE = """
from tgis_cli.terminal.line_input import LineInput
lines = LineInput(lambda before, word: [], [], is_capable=True)
print("read", lines.read(">>> "))
"""


def test_pasted_lines_stay_one_text_after_ctrl_z():
    with open_terminal(100) as terminal:
        process = terminal.start([sys.executable, "-c", READ_A_LINE], os.environ | {"TERM": "xterm"})
        terminal.wait_for(lambda screen: ">>>" in screen.lines[-1])
        terminal.type("x")
        terminal.wait_for(lambda screen: screen.lines[-1].endswith("x"))

        # The kernel does not suspend a process without a shell around it, so it continues at once.
        process.send_signal(signal.SIGTSTP)
        terminal.wait_for(lambda _: terminal.raw.endswith("\x1b[?2004l\x1b[?2004h>>> x"))

        terminal.type("y\n")
        terminal.wait_for(lambda screen: "read xy" in screen.lines)
        assert process.wait(10) == 0


def test_entries_that_readline_cannot_hold_are_left_out_of_the_history():
    readline = pytest.importorskip("readline")

    lines = LineInput(lambda before, word: [], ["a\0b", "\ud800", "fine"], is_capable=False)
    for entry in ("c\0d", "last"):
        lines.remember(entry)

    length = readline.get_current_history_length()
    assert [readline.get_history_item(number + 1) for number in range(length)] == ["fine", "last"]
