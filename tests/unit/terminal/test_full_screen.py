"""A real terminal that a program uses as a whole, and that is as before whatever ends or suspends the program."""

from __future__ import annotations

import os
import signal
import sys
import termios
from typing import Any

import pytest

from screens import Terminal, open_terminal

PROGRAM = """
import os, sys
from tgis_cli.__main__ import end_quietly
from tgis_cli.terminal.full_screen import FullScreen
end_quietly(is_launch=False)
screen = FullScreen(sys.stdout, sys.stdin)
with screen.open():
    while True:
        screen.draw([f"{os.getpid()} has {screen.size[0]} columns"])
        key = screen.wait_for_key()
        if key == "q":
            break
        if key == "x":
            raise SystemExit(3)
"""
DRAWN = "has 40 columns"


def start(terminal: Terminal, then: str = "true", program: str = '"$0" -c "$1"') -> Any:
    """Run the program in a shell with job control, and then the shell's commands."""
    command = f"set -m; echo before; {program}\n{then}; echo over; read -r end"
    return terminal.start(["bash", "-c", command, sys.executable, PROGRAM], os.environ)


def wait_for_line(terminal: Terminal, end: str) -> str:
    terminal.wait_for(lambda screen: any(line.endswith(end) for line in screen.lines))
    return next(line for line in terminal.screen.lines if line.endswith(end))


def assert_is_as_before(terminal: Terminal, before: list[Any]) -> None:
    assert termios.tcgetattr(terminal.stream) == before
    assert (terminal.screen.is_alternate, terminal.screen.has_cursor) == (False, True)


@pytest.mark.parametrize("ending", ["q", "x", "aqa", "\x1b[Aq", "\x03", signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_as_before_however_the_program_ends(ending: str | signal.Signals):
    with open_terminal() as terminal:
        before = termios.tcgetattr(terminal.stream)
        shell = start(terminal)
        pid = int(wait_for_line(terminal, DRAWN).split()[0])
        assert (terminal.screen.is_alternate, terminal.screen.has_cursor) == (True, False)
        if isinstance(ending, str):
            terminal.type(ending)
        else:
            os.kill(pid, ending)
        terminal.wait_for(lambda screen: not screen.is_alternate)
        terminal.type("\n")
        shell.wait(10)  # bash ends like a program that died of Ctrl-C

        assert_is_as_before(terminal, before)
        assert terminal.screen.lines[0] == "before"


def test_a_suspended_program_gives_the_terminal_back_and_takes_it_again_when_it_continues():
    with open_terminal() as terminal:
        before = termios.tcgetattr(terminal.stream)
        shell = start(terminal, "echo suspended; read -r go; fg")
        wait_for_line(terminal, DRAWN)
        terminal.type("\x1a")
        wait_for_line(terminal, "suspended")
        assert_is_as_before(terminal, before)
        terminal.type("\n")
        terminal.wait_for(lambda screen: screen.is_alternate and any(line.endswith(DRAWN) for line in screen.lines))
        terminal.type("q")
        wait_for_line(terminal, "over")

        assert_is_as_before(terminal, before)
        terminal.type("\n")
        shell.wait(10)


def test_a_program_in_the_background_waits_for_the_terminal():
    with open_terminal() as terminal:
        waits = "while ! jobs -s | grep -q .; do :; done; echo waits; fg >&2"
        shell = start(terminal, waits, program='"$0" -c "$1" &')
        wait_for_line(terminal, DRAWN)
        assert "waits" in terminal.raw.partition("\x1b")[0]
        terminal.type("q")
        wait_for_line(terminal, "over")
        terminal.type("\n")
        shell.wait(10)


def test_a_new_size_is_drawn_at_once():
    with open_terminal() as terminal:
        shell = start(terminal)
        wait_for_line(terminal, DRAWN)
        terminal.resize(60)
        wait_for_line(terminal, "has 60 columns")
        terminal.type("q")
        wait_for_line(terminal, "over")
        terminal.type("\n")
        shell.wait(10)


def test_function_keys_are_no_letters():
    with open_terminal() as terminal:
        shell = start(terminal, 'echo "code $?"')
        terminal.wait_for(lambda _: terminal.raw.count(DRAWN) == 2)  # opened, and woken by that
        terminal.type("\x1bq")
        terminal.wait_for(lambda _: terminal.raw.count(DRAWN) == 3)
        terminal.type("x")
        wait_for_line(terminal, "code 3")
        terminal.type("\n")
        shell.wait(10)


def test_without_a_keyboard_only_signals_end_it():
    with open_terminal() as terminal:
        before = termios.tcgetattr(terminal.stream)
        shell = start(terminal, program='"$0" -c "$1" </dev/null')
        pid = int(wait_for_line(terminal, DRAWN).split()[0])
        os.kill(pid, signal.SIGTERM)
        wait_for_line(terminal, "over")

        assert_is_as_before(terminal, before)
        terminal.type("\n")
        shell.wait(10)
