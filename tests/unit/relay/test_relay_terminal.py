"""Lines of processes on the launcher's outputs: prefixes, JSON, colours, the log file, outputs without a reader."""

from __future__ import annotations

import errno
import io
import json
import re
import sys
import threading
from pathlib import Path

import pytest

from screens import open_terminal
from tgis_cli.relay.repeats import MAX_ADMITTED
from tgis_cli.relay.terminal import Terminal
from tgis_server.logs import make_line

NAMES = ["launcher", "shard-0"]
CLOCK = re.compile(r"\d\d:\d\d:\d\d(\.\d{3})?")


class Outputs:
    def __init__(
        self,
        *,
        as_json: bool = False,
        stdout: io.StringIO | None = None,
        stderr: io.StringIO | None = None,
        log_file: Path | None = None,
    ) -> None:
        self.stdout, self.stderr = stdout or io.StringIO(), stderr or io.StringIO()
        environ = {"TERM": "xterm"}
        self.terminal = Terminal(self.stdout, self.stderr, environ, as_json=as_json, names=NAMES, log_file=log_file)

    def finish(self) -> tuple[str, str]:
        """Both outputs, with clocks replaced by T."""
        assert self.terminal.close(timeout_s=5)
        return without_clocks(self.stdout.getvalue()), without_clocks(self.stderr.getvalue())


