"""What is shown while a server starts."""

from __future__ import annotations

import io

from running import make_running
from screens import open_terminal
from tgis_cli.clients.server_status import State, Status
from tgis_cli.own_server.start_line import StartLine

READING = Status(State.STARTING, phase="reading weights", share=0.45)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_terminal_shows_one_line_after_a_second_and_nothing_in_the_end():
    clock = Clock()
    with open_terminal(80) as terminal:
        line = StartLine("org/model", terminal.stream, {"TERM": "xterm"}, clock=clock, ask=lambda _: READING)
        line.update(None)
        clock.now += 2
        line.update(make_running())
        terminal.wait_for(lambda screen: screen.lines == ["Starting org/model: reading weights 45%, 2 s"])
        line.clear()
        assert terminal.close().lines == [""]
        assert terminal.raw.startswith("\r\x1b[2KStarting")


def test_a_fast_start_shows_nothing():
    clock = Clock()
    with open_terminal(80) as terminal:
        line = StartLine("org/model", terminal.stream, {"TERM": "xterm"}, clock=clock, ask=lambda _: READING)
        clock.now += 0.9
        line.update(make_running())
        line.clear()
        terminal.close()
        assert terminal.raw == ""


def test_elsewhere_there_is_a_line_every_few_seconds_and_only_then_a_question():
    clock, stream, questions = Clock(), io.StringIO(), []
    line = StartLine("org/model", stream, {"TERM": "xterm"}, clock=clock, ask=lambda s: questions.append(s) or READING)

    for _ in range(120):
        clock.now += 0.1
        line.update(make_running() if clock.now > 103 else None)

    assert stream.getvalue().splitlines() == [
        "Starting org/model: reading weights 45%, 5 s",
        "Starting org/model: reading weights 45%, 10 s",
    ]
    assert len(questions) == 2
