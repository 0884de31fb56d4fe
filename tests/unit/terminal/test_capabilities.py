"""What an output can show is decided from the terminal and the environment alone."""

from __future__ import annotations

import io
import os

import pytest

from terminals import pseudo_terminal
from tgis_cli.terminal.capabilities import get_width, has_color, is_capable, is_terminal


@pytest.mark.parametrize(
    ("environ", "capable", "colored"),
    [
        ({"TERM": "xterm-256color"}, True, True),
        ({"TERM": "xterm-256color", "NO_COLOR": ""}, True, True),  # blank counts as not set: https://no-color.org
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, False, False),
        ({}, False, False),
    ],
)
def test_a_terminal_is_as_capable_as_its_environment_says(
    environ: dict[str, str], capable: bool, colored: bool
) -> None:
    with pseudo_terminal(80) as terminal:
        assert (is_capable(terminal.stream, environ), has_color(terminal.stream, environ)) == (capable, colored)


def test_a_pipe_and_a_closed_stream_are_not_terminals() -> None:
    closed = io.StringIO()
    closed.close()

    assert not is_terminal(closed)
    assert not is_capable(io.StringIO(), {"TERM": "xterm"})


def test_the_width_is_that_of_the_terminal_else_of_the_environment_else_80(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "132")
    with pseudo_terminal(97) as terminal:
        assert get_width(terminal.stream) == 97
    with open(os.devnull, "w") as file:
        assert get_width(file) == 132
        monkeypatch.setenv("COLUMNS", "wide")
        assert get_width(file) == 80
