"""`tgis ps` and `tgis stop` with real servers, and the server that a command finds without an address."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards import wait_until
from terminals import pseudo_terminal
from tgis_cli.clients.connection import Connection
from tgis_cli.clients.grpc_client import Client
from tgis_cli.runs.servers import find_server

BIN = Path(sys.executable).parent
Start = Callable[..., Any]
REHEARSAL = ("--rehearse", "--host", "127.0.0.1")
SLOW = (*REHEARSAL, "--rehearse-step-ms", "50")  # a thousand tokens outlast every test


def run_tgis(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.run(
        [BIN / "tgis", *arguments],
        env=kept | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def list_servers() -> dict[int, dict[str, Any]]:
    """The output of `tgis ps --json`, by the launcher's pid. Other tests may run servers at the same time."""
    return {server["pid"]: server for server in json.loads(run_tgis("ps", "--json").stdout)["servers"]}


@pytest.fixture(scope="module")
def server(start_shared: Start) -> Any:
    return start_shared(*REHEARSAL).wait_until_ready()


# -- ps


def test_ps_lists_a_server_with_its_ports_state_memory_and_pid(server: Any):
    facts = list_servers()[server.process.pid]

    assert (facts["model"], facts["label"], facts["state"]) == ("demo", "rehearsal", "ready")
    assert (facts["grpc"], facts["http"]) == (server.facts["grpc"], server.facts["http"])
    assert facts["pids"] == server.facts["pids"]
    assert facts["run_dir"] == str(server.run_dir)
    assert facts["memory_bytes"] > 50 << 20
    assert 0 < facts["age_s"] < 600


def test_ps_fits_80_columns(server: Any):
    lines = run_tgis("ps").stdout.splitlines()

    assert lines[0].split() == ["MODEL", "GRPC", "HTTP", "AGE", "MEMORY", "PID", "STATE"]
    [line] = [line for line in lines if f" {server.process.pid} " in line]
    assert len("  ".join(re.split(" {2,}", line))) <= 80  # without the room that other tests' servers take
    assert line.split()[:4] == ["demo", "(rehearsal)", str(server.facts["grpc_port"]), str(server.facts["http_port"])]


def test_ps_shows_how_far_a_starting_server_is(start: Start):
    server = start(*REHEARSAL, "--fault", "shard0:hang@load")
    server.wait_for_children(2)

    phases = set()
    deadline = time.monotonic() + 20
    while "starting processes" in phases or not phases:
        assert time.monotonic() < deadline
        if facts := list_servers().get(server.process.pid):
            assert (facts["state"], facts["grpc"]) == ("starting", None)
            phases = {facts["phase"]}

    assert phases != {None}


def test_ps_lists_a_server_that_does_not_answer(launch: Start):
    server = launch(*REHEARSAL)
    os.kill(server.facts["pids"]["frontend"], signal.SIGSTOP)
    asked_at = time.monotonic()

    facts = list_servers()[server.process.pid]

    assert facts["state"] == "no answer"
    assert time.monotonic() - asked_at < 10  # importing included


# -- the server that commands find


def test_a_command_finds_the_address_in_the_environment(server: Any):
    grpc, http = server.facts["grpc"], server.facts["http"]

    named = run_tgis("tokenize", "hello", TGIS_URL=f"grpc://{grpc}")
    by_port = run_tgis("tokenize", "hello", GRPC_PORT=str(server.facts["grpc_port"]))
    healths = [run_tgis("health", TGIS_URL=url) for url in (grpc, f"grpc://{grpc}", http)]

    assert (named.returncode, named.stderr, by_port.stdout) == (0, "", named.stdout)
    assert [health.stdout for health in healths] == ["ready\n"] * 3