class BrokenOutput(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


class SlowOutput(io.StringIO):
    """Blocks until ``is_read`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.is_read = threading.Event()

    def write(self, text: str) -> int:
        self.is_read.wait()
        return super().write(text)


class Screen(io.StringIO):
    """A terminal whose window is closed once it has shown ``last``."""

    def __init__(self, last: str | None = None) -> None:
        super().__init__()
        self.last = last

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.last is not None and self.last in self.getvalue():
            raise OSError(errno.EIO, "Input/output error")
        return super().write(text)


class FailingStatus:
    def __rich__(self) -> str:
        raise RuntimeError("no status")


class StreamsStatus:
    """A status that records the streams of the process while it is shown."""

    streams: tuple[object, object]

    def __rich__(self) -> str:
        self.streams = sys.stdout, sys.stderr
        return "loading"


def without_clocks(text: str) -> str:
    return CLOCK.sub("T", text)


def on_a_screen(*levels: str, as_json: bool = False, **environ: str) -> str:
    """The output of a verbose terminal for one line of each level."""
    screen = Screen()
    environ = {"TERM": "xterm", **environ}
    terminal = Terminal(screen, screen, environ, as_json=as_json, names=NAMES, is_verbose=True)
    for level in levels:
        terminal.relay("shard-0", make_line("shard-0", 0.0, level, "text", {}), to_stderr=True)
    assert terminal.close(timeout_s=5)
    return without_clocks(screen.getvalue())


def test_lines_keep_their_stream_and_get_the_name_of_their_process():
    outputs = Outputs()

    outputs.terminal.relay("shard-0", "to stdout", to_stderr=False)
    outputs.terminal.relay("launcher", "to stderr", to_stderr=True)

    assert outputs.finish() == ("shard-0  | T info    to stdout\n", "launcher | T warning to stderr\n")


def test_in_json_our_lines_pass_unchanged_and_others_are_wrapped():
    outputs = Outputs(as_json=True)
    own = make_line("shard-0", 0.0, "info", "own", {})

    outputs.terminal.relay("shard-0", own, to_stderr=True)
    outputs.terminal.relay("shard-0", "{not json", to_stderr=True)
    passed, wrapped = outputs.finish()[1].splitlines()

    assert passed == without_clocks(own)
    assert json.loads(wrapped)["message"] == "{not json"


def test_a_closed_output_does_not_block_the_other():
    outputs = Outputs(stdout=BrokenOutput())

    outputs.terminal.print("ready")
    outputs.terminal.print_last("the end")

    assert outputs.finish()[1] == "the end\n"


def test_the_last_line_is_never_dropped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tgis_cli.relay.terminal.MAX_PENDING_LINES", 3)
    stdout = SlowOutput()
    outputs = Outputs(stdout=stdout)

    for number in range(9):
        outputs.terminal.relay("shard-0", str(number), to_stderr=False)
    outputs.terminal.print_last("the end")
    stdout.is_read.set()

    assert re.fullmatch(r"launcher \| T warning [56] lines were dropped: .*\nthe end\n", outputs.finish()[1])


def test_the_last_line_comes_after_reports_of_withheld_lines():
    outputs = Outputs()

    for _ in range(MAX_ADMITTED + 3):
        outputs.terminal.relay("shard-0", "again", to_stderr=True)
    outputs.terminal.print_last("the end")

    assert outputs.finish()[1].splitlines()[-2:] == [
        "shard-0  | T warning repeated 3 times in 0 s: again",
        "the end",
    ]


def test_the_log_file_has_everything_as_log_lines(tmp_path: Path):
    outputs = Outputs(log_file=tmp_path / "log")

    outputs.terminal.relay("shard-0", "\x1b[1mtext", to_stderr=False)
    outputs.terminal.print("Ready.\n  more")
    outputs.terminal.print_last("the end")
    outputs.finish()

    assert without_clocks((tmp_path / "log").read_text()).splitlines() == [
        "shard-0  | T info    text",
        "launcher | T info    Ready.",
        "launcher | T info      more",
        "launcher | T error   the end",
    ]


def test_the_log_file_is_reopened_by_name(tmp_path: Path):
    outputs = Outputs(log_file=tmp_path / "log")

    outputs.terminal.print("one")
    outputs.terminal.reopen()
    outputs.terminal.print("two")
    outputs.finish()

    assert "was reopened\n" in (tmp_path / "log").read_text()
    assert (tmp_path / "log").read_text().count("\n") == 3


def test_a_log_file_that_cannot_be_written_is_reported_once_and_blocks_nothing():
    outputs = Outputs(log_file=Path("/dev/full"))

    for text in ("one", "two"):
        outputs.terminal.relay("shard-0", text, to_stderr=True)

    assert outputs.finish()[1].splitlines() == [
        "shard-0  | T warning one",
        "launcher | T warning /dev/full cannot be written: No space left on device; lines are dropped for now.",
        "shard-0  | T warning two",
    ]


@pytest.mark.parametrize("last", ["", "loading", "loaded"])
def test_a_closed_terminal_stops_neither_the_log_file_nor_results(tmp_path: Path, last: str):
    outputs = Outputs(stderr=Screen(last), log_file=tmp_path / "log")

    for status in ("loading", "loaded", None):
        outputs.terminal.show_status(status)
        outputs.terminal.relay("shard-0", "text", to_stderr=True)
    outputs.terminal.print("ready", shown="a panel")

    assert outputs.finish()[0] == "ready\n"
    assert without_clocks((tmp_path / "log").read_text()).splitlines() == [
        *["shard-0  | T warning text"] * 3,
        "launcher | T info    ready",
    ]


def test_a_status_leaves_the_streams_of_the_process_alone():
    outputs = Outputs(stderr=Screen())
    status = StreamsStatus()

    outputs.terminal.show_status(status)
    outputs.finish()

    assert status.streams == (sys.stdout, sys.stderr)


def test_a_status_that_cannot_be_shown_is_reported_with_its_traceback_and_stops_nothing():
    outputs = Outputs(stderr=Screen())

    outputs.terminal.show_status(FailingStatus())
    outputs.terminal.relay("shard-0", "next", to_stderr=False)
    stdout, stderr = outputs.finish()

    assert "RuntimeError: no status" in stderr
    assert stdout == "shard-0  | T info    next\n"


def test_a_terminal_shows_names_warnings_and_errors_in_colours():
    assert on_a_screen("info", "warning", "error") == (
        "\x1b[2mT \x1b[0m\x1b[32mshard-0   \x1b[0mtext\n"
        "\x1b[2mT \x1b[0m\x1b[32mshard-0   \x1b[0m\x1b[33mwarning: \x1b[0mtext\n"
        "\x1b[2mT \x1b[0m\x1b[32mshard-0   \x1b[0m\x1b[1;31merror: \x1b[0mtext\n"
    )


@pytest.mark.parametrize("options", [{"NO_COLOR": "0"}, {"TERM": "dumb"}, {"as_json": True}])
def test_there_are_no_colours_if_they_are_not_wanted(options: dict):
    assert "\x1b" not in on_a_screen("info", "error", **options)


def test_an_empty_no_color_means_nothing():
    assert "\x1b[32m" in on_a_screen("info", NO_COLOR="")


@pytest.mark.parametrize("text", ["", "Once", "x" * 39, "x" * 40, "x" * 41])
def test_on_a_shared_terminal_a_line_begins_below_whatever_another_process_has_begun(text: str):
    with open_terminal(40) as screen:
        terminal = Terminal(
            screen.stream, screen.stream, {"TERM": "xterm"}, as_json=False, names=NAMES, is_verbose=True, is_shared=True
        )
        screen.stream.write(text)
        screen.stream.flush()
        terminal.relay("shard-0", make_line("shard-0", 0, "info", "done", {}), to_stderr=True)
        assert terminal.close(timeout_s=5)
        screen.wait_for(lambda shown: "done" in "".join(shown.lines))
        lines = screen.screen.lines

    begun = [text[start : start + 40] for start in range(0, len(text), 40)]
    assert [line for line in lines if line][:-1] == begun
