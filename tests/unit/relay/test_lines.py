"""Lines of processes: parsed from our JSON, or guessed from what libraries write."""

from __future__ import annotations

import json
import time

import pytest

from tgis_cli.relay.lines import Line, Lines, guess_level, plain_lines
from tgis_cli.relay.repeats import MAX_ADMITTED
from tgis_server.logs import escape, make_line

WALL = 1_700_000_000.25
CLOCK = time.strftime("%H:%M:%S.250", time.localtime(WALL))


def take(*raw: str, lines: Lines | None = None, is_stderr: bool = True) -> list[Line]:
    lines = lines or Lines("shard-1")
    taken = (lines.take(one, 0.0, WALL, is_stderr=is_stderr) for one in raw)
    return [line for line in taken if line]


def texts(*raw: str) -> list[str]:
    return [text for line in take(*raw) for text in line.as_text(8)]


def own(message: str, **fields: object) -> str:
    return make_line("shard-1", WALL, "info", message, fields)


def test_our_line_as_text_has_name_clock_level_message_and_fields():
    line = own("done", correlation_id="a b", tokens=3, queue_s=None, note='say "x=1"', empty="", is_last=True)

    assert texts(line) == [
        f'shard-1  | {CLOCK} info    done correlation_id="a b" tokens=3 note="say \\"x=1\\"" empty="" is_last=true'
    ]


def test_our_line_as_json_is_passed_on_unchanged():
    line = own("loaded", correlation_id="c", seconds=1.5)

    [taken] = take(line)

    assert taken.as_json == line
    assert list(json.loads(line).items()) == [
        ("time", "2023-11-14T22:13:20.250Z"),
        ("level", "info"),
        ("process", "shard-1"),
        ("rank", 1),
        ("correlation_id", "c"),
        ("message", "loaded"),
        ("seconds", 1.5),
    ]


def test_each_line_of_a_traceback_has_the_prefix():
    line = own("It failed.", traceback='Traceback (most recent call last):\n  File "a.py"\nValueError: no')

    prefix = f"shard-1  | {CLOCK} info   "
    assert texts(line) == [
        f"{prefix} It failed.",
        f"{prefix} Traceback (most recent call last):",
        f'{prefix}   File "a.py"',
        f"{prefix} ValueError: no",
    ]


@pytest.mark.parametrize("forged", ["x\nfrontend | 10:00:00.000 error forged", "x\r\x1b[2Kforged", "x\u2028y\x85z"])
def test_no_text_can_look_like_another_line_or_steer_a_terminal(forged: str):
    line = own(forged, field=forged)
    [text] = texts(line)

    assert len(line.splitlines()) == 1
    assert json.loads(line)["message"] == forged
    assert text.isprintable()


def test_neither_level_nor_field_names_can_look_like_another_line():
    [text] = texts(OWN.replace("info", r"info\nx") + r', "a\nb": 1}')

    assert text.isprintable()


def test_a_library_line_gets_a_clock_and_a_level_and_loses_its_colours():
    [line] = take("\x1b[33mslow\x1b[0m\x07")

    assert line.as_text(8) == [f"shard-1  | {CLOCK} warning slow\\u0007"]
    assert json.loads(line.as_json) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "process": "shard-1",
        "rank": 1,
        "message": "slow\x07",
    }


OWN = '{"time": "2026-01-01T00:00:00Z", "process": "shard-1", "level": "info", "message": "m"'


@pytest.mark.parametrize(
    "broken",
    [
        '{"time": "now"}',
        '{"time": "2026',
        '{"message": "other"}',
        OWN + ', "time": 5}',
        OWN + ', "traceback": null}',
        OWN + ', "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
        OWN + ', "x": "\u2028"}',
        OWN.replace("shard-1", "launcher") + "}",
    ],
)
def test_other_json_is_treated_as_a_library_line(broken: str):
    [line] = take(broken)

    assert (line.process, line.level, line.text) == ("shard-1", "warning", escape(broken))


@pytest.mark.parametrize(
    ("raw", "level"),
    [
        ("[W1122 21:30:39.038123456 ProcessGroupNCCL.cpp:12] Warning: slow", "warning"),
        ("[rank0]:[E1122 21:30:39.038123456 ProcessGroupNCCL.cpp:12] dead", "error"),
        ("W1122 21:30:39.038000 1234 torch/_dynamo/convert_frame.py:1] recompiling", "warning"),
        ("I0000 00:00:1763847039.123456    1234 fork_posix.cc:75] Other threads are calling", "info"),
        ("F0000 00:00:1763847039.123456    1234 chttp2.cc:75] Check failed", "critical"),
        ("host:1234:1250 [0] NCCL INFO Bootstrap: using lo", "info"),
        ("host:1234:1250 [0] transport/net.cc:12 NCCL WARN Connect failed", "warning"),
        ("/x/module.py:12: UserWarning: The error: is small", "warning"),
        ("WARNING: All log messages before absl::InitializeLog() is called", "warning"),
        ("[INFO] loaded", "info"),
        ("DEBUG:root:x", "debug"),
        ("Fatal Python error: Segmentation fault", "error"),
        ("Current thread 0x00007f (most recent call first):", "error"),
        ("Traceback (most recent call last):", "error"),
        ("torch.OutOfMemoryError: CUDA out of memory", "error"),
        ("terminate called after throwing an instance of 'c10::Error'", "error"),
        ("Informal text", "default"),
    ],
)
def test_the_level_of_a_library_line_is_guessed_from_its_text(raw: str, level: str):
    assert guess_level(raw, "default") == level


def test_by_default_stdout_is_info_and_stderr_a_warning():
    assert [take("text", is_stderr=is_stderr)[0].level for is_stderr in (False, True)] == ["info", "warning"]


def test_lines_of_a_stack_have_the_level_of_its_head():
    lines = take("Thread 0x01 (most recent call first):", '  File "a.py", line 1 in f', "next")

    assert [line.level for line in lines] == ["error", "error", "warning"]


def test_equal_lines_of_different_stacks_are_kept_with_their_heads():
    stacks = [line for i in range(9) for line in (f"Thread 0x0{i} (most recent call first):", "  File a.py")]

    assert len(take(*stacks)) == len(stacks)


def test_a_stack_that_repeats_is_withheld_with_its_lines():
    assert len(take(*["Thread 0x01 (most recent call first):", "  File a.py"] * 9)) == 2 * MAX_ADMITTED


def test_withheld_lines_are_reported_at_their_own_level():
    lines = Lines("shard-1")
    take(*["ERROR: again"] * (MAX_ADMITTED + 37), lines=lines)

    [report] = lines.pop_ended(10.0, WALL)

    assert (report.level, report.text) == ("error", "repeated 37 times in 10 s: ERROR: again")


def test_blank_lines_are_dropped():
    assert take("", "  ") == []


def test_a_quoted_line_has_neither_clock_nor_level():
    assert plain_lines("shard-1", own("It failed.", traceback="Traceback\nValueError")) == [
        "It failed.",
        "Traceback",
        "ValueError",
    ]
    assert plain_lines("shard-1", "a library's") == ["a library's"]
    assert plain_lines("shard-1", own("A prompt.", level="debug")) == []
    assert plain_lines("shard-1", "DEBUG: a prompt") == []