@pytest.fixture(scope="module")
def secured(start_shared: Start, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with a certificate for a name that is not this machine's."""
    base = tmp_path_factory.mktemp("tls")
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out cert.pem -subj /CN=tgis"
    names = "subjectAltName=DNS:tgis.example.com"
    subprocess.run(["openssl", *words.split(), "-addext", names], cwd=base, check=True, capture_output=True)
    files = ("--tls-cert-path", f"{base}/cert.pem", "--tls-key-path", f"{base}/key.pem")
    return start_shared(*REHEARSAL, *files, TGIS_URL="other:1").wait_until_ready()


def test_the_suggested_command_works_when_it_is_pasted_in_another_directory(secured: Any, tmp_path: Path):
    found: Any = wait_until(lambda: re.search(r"^  try +(.+)$", secured.stdout, re.MULTILINE), "the suggestion")
    command = found[1]
    environ = {"PATH": f"{BIN}:{os.environ['PATH']}"}

    done = subprocess.run(command, shell=True, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)

    assert " --tls-server-name tgis.example.com " in command
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_a_running_server_with_tls_is_trusted_by_its_own_certificate(secured: Any):
    found = find_server(secured.process.pid)

    with Client.connect(Connection(server=found)) as client:
        assert client.tokenize(["hello"])
    assert list_servers()[secured.process.pid]["tls"]["names"] == ["tgis.example.com"]


# -- stop


def test_stop_ends_the_server_that_is_named_and_no_other(server: Any, launch: Start):
    other = launch(*REHEARSAL)

    done = run_tgis("stop", str(other.facts["grpc_port"]))

    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"Stopped demo \(pid {other.process.pid}\) after \d+\.\d s\.\n", done.stdout)
    assert other.wait() == 0
    other.wait_until_gone(within_s=1)
    assert server.process.poll() is None


def test_stop_completes_models_and_ports(server: Any):
    def complete(word: str) -> list[str]:
        words = f"tgis stop {word}"
        return run_tgis(_TGIS_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD="2").stdout.split()

    port = str(server.facts["grpc_port"])
    models, ports = complete("de"), complete(port)
    assert "demo" in models
    assert port in ports
    assert all(name.startswith("de") for name in models)  # of other servers too
    assert all(name.startswith(port) for name in ports)


def test_stop_refuses_an_ambiguous_name_and_signals_nobody(server: Any, launch: Start):
    other = launch(*REHEARSAL)

    done = run_tgis("stop", "demo")

    assert done.returncode == 2
    assert "Several servers are called demo: " in done.stderr
    assert f"(pid {other.process.pid})" in done.stderr
    assert done.stderr.endswith("Give the port or the pid of one.\n")
    assert other.process.poll() is None


@pytest.mark.parametrize("name", ["1", "our own pid", "no-such-model"])
def test_stop_signals_nothing_that_is_not_a_launcher(server: Any, name: str):
    name = str(os.getpid()) if name == "our own pid" else name
    done = run_tgis("stop", name)

    assert done.returncode == 2
    assert done.stderr.startswith(f"tgis: No server is called {name}; ")


@pytest.mark.parametrize("timeout", ["-1", "nan", "x"])
def test_stop_accepts_a_number_of_seconds(timeout: str):
    done = run_tgis("stop", "no-such-model", "--timeout", timeout)

    assert done.returncode == 2
    assert done.stderr.startswith("tgis: --timeout ")


def test_stop_waits_for_calls_in_flight_unless_it_is_told_not_to(launch: Start):
    server = launch(*SLOW)
    load = server.start_load(2, 1000)
    name = str(server.process.pid)

    patient = run_tgis("stop", name, "--timeout", "2")
    again = run_tgis("stop", name, "--timeout", "0")  # must not count as the second signal, which ends calls
    draining = list_servers()[server.process.pid]
    hurried = run_tgis("stop", name, "--now", "--json")

    assert (patient.returncode, again.returncode) == (1, 1)
    assert f"demo (pid {name}): 2 calls in flight" in patient.stderr
    assert patient.stderr.endswith(
        f"tgis: demo (pid {name}) is still running, with 2 calls in flight: wait, or end the calls with "
        "`tgis stop --now`.\n"
    )
    assert (draining["state"], draining["calls_in_flight"]) == ("draining", 2)
    assert hurried.returncode == 0
    assert [each["pid"] for each in json.loads(hurried.stdout)["servers"]] == [server.process.pid]
    assert server.wait() == 0
    assert load.join() == ["UNAVAILABLE"] * 2


