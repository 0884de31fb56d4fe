"""Finding running servers: only a process that itself holds the lock of a run directory is a launcher."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from running import make_run, make_running
from tgis_cli.clients.server_status import ask
from tgis_cli.clients.stopping import stop_servers
from tgis_cli.runs.memory import measure_memory
from tgis_cli.runs.run_dir import MAX_FAILED_RUNS, MAX_KEPT_RUNS, RunDirLock, make_run_dir, remove_leftovers
from tgis_cli.runs.servers import (
    CAUSE_FILE,
    FRONTEND_SOCKET,
    RUN_FILE,
    USUAL_DRAIN_S,
    RunningServer,
    ServerTls,
    find_at_port,
    find_model,
    find_running,
    find_server,
)
from tgis_server.options import load_config, options
from tgis_server.run import save_unresolved
from tgis_server.run.resolved_run import Run

HOLDER = """
import fcntl, os, sys
directory = os.open(sys.argv[1], os.O_RDONLY)
if sys.argv[2:]:
    fcntl.flock(directory, fcntl.LOCK_EX)
print("open", flush=True)
sys.stdin.read()
"""


def find_here() -> list[RunningServer]:
    """The servers whose launcher is this process."""
    return [server for server in find_running() if server.pid == os.getpid()]


@pytest.fixture
def hold() -> Iterator[Any]:
    """Start a process that has a directory open, with or without the lock."""
    processes: list[subprocess.Popen[str]] = []

    def start(run_dir: Path, *arguments: str) -> int:
        command = [sys.executable, "-c", HOLDER, str(run_dir), *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        return process.pid

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_launcher_is_found_wherever_its_run_directory_is(tmp_path: Path):
    run_dir = make_run(tmp_path, ready={"grpc_port": 41000, "http_port": 42000, "pids": {"frontend": 7}})

    with RunDirLock.take(run_dir):
        [server] = find_here()

    assert (server.model, server.run_dir, server.has_been_ready) == ("org/name", str(run_dir), True)
    assert (server.grpc, server.http) == ("127.0.0.1:41000", "http://127.0.0.1:42000")
    assert (server.drain_s, server.pids, server.is_in_this_network) == (91.0, {"frontend": 7}, True)
    assert server.is_alive
    assert 0 < server.age_s < 86_400
    assert [path.name for path in server.shard_sockets] == ["shard-0.sock", "shard-1.sock"]


def test_a_server_that_starts_is_known_by_its_options(tmp_path: Path):
    with RunDirLock.take(make_run(tmp_path, host="::", shard_uds_path="/tmp/uds", tls_cert_path="cert.pem")):
        [server] = find_here()

    assert (server.has_been_ready, server.grpc, server.http) == (False, "[::1]:8033", None)
    assert server.shard_sockets == (Path("/tmp/uds-0"), Path("/tmp/uds-1"))
    assert server.tls == ServerTls(Path.cwd() / "cert.pem", (), demands_client_certificate=False)


def test_a_launcher_that_still_looks_at_its_model_is_known_by_its_options(tmp_path: Path):
    run_dir = make_run_dir(tmp_path)
    save_unresolved(
        run_dir, load_config({"model_name": "org/name", "grpc_port": "9000", "rehearse": "true"}, {}).config
    )

    with RunDirLock.take(run_dir):
        [server] = find_here()
        status = ask(server)

    assert (server.title, server.grpc_port, server.is_looking) == ("org/name (rehearsal)", 9000, True)
    assert str(status) == "starting: inspecting the model"


@pytest.mark.parametrize(("shift", "is_found"), [(0, False), (1, True)])
def test_a_launcher_does_not_take_itself_for_the_server_at_its_port(
    tmp_path: Path, shift: int, is_found: bool, monkeypatch: pytest.MonkeyPatch
):
    run_dir, pid = make_run(tmp_path, grpc_port=9000), os.getpid()

    with RunDirLock.take(run_dir):
        server = find_server(pid)
        monkeypatch.setattr("tgis_cli.runs.servers.find_running", lambda: [server])
        monkeypatch.setattr("os.getpid", lambda: pid + shift)

        assert (find_at_port(9000) is not None) == is_found


def test_a_launcher_that_still_looks_at_its_model_has_a_port_only_if_it_listens_itself(monkeypatch: pytest.MonkeyPatch):
    looking = make_running(has_been_ready=False, shard_sockets=(), pids={})
    monkeypatch.setattr("tgis_cli.runs.servers.find_running", lambda: [looking])

    assert find_at_port(3000, looking.pid) == looking
    assert find_at_port(3000, looking.pid + 1) is None


def test_the_facts_of_tls_come_from_the_ready_server(tmp_path: Path):
    tls = {"certificate": "/tls/cert.pem", "names": ["a", "b"], "demands_client_certificate": True}
    options = {"tls_cert_path": "cert.pem", "tls_client_ca_cert_path": "ca.pem", "http_tls": "mutual"}

    with RunDirLock.take(make_run(tmp_path, ready={"tls": tls, "http_port": 1}, **options)):
        [server] = find_here()

    assert server.tls == ServerTls(Path("/tls/cert.pem"), ("a", "b"), demands_client_certificate=True)
    assert server.http == "https://127.0.0.1:1"


def test_the_files_of_a_run_are_where_the_server_has_them(tmp_path: Path):
    run = SimpleNamespace(run_dir=tmp_path)

    assert Run.file.fget(run) == tmp_path / RUN_FILE
    assert Run.frontend_socket.fget(run) == tmp_path / FRONTEND_SOCKET
    assert Run.errors_dir.fget(run) == (tmp_path / CAUSE_FILE).parent


def test_a_directory_without_a_launcher_is_no_server(tmp_path: Path):
    make_run(tmp_path)

    assert find_here() == []


def test_who_only_has_the_directory_open_is_no_launcher(tmp_path: Path, hold: Any):
    run_dir = make_run(tmp_path)
    launcher, onlooker = hold(run_dir, "lock"), hold(run_dir)

    assert find_server(onlooker) is None
    assert find_server(launcher) is not None
    assert {server.pid for server in find_running() if server.run_dir == str(run_dir)} == {launcher}


def test_a_lock_for_reading_does_not_make_a_launcher(tmp_path: Path):
    directory = os.open(make_run(tmp_path), os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_SH)

    assert find_here() == []
    os.close(directory)


def test_a_launcher_whose_directory_was_deleted_is_found_and_can_be_stopped(tmp_path: Path, hold: Any):
    run_dir = make_run(tmp_path)
    pid = hold(run_dir, "launch", "org/name")
    shutil.rmtree(run_dir)

    [server] = [each for each in find_running() if each.pid == pid]

    assert (server.is_lost, server.model, server.run_dir, server.grpc) == (True, "org/name", str(run_dir), None)
    assert str(ask(server)) == "run directory deleted"
    [stopped] = stop_servers([server], 10, lambda text: None, is_hurried=False)
    assert stopped.seconds is not None


def test_of_a_server_whose_options_are_unknown_the_drain_is_that_of_the_defaults():
    defaults = {option.name: option.default for option in options()}

    assert defaults["drain_delay"] + defaults["drain_timeout"] == USUAL_DRAIN_S


def test_a_deleted_directory_without_the_lock_is_no_server(tmp_path: Path, hold: Any):
    run_dir = make_run(tmp_path)
    pid = hold(run_dir)
    shutil.rmtree(run_dir)

    assert find_server(pid) is None


@pytest.mark.parametrize(
    ("command", "model"),
    [
        ("tgis launch org/name --port 1", "org/name"),
        ("tgis launch --port 1 org/name", ""),
        ("tgis launch --model-name=m", "m"),
        ("text-generation-launcher --model-name m", "m"),
        ("text-generation-launcher", ""),
    ],
)
def test_of_a_lost_server_the_command_line_may_tell_the_model(command: str, model: str):
    assert find_model(command.split()) == model


@pytest.mark.parametrize("text", ["", "\xff"])
def test_a_locked_directory_with_other_files_is_no_server(tmp_path: Path, text: str):
    run_dir = make_run_dir(tmp_path)
    (run_dir / "serve.json").write_text(text, encoding="latin-1")

    with RunDirLock.take(run_dir):
        assert find_here() == []


@pytest.mark.parametrize("text", ["[]", "{}", '{"config": 1}', '{"config": {}, "model_id": "x"}'])
def test_a_launcher_of_another_version_is_found_and_can_be_stopped(tmp_path: Path, hold: Any, text: str):
    run_dir = make_run_dir(tmp_path)
    (run_dir / "serve.json").write_text(text)
    pid = hold(run_dir, "launch", "org/name")

    [server] = [each for each in find_running() if each.pid == pid]

    assert (server.is_of_another_version, server.is_lost, server.model, server.grpc) == (True, False, "org/name", None)
    assert str(ask(server)) == "of another version"
    [stopped] = stop_servers([server], 10, lambda text: None, is_hurried=False)
    assert stopped.seconds is not None


@pytest.mark.parametrize("ready", [[], {"grpc_port": "8033"}, {"tls": {"names": "a"}}, {"pids": None}])
def test_so_is_one_whose_ready_file_has_other_fields(tmp_path: Path, ready: Any):
    with RunDirLock.take(make_run(tmp_path, ready=ready)):
        [server] = find_here()

    assert server.is_of_another_version


def test_a_directory_with_another_name_is_no_run(tmp_path: Path):
    run_dir = make_run(tmp_path).rename(tmp_path / "other")

    with RunDirLock.take(run_dir):
        assert find_here() == []


def test_processes_without_readable_descriptors_and_missing_ones_are_passed_over(tmp_path: Path):
    for name in ("1", "self", "12"):
        (tmp_path / name).mkdir()
    (tmp_path / "12/fd").mkdir()
    (tmp_path / "12/fd/3").symlink_to("/tmp/tgis-gone (deleted)")

    assert find_running(tmp_path) == []
    assert find_running(tmp_path / "none") == []


def test_an_ended_launcher_is_not_alive_even_while_its_parent_has_not_noticed(tmp_path: Path, hold: Any):
    pid = hold(make_run(tmp_path), "lock")
    server = find_server(pid)
    assert server is not None

    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    assert not server.is_alive
    assert find_server(pid) is None


def test_a_stopped_launcher_is_frozen(tmp_path: Path, hold: Any):
    pid = hold(make_run(tmp_path), "lock")
    server = find_server(pid)
    assert server is not None
    assert not server.is_frozen

    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)

    assert server.is_frozen


def test_people_name_a_server_by_model_port_address_or_pid(tmp_path: Path):
    with RunDirLock.take(make_run(tmp_path)):
        [server] = find_here()

    assert server.names == {"org/name", "name", "8033", "127.0.0.1:8033", str(os.getpid())}


def test_memory_is_that_of_the_launcher_and_its_children(hold: Any, tmp_path: Path):
    alone = measure_memory(hold(tmp_path))

    assert alone > 1 << 20
    assert measure_memory(os.getpid()) > alone
    assert measure_memory(2**22 + 1) == 0


# -- leftovers


def make_failed(parent: Path, model: str, age_s: float) -> Path:
    run_dir = make_run_dir(parent)
    (run_dir / "serve.json").write_text(json.dumps({"model_dir": model}))
    (run_dir / "errors/shard-0.json").write_text("{}")
    changed_at = run_dir.stat().st_mtime - age_s
    os.utime(run_dir, (changed_at, changed_at))
    return run_dir


def test_a_model_that_fails_again_and_again_does_not_displace_the_failed_runs_of_another(tmp_path: Path):
    rare = make_failed(tmp_path, "/models/rare", 1000)
    often = [make_failed(tmp_path, "/models/often", age_s) for age_s in range(MAX_FAILED_RUNS + 2)]

    assert sorted(remove_leftovers(tmp_path)) == sorted(often[MAX_FAILED_RUNS:])
    assert rare.exists()


def test_failed_runs_of_many_models_do_not_fill_the_disk(tmp_path: Path):
    runs = [make_failed(tmp_path, f"/models/{number}", number) for number in range(MAX_KEPT_RUNS + 2)]

    assert sorted(remove_leftovers(tmp_path)) == sorted(runs[MAX_KEPT_RUNS:])
