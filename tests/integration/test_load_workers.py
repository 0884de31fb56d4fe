"""Levels of load on the null server, through real worker processes; and how all of it ends when something dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from tgis_cli.bench.load import workers as workers_module
from tgis_cli.bench.load.calls import Arrivals
from tgis_cli.bench.load.columns import CUT
from tgis_cli.bench.load.orders import Totals
from tgis_cli.bench.load.workers import Workers
from tgis_cli.bench.null_feed import TEXT, NullFeed
from tgis_cli.bench.null_server import run_null_server
from tgis_cli.bench.self_test import FLOOD, STEADY, SelfTestOptions, run_self_test
from tgis_cli.clients.address import Address
from tgis_server.errors import GroupFailed, Unavailable

PATIENCE_S = 60.0
INPUT_TOKENS = len(TEXT.split())
MAX_CPU_US = 50.0  # per token: twice what the generator may need on a quiet machine
ENDLESS = Arrivals(concurrency=4)


def address_of(port: int) -> Address:
    return Address("127.0.0.1", port, is_tls=False, source="--url")


@contextmanager
def open_workers(
    num_workers: int = 1, *, output_tokens: int = 5, is_streamed: bool = True, interval_s: float = 0.002
) -> Iterator[Workers]:
    with (
        run_null_server(interval_s) as port,
        Workers.open(address_of(port), None, NullFeed(output_tokens, is_streamed), num_workers) as workers,
    ):
        yield workers


def list_children(name: str) -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if name in " ".join(child.cmdline())]


def cut_after_tick(workers: Workers) -> list[Totals]:
    """A level that is cut as soon as all its workers have said something; what they said."""
    ticks: list[Totals] = []

    def note(totals: Totals) -> None:
        ticks.append(totals)
        if totals.output_tokens:
            workers.stop()

    workers.run_level(ENDLESS, note)
    return ticks


def test_a_closed_loop_over_several_workers_sends_each_call_once():
    with open_workers(2) as workers:
        records, health = workers.run_level(Arrivals(concurrency=3, max_calls=50, first_index=100))

    assert sorted(records.index.tolist()) == list(range(100, 150))
    assert set(records.status.tolist()) == {0}
    assert set(records.output_tokens.tolist()) == set(records.asked_output.tolist()) == {5}
    assert set(records.input_tokens.tolist()) == set(records.asked_input.tolist()) == {INPUT_TOKENS}
    assert len(records.gap_s) == records.num_gaps.sum() == 50 * 4
    assert (records.due_s <= records.sent_s).all()
    assert (records.sent_s < records.first_s).all()
    assert (records.first_s <= records.end_s).all()
    assert (np.diff(records.end_s) >= 0).all()
    assert (health.workers, health.num_tokens, health.num_queued, health.num_dropped) == (2, 250, 0, 0)
    assert health.cpu_s > 0
    assert health.peak_bytes > 3 * 10e6  # of two workers and this process
    assert len(health.loop_lag_s) > 0


def test_an_open_loop_over_several_workers_keeps_its_schedule():
    due_s = tuple(number * 0.005 for number in range(20))
    with open_workers(2) as workers:
        records, health = workers.run_level(Arrivals(due_s=due_s))

    in_order = np.argsort(records.index)
    assert records.due_s[in_order] == pytest.approx(due_s)
    assert (health.send_lag_s >= 0).all()


def test_unary_calls_are_answered_whole():
    with open_workers(is_streamed=False) as workers:
        records, _ = workers.run_level(Arrivals(concurrency=2, max_calls=6))

    assert records.output_tokens.tolist() == [5] * 6
    assert np.isnan(records.first_s).all()
    assert records.num_gaps.tolist() == [0] * 6


def test_levels_follow_each_other_on_the_same_workers():
    with open_workers(2) as workers:
        levels = [workers.run_level(Arrivals(concurrency=number, max_calls=number))[0] for number in (1, 4)]

    assert [len(records.index) for records in levels] == [1, 4]
    assert all(records.end_s.max() < PATIENCE_S for records in levels)


def test_totals_tell_how_a_level_goes_until_it_is_cut():
    with open_workers(output_tokens=100_000) as workers:
        ticks = cut_after_tick(workers)

    last = ticks[-1]
    assert (last.sent, last.in_flight, last.completed, last.failed) == (4, 4, 0, 0)
    assert last.output_tokens > 0
    assert len([sample for tick in ticks for sample in tick.ttft_s]) == 4
    assert len(last.itl_s) in range(5)


def test_a_level_that_ends_at_its_limit_keeps_what_has_arrived_and_the_next_one_works():
    with open_workers(2, output_tokens=100_000) as workers:
        records, health = workers.run_level(replace(ENDLESS, limit_s=0.5))
        cut_after_tick(workers)

    assert records.status.tolist() == [CUT] * 4
    assert records.num_gaps.tolist() == (records.output_tokens - 1).tolist()
    assert health.cut_reason == ""


def test_after_a_stop_no_level_sends_anything():
    with open_workers() as workers:
        workers.stop()
        records, _ = workers.run_level(ENDLESS)

    assert len(records.index) == 0


def test_a_server_that_dies_cuts_the_level_with_the_reason():
    with open_workers(2, output_tokens=100_000) as workers:
        (server,) = list_children("null_server")
        records, health = workers.run_level(ENDLESS, lambda totals: server.kill() if totals.output_tokens else None)

    assert health.cut_reason.startswith("The server at 127.0.0.1:")
    assert "went away: " in health.cut_reason
    assert 14 in records.texts
    assert len(records.index) < 100


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGKILL, "was killed by SIGKILL"), (signal.SIGSTOP, "did not respond for 1 s")]
)
def test_a_worker_that_dies_or_freezes_ends_the_level_with_what_the_others_have_measured(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, reason: str
):
    monkeypatch.setattr(workers_module, "SILENCE_S", 1.0)
    with open_workers(2, output_tokens=100_000) as workers:
        first, _ = list_children("bench.load.worker")
        records, health = workers.run_level(ENDLESS, lambda totals: first.send_signal(number))

    assert health.cut_reason == f"A worker of the load generator {reason}: what it measured in this level is missing."
    assert (health.workers, records.status.tolist()) == (1, [CUT] * 2)
    assert list_children("tgis_cli.bench") == []


def test_without_any_worker_left_the_level_fails():
    with open_workers(output_tokens=100_000) as workers:
        (only,) = list_children("bench.load.worker")
        with pytest.raises(GroupFailed, match=r"A worker of the load generator was killed by SIGKILL\."):
            workers.run_level(ENDLESS, lambda totals: only.kill())


def test_no_process_is_left():
    with pytest.raises(ZeroDivisionError), open_workers(2) as workers:
        workers.run_level(ENDLESS, lambda totals: print(1 // 0))

    assert list_children("tgis_cli.bench") == []


def test_without_a_server_there_is_a_sentence():
    with run_null_server(0.01) as port:
        pass

    with (
        pytest.raises(Unavailable, match=f"No server at 127.0.0.1:{port}"),
        Workers.open(address_of(port), None, NullFeed(1), 1),
    ):
        pass


class Refusing(NullFeed):
    """Cannot be imported by a worker, whose module path has no tests."""


def test_a_proxy_that_the_generator_does_not_use_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("https_proxy", "http://user:secret@proxy.example:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    address = Address("none.invalid", 8033, is_tls=False, source="--url")

    with pytest.raises(Unavailable) as failure, Workers.open(address, None, NullFeed(1), 1):
        pass

    assert "no direct connection to none.invalid:8033 (" in str(failure.value)
    assert "does not use the proxy http://***@proxy.example:3128 (https_proxy)" in str(failure.value)


def test_a_feed_that_a_worker_cannot_import_is_named():
    with (
        run_null_server(0.01) as port,
        pytest.raises(GroupFailed, match="failed: ModuleNotFoundError: No module named 'test_load_workers'"),
        Workers.open(address_of(port), None, Refusing(1), 1),
    ):
        pass


def test_a_call_that_cannot_be_made_ends_the_level_with_its_error():
    with open_workers(output_tokens=-1) as workers, pytest.raises(GroupFailed, match=r"failed: ValueError.*null_feed"):
        workers.run_level(ENDLESS)


PARENT = """
import os, sys
from tgis_cli.bench.load.calls import Arrivals
from tgis_cli.bench.load.workers import Workers
from tgis_cli.bench.null_feed import NullFeed
from tgis_cli.bench.null_server import run_null_server
from tgis_cli.clients.address import Address
def say(totals):
    if totals.sent: print("running", flush=True)