def test_stop_ends_a_server_that_is_still_starting(start: Start):
    server = start(*REHEARSAL, "--fault", "shard0:hang@load")
    server.wait_for_children(2)

    done = run_tgis("stop", str(server.process.pid))

    assert (done.returncode, done.stderr) == (0, "")
    assert server.wait() == 0


def test_a_launcher_that_still_looks_at_the_machine_is_listed_and_can_be_stopped(start: Start, tmp_path: Path):
    server = start("--model-name", "org/name", script=f"python {write_launcher_with_a_hanging_driver(tmp_path)}")
    [survey] = server.wait_for_children(1)
    run_dir = server.run_dir
    wait_until(lambda: not has_open(survey, run_dir), "the forked process to release its copy of the lock")

    servers = list_servers()
    done = run_tgis("stop", "name")

    facts = servers[server.process.pid]
    assert (facts["model"], facts["state"], facts["grpc"], facts["pids"]) == ("org/name", "starting", None, {})
    assert (facts["phase"], facts["run_dir"]) == ("inspecting the model", str(run_dir))
    assert survey not in servers
    assert (done.returncode, done.stderr, server.wait(), server.run_dir) == (0, "", 0, None)


def write_launcher_with_a_hanging_driver(directory: Path) -> Path:
    file = directory / "launcher.py"
    file.write_text(
        "import sys, time\n"
        "import tgis_cli.machine\n"
        "from tgis_cli.__main__ import main\n"
        "tgis_cli.machine.probe_machine = lambda environ: time.sleep(60)\n"
        "sys.argv[1:1] = ['launch']\n"
        "main()\n"
    )
    return file


def has_open(pid: int, path: Path) -> bool:
    return str(path) in [os.path.realpath(link) for link in Path(f"/proc/{pid}/fd").iterdir()]


def test_a_launcher_that_waits_to_restart_its_group_is_listed_and_can_be_stopped(start: Start):
    server = start(*REHEARSAL, "--fault", "shard0:error@load", "--restart", "on-failure")
    server.wait_for_line(r"starting again in 4 s")

    facts = list_servers()[server.process.pid]
    done = run_tgis("stop", str(server.process.pid))

    assert (facts["state"], facts["pids"]) == ("restarting", {})
    assert facts["error"].startswith("shard-0: RuntimeError: provoked by --fault")
    assert (done.returncode, server.wait()) == (0, 0)


def test_stop_names_a_frozen_launcher(launch: Start):
    server = launch(*REHEARSAL)
    os.kill(server.process.pid, signal.SIGSTOP)

    done = run_tgis("stop", str(server.process.pid))

    assert done.returncode == 1
    assert done.stderr.endswith(f"resume it with `kill -CONT {server.process.pid}`.\n")
    os.kill(server.process.pid, signal.SIGCONT)
    assert server.stop() == 0


def test_on_a_terminal_the_drain_is_one_line_that_is_gone_afterwards(launch: Start):
    server = launch(*SLOW)
    server.start_load(1, 1000)
    environ = {"PATH": os.environ["PATH"], "TERM": "xterm"}
    command = [BIN / "tgis", "stop", str(server.process.pid), "--timeout", "2"]
    with pseudo_terminal(80) as terminal:
        side = terminal.stream
        subprocess.run(command, env=environ, stdin=side, stdout=side, stderr=side, timeout=30, check=False)

    assert f"\r\x1b[2Kdemo (pid {server.process.pid}): 1 call in flight\r\x1b[2Ktgis: demo" in terminal.raw
    run_tgis("stop", str(server.process.pid), "--now")
