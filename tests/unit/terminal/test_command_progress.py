"""Progress of long commands: rates, the time left, and the kinds of display."""

from __future__ import annotations

import errno
import io
import json

import pytest

from tgis_cli.terminal.progress import BarProgress, JsonProgress, LineProgress, Progress, format_seconds

MIB = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def make(
    kind: type[Progress], total_bytes: int, stream: io.StringIO | None = None
) -> tuple[Progress, Clock, io.StringIO]:
    clock, stream = Clock(), stream or io.StringIO()
    return kind("downloading", total_bytes, stream, clock), clock, stream


def test_a_line_comes_every_five_seconds_with_share_rate_and_time_left():
    progress, clock, stream = make(LineProgress, 100 * MIB)

    for _ in range(5):
        clock.now += 1
        progress.advance(10 * MIB)

    assert stream.getvalue() == "downloading: 50 MiB of 100 MiB (50%), 10 MiB/s, 5 s left\n"


def test_bytes_already_there_do_not_count_towards_the_rate():
    progress, clock, stream = make(LineProgress, 100 * MIB)

    progress.add_done(50 * MIB)
    clock.now += 5
    progress.advance(5 * MIB)

    assert stream.getvalue() == "downloading: 55 MiB of 100 MiB (55%), 1 MiB/s, 45 s left\n"


def test_the_rate_covers_the_last_seconds_only():
    progress, clock, stream = make(LineProgress, 1000 * MIB)

    for num_bytes in (400 * MIB, 0, 0, 0):
        clock.now += 5
        progress.advance(num_bytes)

    assert stream.getvalue().splitlines()[-1] == "downloading: 400 MiB of 1000 MiB (40%), stalled"


def test_the_bytes_of_an_abandoned_attempt_are_subtracted():
    progress, _, _ = make(LineProgress, 100 * MIB)

    progress.advance(30 * MIB)
    progress.advance(-30 * MIB)

    assert progress.done_bytes == 0


def test_a_tick_shows_progress_even_if_nothing_moves():
    progress, clock, stream = make(LineProgress, 10 * MIB)

    clock.now += 5
    progress.tick()

    assert stream.getvalue() == "downloading: 0 B of 10 MiB (0%)\n"


def test_scripts_get_events():
    progress, clock, stream = make(JsonProgress, 4 * MIB)

    clock.now += 1
    progress.advance(MIB)
    progress.tell("a: 1 MiB", event="file", name="a", bytes=MIB)

    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [
        {
            "event": "progress",
            "action": "downloading",
            "done_bytes": MIB,
            "total_bytes": 4 * MIB,
            "bytes_per_s": MIB,
            "left_s": 3.0,
        },
        {"event": "file", "text": "a: 1 MiB", "name": "a", "bytes": MIB},
    ]


def test_a_bar_stays_in_its_line_and_changes_no_terminal_state():
    progress, clock, stream = make(BarProgress, 4 * MIB, Tty())

    clock.now += 1
    progress.advance(MIB)
    progress.tell("half way")
    progress.close()

    shown = stream.getvalue()
    assert "1 MiB of 4 MiB (25%), 1 MiB/s, 3 s left" in shown
    assert "\r\x1b[2Khalf way\n" in shown
    assert shown.endswith("\r\x1b[2K")
    assert shown.count("\n") == 1
    assert "\x1b[?25l" not in shown  # a hidden cursor would stay hidden after a kill


def test_a_bar_on_a_terminal_that_is_gone_does_not_hide_what_ended_the_work():
    class Gone(Tty):
        def flush(self) -> None:
            raise OSError(errno.EIO, "Input/output error")

    progress, _, _ = make(BarProgress, 100 * MIB, Gone())

    progress.close()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.3, "0.3 s"), (4.4, "4 s"), (99, "99 s"), (600, "10 min"), (12_000, "3 h 20 min")]
)
def test_times_are_written_in_words(seconds: float, text: str):
    assert format_seconds(seconds) == text
