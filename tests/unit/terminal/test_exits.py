"""How commands end whose output cannot be written: one sentence, the right code, no traceback."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tgis_cli.terminal.exits import asks_for_json, explain_error
from tgis_server.errors import NotEnoughDevices

NO_SPACE = "tgis: The output cannot be written: No space left on device.\n"


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status": "ready"}')

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    """Of a server that says that it is healthy."""
    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def run_without_space(*arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a command whose stdout is on a full disk."""
    return run_python_without_space("-m", "tgis_cli", *arguments)


def run_python_without_space(*arguments: str) -> tuple[int, str]:
    """Like ``run_without_space``, for the interpreter's arguments; what is printed is buffered until the last flush."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        command = [sys.executable, *arguments]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, env=environ)
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_probe_that_cannot_write_its_answer_says_so(url: str, as_json: list[str]):
    assert run_without_space("health", "--url", url, *as_json) == (4, NO_SPACE)


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_probe_that_fails_keeps_its_code_if_its_object_cannot_be_written(as_json: list[str]):
    code, errors = run_without_space("health", "--url", "127.0.0.1:1", *as_json)

    assert code == 1
    assert errors.startswith("tgis: No server at 127.0.0.1:1: ")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_command_that_cannot_write_its_output_says_so(as_json: list[str]):
    assert run_without_space("version", *as_json) == (4, NO_SPACE)


def test_a_command_that_leaves_at_once_says_that_its_output_cannot_be_written():
    leaving = """
from tgis_cli.terminal.exits import errors_as_exit_codes, leave
with errors_as_exit_codes(debug=False):
    print("Once upon a time")
    leave(0)
"""
    assert run_python_without_space("-c", leaving) == (4, NO_SPACE)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")])
def test_a_command_without_memory_does_not_speak_of_a_servers_options(error: Exception):
    assert explain_error(error) == (
        "This command ran out of memory: free some, or raise its limit (`ulimit -v`).",
        NotEnoughDevices.exit_code,
    )


@pytest.mark.parametrize(
    ("line", "is_asked"),
    [
        ("health --json", True),
        ("health", False),
        ("bench --json out.json", False),
        ("bench load --json out.json --csv -", False),
        ("bench --json -", True),
        ("bench load --json=-", True),
        ("bench compare old.json new.json --json", True),
    ],
)
def test_errors_are_json_where_stdout_would_have_json(line: str, is_asked: bool):
    assert asks_for_json(line.split()) is is_asked
