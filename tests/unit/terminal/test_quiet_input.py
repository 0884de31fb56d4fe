"""The echo of a real terminal, whatever ends the block in which it is off. A shell stays behind to look afterwards."""

from __future__ import annotations

import io
import os
import signal
import sys
import termios
from typing import Any

import pytest

from screens import Terminal, open_terminal
from tgis_cli.terminal.quiet_input import LOCAL_MODES, quiet_input

PROGRAM = """
import os, sys
from tgis_cli.__main__ import end_quietly
from tgis_cli.terminal.quiet_input import quiet_input
end_quietly(is_launch=False)
with quiet_input(sys.stdout):
    print(os.getpid(), "works", flush=True)
    if sys.stdin.readline() == "fail\\n":
        raise SystemExit(3)
"""


def start(terminal: Terminal, then: str) -> Any:
    """Run the program in a shell with job control, and then the shell's commands."""
    command = f'set -m; "$0" -c "$1"; {then}; echo over; read -r end'
    return terminal.start(["bash", "-c", command, sys.executable, PROGRAM], os.environ)


def wait_for_line(terminal: Terminal, end: str) -> str:
    terminal.wait_for(lambda screen: any(line.endswith(end) for line in screen.lines))
    return next(line for line in terminal.screen.lines if line.endswith(end))


def wait_for_echo(terminal: Terminal, *, is_on: bool) -> None:
    terminal.wait_for(lambda _: bool(termios.tcgetattr(terminal.stream)[LOCAL_MODES] & termios.ECHO) == is_on)


@pytest.mark.parametrize("ending", ["done", "fail", signal.SIGTERM, signal.SIGHUP])
def test_what_is_typed_is_not_shown_and_the_terminal_is_as_before_however_it_ends(ending: str | signal.Signals):
    with open_terminal() as terminal:
        before = termios.tcgetattr(terminal.stream)
        shell = start(terminal, "true")
        pid = int(wait_for_line(terminal, "works").split()[0])
        assert not termios.tcgetattr(terminal.stream)[LOCAL_MODES] & termios.ECHO
        if isinstance(ending, str):
            terminal.type(f"{ending}\n")
        else:
            os.kill(pid, ending)
        wait_for_line(terminal, "over")

        assert termios.tcgetattr(terminal.stream) == before
        assert "done" not in terminal.raw
        terminal.type("\n")
        shell.wait(10)


def test_a_suspended_program_restores_the_echo_and_switches_it_off_again_when_it_continues():
    with open_terminal() as terminal:
        before = termios.tcgetattr(terminal.stream)
        shell = start(terminal, "echo suspended; read -r go; fg")
        wait_for_line(terminal, "works")
        terminal.type("\x1a")
        wait_for_line(terminal, "suspended")
        assert termios.tcgetattr(terminal.stream) == before
        terminal.type("\n")
        wait_for_echo(terminal, is_on=False)
        terminal.type("done\n")
        wait_for_line(terminal, "over")

        assert termios.tcgetattr(terminal.stream) == before
        terminal.type("\n")
        shell.wait(10)


def test_other_outputs_than_terminals_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    with quiet_input(io.StringIO()):
        assert signal.getsignal(signal.SIGTERM) is before
