"""What is shown while a load runs."""

from __future__ import annotations

import io
import threading
from array import array

import pytest

from load_results import make_result
from screens import Terminal
from tgis_cli.bench.load import live as live_module
from tgis_cli.bench.load.detail import Level, read_detail
from tgis_cli.bench.load.levels import Plan
from tgis_cli.bench.load.live import Live
from tgis_cli.bench.load.orders import Totals
from tgis_cli.terminal.status_line import LINE_S


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def tick(seconds: float, **more: object) -> Totals:
    """Eight streams of 100 tokens per second in all, 20 of each call."""
    facts = {"sent": int(8 + seconds), "in_flight": 8, "completed": int(5 * seconds)}
    samples = {"output_tokens": int(100 * seconds), "ttft_s": array("f", [0.04, 0.06]), "itl_s": array("f", [0.01])}
    return Totals(**(facts | samples | more))  # type: ignore[arg-type]


def test_a_terminal_shows_the_level_below_those_that_are_done_and_nothing_afterwards():
    terminal, clock = Terminal(120), Clock()
    live = Live(terminal.stream, {"TERM": "xterm"}, clock)
    live.start_level(Plan(concurrency=1), 10.0, None)
    live.end_level(end_of(1))
    clock.now = 100.0
    live.start_level(Plan(concurrency=8), 10.0, None)
    for seconds in (1.0, 2.0):
        clock.now = 100.0 + seconds
        live.tick(tick(seconds))
    terminal.wait_for(lambda screen: any("8 s left" in line for line in screen.lines))
    shown = list(terminal.screen.lines)
    live.clear()
    screen = terminal.close()

    assert shown[0].startswith("1 stream")
    assert shown[1] == "8 streams, 8 s left: 100 tokens/s, TTFT 40 ms (p95 60), ITL 10 ms (p95 10), 5 requests/s"
    assert screen.lines == [""]


def end_of(concurrency: int) -> Level:
    return read_detail(make_result(concurrency).detail).levels[0]


def show_elsewhere(*moments: float) -> list[str]:
    stream, clock = io.StringIO(), Clock()
    live = Live(stream, {}, clock)
    live.say("Making prompts")
    live.start_level(Plan(rate=4.0), None, 100)
    for clock.now in moments:
        live.tick(tick(clock.now, failed=3))
    live.end_level(end_of(4))
    live.clear()
    return stream.getvalue().splitlines()


def test_elsewhere_there_is_a_line_every_ten_seconds_and_one_for_each_level():
    lines = show_elsewhere(*(0.25 * number for number in range(1, int(25 / 0.25))))

    assert [line.partition(",")[0] for line in lines[:-1]] == ["4 requests/s"] * 2
    assert lines[0].startswith("4 requests/s, 82 requests left: 100 tokens/s, 8 in flight, 3 failed, TTFT 40 ms")
    assert lines[-1].startswith("4 streams, ")


def test_a_short_level_has_only_the_line_of_its_end():
    assert len(show_elsewhere(1.0, LINE_S - 1)) == 1


class Watched(io.StringIO):
    """Notes that something is written."""

    def __init__(self) -> None:
        super().__init__()
        self.is_written = threading.Event()

    def write(self, text: str) -> int:
        self.is_written.set()
        return super().write(text)


def test_a_preparation_that_takes_long_is_shown_even_if_it_tells_nothing_itself(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live_module, "LINE_S", 0.01)
    stream = Watched()

    def clock() -> float:
        return 0.0 if threading.current_thread() is threading.main_thread() else 1.0

    with Live(stream, {}, clock).doing("Making prompts"):
        assert stream.is_written.wait(60)

    assert stream.getvalue() == "Making prompts\n"


def test_a_level_whose_calls_are_all_sent_is_finishing():
    stream, clock = io.StringIO(), Clock()
    live = Live(stream, {}, clock)
    live.start_level(Plan(concurrency=8), 5.0, None)
    clock.now = LINE_S
    live.tick(tick(LINE_S))

    assert stream.getvalue().startswith("8 streams, finishing: ")
