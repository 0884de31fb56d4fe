"""What a person sees of a launch on a terminal of 80 columns."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from terminals import PseudoTerminal, pseudo_terminal
from tgis_cli.relay.screen import describe_request
from tgis_cli.relay.terminal import Terminal
from tgis_server.logs import make_line

NAMES = ["launcher", "shard-0", "frontend"]
CLOCK = re.compile(r"\d\d:\d\d:\d\d")
INDENT = " " * len("12:30:00 shard-0   ")
LONG = "max_sequence_length lowered from 131072 to 8192: keys and values of one sequence need 16.0 GiB each."
REQUEST = {
    "correlation_id": "call-7",
    "stop_reason": "EOS_TOKEN",
    "kind": "single",
    "input_tokens": 12,
    "generated_tokens": 80,
    "inference_s": 1.23,
    "total_s": 1.2412,
}


def show(
    work: Callable[[Terminal], None], columns: int = 80, *, is_verbose: bool = False, **environ: str
) -> PseudoTerminal:
    """A terminal on which ``work`` has written."""
    with pseudo_terminal(columns) as pty:
        environ = {"TERM": "xterm-256color", **environ}
        terminal = Terminal(pty.stream, pty.stream, environ, as_json=False, names=NAMES, is_verbose=is_verbose)
        work(terminal)
        assert terminal.close(timeout_s=5)
    return pty


def lines_of(pty: PseudoTerminal) -> list[str]:
    return [CLOCK.sub("T", line) for line in pty.lines]


def relay(process: str, level: str, text: str, **fields: object) -> Callable[[Terminal], None]:
    line = make_line(process, 0.0, level, text, fields)
    return lambda terminal: terminal.relay(process, line, to_stderr=True)


def test_a_warning_is_wrapped_between_words_below_its_text():
    assert lines_of(show(relay("shard-0", "warning", LONG))) == [
        "T shard-0   warning: max_sequence_length lowered from 131072 to 8192:",
        INDENT + "keys and values of one sequence need 16.0 GiB each.",
    ]


def test_an_event_is_shown_and_other_information_of_a_process_is_not():
    def work(terminal: Terminal) -> None:
        relay("frontend", "info", "listening: gRPC 127.0.0.1:8033")(terminal)
        relay("frontend", "info", 'says "event"')(terminal)
        relay("frontend", "info", "TLS certificate tls.crt was reloaded", event="certificate_reloaded")(terminal)

    assert lines_of(show(work)) == ["T frontend  TLS certificate tls.crt was reloaded"]


def test_a_row_with_columns_is_wrapped_below_its_last_one():
    row = "  kv_cache_memory  -  one sequence of maximum length or, if larger, a share"

    assert lines_of(show(relay("launcher", "info", row), 64)) == [
        "T launcher    kv_cache_memory  -  one sequence of maximum",
        INDENT + " " * len("  kv_cache_memory  -  ") + "length or, if larger, a",
        INDENT + " " * len("  kv_cache_memory  -  ") + "share",
    ]


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal(columns: int):
    lines = show(relay("shard-0", "warning", LONG), columns).lines

    assert max(map(len, lines)) <= columns
    assert " ".join(line.strip() for line in lines).endswith(LONG)


def test_of_childrens_lines_only_warnings_errors_and_requests_are_shown():
    def work(terminal: Terminal) -> None:
        for level in ("info", "warning", "error"):
            relay("shard-0", level, f"some {level}")(terminal)
        relay("frontend", "info", "input done", **REQUEST)(terminal)
        terminal.relay("shard-0", "NCCL INFO something", to_stderr=False)

    assert lines_of(show(work)) == [
        "T shard-0   warning: some warning",
        "T shard-0   error: some error",
        "T frontend  12 tokens in, 80 out, 1.24 s (65/s), EOS_TOKEN",
    ]


def test_verbose_shows_every_line_with_all_its_fields():
    def work(terminal: Terminal) -> None:
        relay("shard-0", "info", "loaded")(terminal)
        relay("frontend", "info", "input done", **REQUEST)(terminal)
        terminal.summarize("Serving", ["on"])

    assert lines_of(show(work, is_verbose=True)) == [
        "T shard-0   loaded",
        "T frontend  input done correlation_id=call-7 stop_reason=EOS_TOKEN",
        INDENT + "kind=single input_tokens=12 generated_tokens=80",
        INDENT + "inference_s=1.23 total_s=1.2412",
    ]


def test_the_launchers_own_lines_are_shown_but_for_details():
    def work(terminal: Terminal) -> None:
        terminal.summarize("Serving demo", ["on the CPU"])
        relay("launcher", "info", "SIGINT: draining")(terminal)
        detail = make_line("launcher", 0.0, "info", "  engine  native", {})
        terminal.relay("launcher", detail, to_stderr=True, is_detail=True)

    assert lines_of(show(work)) == ["Serving demo", "  on the CPU", "T launcher  SIGINT: draining"]


def test_the_log_file_has_every_line_whatever_the_terminal_shows(tmp_path: Path):
    with pseudo_terminal(80) as pty:
        terminal = Terminal(
            pty.stream, pty.stream, {"TERM": "xterm"}, as_json=False, names=NAMES, log_file=tmp_path / "log"
        )
        terminal.summarize("Serving demo", [])
        relay("frontend", "info", "input done", **REQUEST)(terminal)
        assert terminal.close(timeout_s=5)

    (line,) = (tmp_path / "log").read_text().splitlines()
    assert "info    input done correlation_id=call-7 stop_reason=EOS_TOKEN" in line


def test_a_pipe_gets_no_summary_and_every_line_whole():
    stream = io.StringIO()
    terminal = Terminal(stream, stream, {"TERM": "xterm"}, as_json=False, names=NAMES)

    terminal.summarize("Serving demo", ["on the CPU"])
    relay("shard-0", "info", LONG)(terminal)
    assert terminal.close(timeout_s=5)

    assert re.fullmatch(rf"shard-0  \| \S+ info    {re.escape(LONG)}\n", stream.getvalue())


@pytest.mark.parametrize("environ", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_a_terminal_without_colours_gets_none_but_the_same_lines(environ: dict[str, str]):
    pty = show(relay("shard-0", "warning", LONG), **environ)

    assert "\x1b" not in pty.raw
    assert len(pty.lines) == 2


def test_the_last_line_is_wrapped_too():
    assert show(lambda terminal: terminal.print_last(f"{LONG} {LONG}")).lines == [
        "max_sequence_length lowered from 131072 to 8192: keys and values of one sequence",
        "need 16.0 GiB each. max_sequence_length lowered from 131072 to 8192: keys and",
        "values of one sequence need 16.0 GiB each.",
    ]


def test_a_traceback_hangs_below_its_message():
    lines = lines_of(show(relay("shard-0", "error", "failed", traceback="Traceback:\n  File x\nKeyError: 1")))

    assert lines == [
        "T shard-0   error: failed",
        INDENT + "Traceback:",
        INDENT + "  File x",
        INDENT + "KeyError: 1",
    ]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"stop_reason": "MAX_TOKENS", "total_s": 0.0384, "inference_s": None},
            "12 tokens in, 80 out, 38 ms, MAX_TOKENS",
        ),
        ({"generated_tokens": 1, "total_s": 124.4}, "12 tokens in, 1 out, 124 s, EOS_TOKEN"),
        (
            {"stop_reason": "ERROR", "generated_tokens": 0, "message": "input failed: Out of memory."},
            "input failed: Out of memory. (12 tokens in, 0 out, 1.24 s)",
        ),
    ],
)
def test_a_request_is_told_by_counts_time_rate_and_how_it_ended(changes: dict[str, object], text: str):
    assert describe_request(REQUEST | changes) == text


@pytest.mark.parametrize(
    ("environ", "has_boxes"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_boxes_are_drawn_only_where_there_are_colours(environ: dict[str, str], has_boxes: bool):
    with pseudo_terminal(80) as pty:
        terminal = Terminal(pty.stream, pty.stream, environ, as_json=False, names=NAMES)
        assert terminal.close(timeout_s=5)

    assert terminal.has_boxes is has_boxes
