"""`tgis top` with real servers: a look for scripts, a page on a terminal, and what it cannot look at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from screens import open_terminal
from tgis_cli.top.glance import Glance

TGIS = Path(sys.executable).parent / "tgis"
Start = Callable[..., Any]
REHEARSAL = ("--rehearse", "--host", "127.0.0.1")


def run_top(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.run(
        [TGIS, "top", *arguments],
        env=kept | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture(scope="module")
def server(start_shared: Start) -> Any:
    return start_shared(*REHEARSAL).wait_until_ready()


def test_a_look_for_scripts_has_the_server_and_its_processes(server: Any):
    facts = json.loads(run_top("--url", server.facts["http"], "--once", "--json", "--interval", "0.2").stdout)

    assert facts.keys() == Glance.__dataclass_fields__.keys() - {"history"}
    assert (facts["model"], facts["mode"], facts["state"]) == ("demo", "rehearsal", "ready")
    assert {each["name"]: each["pid"] for each in facts["processes"]} == {
        "launcher": server.process.pid,
        **server.facts["pids"],
    }
    assert all(each["memory_bytes"] > 10 << 20 for each in facts["processes"])
    assert (facts["requests_per_s"], facts["running"], facts["kv_blocks_used"]) == (0, 0, 0)
    assert facts["kv_blocks_total"] > 0


def test_a_look_for_people_is_a_page_without_escape_sequences(server: Any):
    done = run_top("--url", server.facts["http"], "--once", "--interval", "0.2")

    assert done.stdout.startswith("demo (rehearsal)")
    assert "\x1b" not in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_a_grpc_address_leads_to_the_http_port_of_its_server(server: Any):
    arguments = ("--once", "--json", "--interval", "0.2")
    by_option = json.loads(run_top(*arguments, "--url", f"grpc://{server.facts['grpc']}").stdout)
    by_variable = json.loads(run_top(*arguments, TGIS_URL=server.facts["grpc"]).stdout)

    assert by_option["url"] == by_variable["url"] == server.facts["http"]


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("http://127.0.0.1:1", 1, "tgis: No server at 127.0.0.1:1: start one with `tgis launch`"),
        ("{grpc}", 1, "is a gRPC port, and this command asks over HTTP: write grpc://127.0.0.1:"),
        ("https://{http}", 1, "does not speak TLS: write http://127.0.0.1:"),
        ("{http}/metrics", 2, "has more than an address (a path): HOST:PORT is enough"),
        ("grpc://127.0.0.1:1", 2, "The HTTP port of the server at grpc://127.0.0.1:1 is not known"),
        ("nonsense", 2, "is not HOST:PORT"),
    ],
)
def test_what_is_no_server_is_said_in_a_sentence(server: Any, url: str, code: int, said: str):
    http = server.facts["http"].removeprefix("http://")
    done = run_top("--url", url.format(http=http, grpc=server.facts["grpc"]))

    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_in_a_pipe_there_is_a_line_per_look(server: Any):
    command = [TGIS, "top", "--url", server.facts["http"], "--interval", "0.2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        process.send_signal(signal.SIGINT)

    assert all(" ready  0.0 requests/s  0.0 tokens/s  0 running" in line for line in lines)
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize(
    "environ", [{"TERM": "dumb"}, {"TERM": "xterm", "LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii"}]
)
def test_a_terminal_that_cannot_draw_gets_lines(server: Any, environ: dict[str, str]):
    with open_terminal(200) as terminal:
        command = [TGIS, "top", "--url", server.facts["http"], "--interval", "0.2"]
        process = terminal.start(command, os.environ | environ)
        terminal.wait_for(lambda screen: any(" ready  0.0 requests/s" in line for line in screen.lines))
        terminal.type("\x03")
        process.wait(10)

        assert "\x1b" not in terminal.raw


def test_a_server_that_stops_is_said_and_waited_for(start: Start):
    server = start(*REHEARSAL).wait_until_ready()
    with open_terminal(100) as terminal:
        command = [TGIS, "top", "--url", server.facts["http"], "--interval", "0.2"]
        process = terminal.start(command, os.environ | {"TERM": "xterm", "LC_ALL": "C.UTF-8"})
        terminal.wait_for(lambda screen: any(line.startswith("ready, up") for line in screen.lines))
        server.process.send_signal(signal.SIGTERM)
        terminal.wait_for(lambda screen: any(line.startswith("No server at") for line in screen.lines))
        assert process.poll() is None
        terminal.type("q")

        assert process.wait(10) == 0
        assert not terminal.screen.is_alternate
