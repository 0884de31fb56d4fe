"""The limits on processes and threads, the number that a run needs, and what happens if it is too high."""

from __future__ import annotations

import resource
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from tgis_cli.decide.preflight import check_processes
from tgis_cli.machine.process_limits import ProcessLimit, describe_process_limits, read_process_limits
from tgis_server import threads
from tgis_server.errors import NotEnoughDevices
from tgis_server.threads import ReservedThreads, Threads

UID = 1000


@pytest.fixture(autouse=True)
def _two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "num_cpus", lambda: 2)
    monkeypatch.setattr(threads, "GRPC", 6)


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def read(root: Path, limit: int = resource.RLIM_INFINITY) -> list[ProcessLimit]:
    return read_process_limits(root, lambda kind: (limit, limit), UID)


def status(uid: int, num_threads: int, capabilities: int = 0) -> str:
    return f"Name:\tx\nUid:\t{uid}\t0\t0\t0\nThreads:\t{num_threads}\nCapEff:\t{capabilities:016x}\n"


def test_a_users_limit_counts_the_threads_of_all_its_processes_but_not_our_own(tmp_path: Path):
    processes = {"1": status(0, 9), "7": status(UID, 5), "8": status(UID, 20), "self": status(UID, 5)}
    root = write(tmp_path, {f"proc/{pid}/status": text for pid, text in processes.items()})

    assert read(root, limit=50) == [ProcessLimit(limit=50, used=20, is_of_group=False)]


@pytest.mark.parametrize("capability", [21, 24])
def test_a_users_limit_does_not_apply_to_a_process_that_may_exceed_limits(tmp_path: Path, capability: int):
    assert read(write(tmp_path, {"proc/self/status": status(UID, 1, 1 << capability)}), limit=50) == []


IDENTITY, MAPPED = "         0          0 4294967295\n", "         0       1000          1\n"


@pytest.mark.parametrize(
    ("uid_map", "uid", "capability", "is_bound"),
    [
        (IDENTITY, UID, 1 << 24, False),
        (IDENTITY, 0, 0, False),
        (IDENTITY, UID, 0, True),
        (MAPPED, 0, (1 << 41) - 1, True),
        ("0 0 1\n", 0, (1 << 41) - 1, True),
    ],
)
def test_in_a_user_namespace_root_and_capabilities_exempt_from_nothing(
    tmp_path: Path, uid_map: str, uid: int, capability: int, is_bound: bool
):
    root = write(tmp_path, {"proc/self/status": status(uid, 1, capability), "proc/self/uid_map": uid_map})

    assert bool(read_process_limits(root, lambda kind: (50, 50), uid)) == is_bound


def test_parent_groups_count_too_and_the_tightest_limit_comes_first(tmp_path: Path):
    files = {
        "proc/self/cgroup": "0::/a/b",
        "proc/self/status": status(UID, 2),
        "sys/fs/cgroup/a/b/pids.max": "max",
        "sys/fs/cgroup/a/pids.max": "64",
        "sys/fs/cgroup/a/pids.current": "42",
    }

    found = read(write(tmp_path, files), limit=50)

    assert [(limit.where, limit.free) for limit in found] == [("the control group", 24), ("`ulimit -u`", 50)]


@pytest.mark.parametrize(
    ("run", "measured"),
    [
        (Threads(1, None), 36),
        (Threads(2, None), 49),
        (Threads(1, None, tokenization_workers=3), 40),
        (Threads(1, 1), 36),
        (Threads(1, 3), 41),
        (Threads(1, 6), 47),
        (Threads(2, 1), 55),
        (Threads(2, 3), 65),
    ],
)
def test_the_threads_of_a_run_are_those_measured_on_two_cpus(run: Threads, measured: int):
    """The totals include threads that a shard's server may later start for probes."""
    assert run.total == measured


def test_fewer_threads_are_needed_before_the_first_request():
    assert [Threads(1, None).at_start, Threads(1, None, tokenization_workers=3).at_start] == [33, 33]


def test_a_sufficient_limit_is_accepted():
    check_processes([ProcessLimit(37, 1, is_of_group=True)], Threads(1, None))


def test_an_insufficient_limit_is_refused_with_the_number_needed():
    with pytest.raises(NotEnoughDevices) as raised:
        check_processes([ProcessLimit(40, 9, is_of_group=True)], Threads(1, None))

    assert str(raised.value).startswith(
        "The control group allows 40 processes and threads, of which other programs use 9, but 1 shard(s), the "
        "front-end and the launcher need 36: raise the limit"
    )


def test_reserved_threads_run_until_they_are_released():
    before = set(threading.enumerate())
    reserved = ReservedThreads(5)
    during = set(threading.enumerate()) - before
    reserved.release()

    assert len(during) == 5
    assert not any(thread.is_alive() for thread in during)


def test_threads_that_cannot_all_be_reserved_are_ended(monkeypatch: pytest.MonkeyPatch):
    start, started = threading.Thread.start, []

    def start_three(thread: threading.Thread) -> None:
        if len(started) == 3:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_three)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        ReservedThreads(5)

    assert not any(thread.is_alive() for thread in started)


def test_the_limits_are_described(monkeypatch: pytest.MonkeyPatch):
    limits = "tgis_cli.machine.process_limits.read_process_limits"
    monkeypatch.setattr(limits, lambda: [ProcessLimit(12, 3, is_of_group=False), ProcessLimit(64, 9, is_of_group=True)])
    both = describe_process_limits()
    monkeypatch.setattr(limits, list)

    assert both == "`ulimit -u` allows 12 and the control group allows 64"
    assert describe_process_limits().endswith("perhaps the machine's (kernel.threads-max) was reached")