with run_null_server(0.01) as port:
    address = Address("127.0.0.1", port, is_tls=False, source="")
    with Workers.open(address, None, NullFeed(100_000), 2) as workers:
        workers.run_level(Arrivals(concurrency=2), say)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_and_null_server_end_with_their_parent_whatever_kills_it(number):
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"running\n"
        children = psutil.Process(parent.pid).children()
        parent.send_signal(number)

    assert len(children) == 3
    assert psutil.wait_procs(children, PATIENCE_S)[1] == []


def test_nothing_is_imported_from_the_current_directory(tmp_path, monkeypatch):
    for name in ("hpack.py", "selectors.py", "tgis_cli.py"):
        (tmp_path / name).write_text("raise SystemExit('imported from the current directory')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")

    with open_workers() as workers:
        records, _ = workers.run_level(Arrivals(concurrency=1, max_calls=1))

    assert records.status.tolist() == [0]


def test_workers_import_little():
    program = "import json, sys, tgis_cli.bench.load.worker; print(json.dumps(list(sys.modules)))"
    modules = set(json.loads(subprocess.check_output([sys.executable, "-c", program])))

    assert modules & {"torch", "typer", "rich", "numpy", "grpc", "aiohttp"} == set()


@pytest.mark.serial
def test_the_generator_costs_little_and_sees_the_stamps_within_a_millisecond():
    result = run_self_test(SelfTestOptions(seconds=4), {})

    figures = {(figure.group, figure.name): figure.estimate.value for figure in result.figures}
    assert (result.kind, result.is_valid) == ("self", figures[STEADY, "added_delay_p95"] <= 0.001)
    assert figures[STEADY, "cpu"] < MAX_CPU_US
    if is_busy():
        pytest.skip("other work takes turns with ours: then no process is woken within a millisecond")
    assert 0 < figures[STEADY, "added_delay_p50"] < 0.001
    assert figures[STEADY, "added_delay_p95"] < 0.001
    assert figures[FLOOD, "output_tokens_per_s"] > 5_000


def is_busy() -> bool:
    return os.getloadavg()[0] > (os.cpu_count() or 1)


@pytest.mark.acceptance
def test_a_hundred_thousand_streams_leave_room_in_300_mb():
    """Of all processes. The one that joins what the workers have measured is a new one, as this one has tests."""
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_load_workers import Arrivals, open_workers
with open_workers(2, output_tokens=64, interval_s=0.0) as workers:
    records, health = workers.run_level(Arrivals(concurrency=64, max_calls=100_000))
print(len(records.index), len(records.gap_s), health.peak_bytes)
"""
    num_calls, num_gaps, peak_bytes = map(int, subprocess.check_output([sys.executable, "-c", program]).split())

    assert (num_calls, num_gaps) == (100_000, 100_000 * 63)
    assert peak_bytes < 300e6
