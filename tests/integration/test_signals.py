"""Stop signals: no call in flight is lost, a second signal stops at once, and the exit code is 0."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

Start = Callable[..., Any]  # starts a Server of conftest.py

SLOW = ("--rehearse", "--num-shard", "2", "--rehearse-step-ms", "20")


def hang_up(pids: Iterable[int]) -> None:
    """Send SIGHUP to every process, like `systemctl kill -s HUP`."""
    for pid in pids:
        os.kill(pid, signal.SIGHUP)


def test_a_hangup_of_every_process_stops_the_server_and_loses_no_answer_in_flight(launch: Start):
    server = launch(*SLOW)
    load = server.start_load(num_streams=6, max_new_tokens=25)

    hang_up(server.child_pids())
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_line(r"draining: \d+ calls in flight")
    hang_up([*server.child_pids(), server.process.pid])  # again, as the shell and the kernel both send it

    assert load.join() == ["MAX_TOKENS"] * 6
    assert server.wait() == 0
    assert "SIGHUP: finishing the calls in flight" in server.stderr


def test_with_a_log_file_a_hangup_of_every_process_never_stops_anything(start: Start, tmp_path: Path):
    server = start(*SLOW, "--log-file", str(tmp_path / "log"))

    hang_up([*server.wait_for_children(3), server.process.pid])
    load = server.wait_until_ready().start_load(num_streams=4, max_new_tokens=40)
    (tmp_path / "log").rename(tmp_path / "rotated")
    hang_up(server.pids.values())
    server.process.send_signal(signal.SIGTERM)
    server.wait_for_line(r"draining: \d+ calls in flight")
    hang_up(server.pids.values())

    assert load.join() == ["MAX_TOKENS"] * 4
    assert server.wait() == 0
    assert "draining" in (tmp_path / "log").read_text()


@pytest.mark.serial
def test_twenty_streams_survive_the_stop_signal_and_a_later_call_is_refused(launch: Start):
    server = launch(*SLOW, "--drain-delay", "3", "--drain-timeout", "15")
    load = server.start_load(num_streams=20, max_new_tokens=250)

    server.process.send_signal(signal.SIGTERM)
    stopped_at = time.monotonic()
    server.wait_for_line("new ones are accepted for 3 s more")
    early = server.start_load(num_streams=1, max_new_tokens=5)
    server.wait_for_line(r"^launcher \| .*draining: \d+ calls in flight, \d+ s left")
    late = server.run("generate", "Once upon a time")

    assert early.join() == ["MAX_TOKENS"]
    assert "is unavailable" in late.stderr
    assert late.returncode != 0
    assert load.join() == ["MAX_TOKENS"] * 20
    assert server.wait() == 0
    assert time.monotonic() - stopped_at < 18


def test_a_drain_ends_when_its_time_is_up(launch: Start):
    server = launch(*SLOW, "--drain-timeout", "0.3")
    load = server.start_load(num_streams=2, max_new_tokens=900)

    server.process.send_signal(signal.SIGTERM)

    assert server.wait() == 0
    assert load.join() == ["UNAVAILABLE"] * 2


def test_a_second_signal_stops_cleanly_whatever_clients_hold_open(launch: Start):
    server = launch("--rehearse", "--drain-delay", "20")
    with grpc.insecure_channel(server.address) as channel:
        watch = HealthStub(channel).Watch(HealthCheckRequest())
        next(watch)

        server.process.send_signal(signal.SIGTERM)
        server.wait_for_line(r"^launcher \| .*draining: 0 calls in flight")
        server.process.send_signal(signal.SIGTERM)

        assert server.wait() == 0
    assert server.run_dir is None


def test_the_cause_is_reported_even_if_nothing_can_be_written(launch: Start):
    server = launch(*SLOW)
    shutil.rmtree(server.run_dir / "errors")

    os.kill(server.pids["shard-0"], signal.SIGKILL)

    assert server.wait() == 5
    assert server.last_line.startswith("shard-0 was killed by SIGKILL")


def test_a_hangup_during_the_imports_waits_until_the_options_are_known(start: Start, tmp_path: Path):
    (tmp_path / "typer.py").write_text(
        "import os, signal, sys\n"
        "os.kill(os.getpid(), signal.SIGHUP)\n"
        f"sys.path.remove({str(tmp_path)!r})\n"
        "del sys.modules['typer']\n"
        "import typer\n"
    )
    with_file = start(*SLOW, "--log-file", str(tmp_path / "log"), PYTHONPATH=str(tmp_path))
    without = start(*SLOW, PYTHONPATH=str(tmp_path))

    assert with_file.wait_until_ready().stop() == 0
    assert without.wait() == 0
    assert without.run_dir is None


@pytest.mark.parametrize(("command", "exit_code"), [("launch", 0), ("version", -signal.SIGINT)])
def test_ctrl_c_prints_nothing_from_the_first_import_on(tmp_path: Path, command: str, exit_code: int):
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")

    result = subprocess.run(
        [sys.executable, "-m", "tgis_cli", command],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        timeout=20,
    )

    assert (result.returncode, result.stdout, result.stderr) == (exit_code, b"", b"")


def test_a_service_manager_may_signal_every_process(launch: Start):
    server = launch(*SLOW)
    load = server.start_load(num_streams=4, max_new_tokens=40)

    for pid in server.pids.values():
        with contextlib.suppress(ProcessLookupError):  # the end of one process may already have ended others
            os.kill(pid, signal.SIGTERM)

    assert load.join() == ["MAX_TOKENS"] * 4
    assert server.wait() == 0
    server.wait_until_gone(within_s=0)


def test_a_failed_group_is_restarted_on_request(launch: Start):
    server = launch(*SLOW, "--restart", "on-failure", "--max-restarts", "1")
    first = dict(server.pids)

    os.kill(first["shard-1"], signal.SIGKILL)
    server.wait_for_line(r"starting again in 1 s \(restart 1 of 1\)")
    server.wait_for_new_run(first)
    answer = server.run("generate", "Once upon a time")
    os.kill(server.pids["shard-0"], signal.SIGKILL)

    assert answer.returncode == 0
    assert server.wait() == 5
    assert server.last_line.startswith("shard-0 was killed by SIGKILL")
    server.wait_until_gone(0, [*first.values(), *server.pids.values()])


def test_a_stop_signal_ends_the_wait_for_a_restart(launch: Start):
    server = launch(*SLOW, "--restart", "on-failure")

    os.kill(server.pids["shard-1"], signal.SIGKILL)
    server.wait_for_line(r"starting again in 1 s \(restart 1 of 5\)")

    assert server.stop() == 0
