"""Which connections are closed, given the kernel's facts and the accounts of their calls."""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count

import pytest

from tgis_server.frontend.transport import floods
from tgis_server.frontend.transport.floods import (
    CALL_BYTES,
    NUM_BEHIND,
    Account,
    Accounts,
    Connection,
    PortWatch,
    inspect_connections,
    normalize_address,
    parse_peer,
)
from tgis_server.host.descriptors import MaxConnections

A, B, C = (("10.0.0.1", port) for port in (1, 2, 3))
KIB, MIB = 1 << 10, 1 << 20


def watch(**values: object) -> PortWatch:
    defaults = {"max_connections": 10, "send_timeout_s": 30.0, "max_message_bytes": 8 * MIB, "max_resets": 2000}
    return PortWatch(**{**defaults, **values})


def connection(peer=A, *, received: int = 0, silent_s: float = 0.0, waiting: int = 0, acked: int = 0) -> Connection:
    return Connection(peer[1], peer, waiting, silent_s, acked, received)


def reasons(port: PortWatch, now: float, *found: Connection, **accounts: Account) -> list[str]:
    """The reason for closing each connection, in order; empty if it stays open."""
    by_peer = {{"a": A, "b": B, "c": C}[name]: account for name, account in accounts.items()}
    closed = port.judge(list(found), by_peer, now)
    return [closed.get(one, "") for one in found]


def checks(port: PortWatch, received: Callable[[float], int], account: Callable[[float], Account]) -> list[str]:
    """The reasons from forty successive checks of one connection."""
    times = [check / 2 for check in range(40)]
    return [reasons(port, now, connection(received=received(now)), a=account(now))[0] for now in times]


def test_a_fast_stream_of_bytes_outside_calls_is_a_flood():
    found = checks(watch(), lambda now: int(now * MIB), lambda now: Account())

    assert found.index("flood") == NUM_BEHIND + 2


def test_occasional_pings_are_never_a_flood():
    assert set(checks(watch(), lambda now: int(now * 50 * KIB), lambda now: Account())) == {""}


@pytest.mark.parametrize("delay_s", [0, 2])
def test_requests_are_never_a_flood_even_if_they_are_accounted_for_late(delay_s: int):
    def account(now: float) -> Account:
        return Account(num_bytes=int(max(0, now - delay_s) * 100 * MIB))

    assert set(checks(watch(), lambda now: int(now * 100 * MIB), account)) == {""}


def test_compressed_requests_and_quiet_times_give_no_credit_for_a_flood():
    def received(now: float) -> int:
        return int(max(0, now - 10) * MIB)

    found = checks(watch(), received, lambda now: Account(num_bytes=int(min(now, 5) * 100 * MIB)))

    assert "flood" in found


def test_an_arriving_request_is_a_flood_only_beyond_the_maximum_size():
    arriving = Account(num_open=1, num_receiving=1)

    found = checks(watch(), lambda now: int(min(now, 8) * MIB), lambda now: arriving)
    too_much = checks(watch(), lambda now: int(now * MIB), lambda now: arriving)

    assert (set(found), "flood" in too_much) == ({""}, True)


def test_large_numbers_of_resets_close_a_connection_but_a_client_leaving_all_its_calls_does_not():
    port = watch()
    reasons(port, 0, connection(A), connection(B))

    found = reasons(port, 1, connection(A), connection(B), a=Account(num_resets=1000), b=Account(num_resets=4000))

    assert found == ["", "resets"]


def test_a_connection_that_reuses_a_port_starts_afresh():
    port, left = watch(), Account(num_bytes=100 * MIB, num_resets=9000)
    for now in range(10):
        reasons(port, now, connection(received=now * 10 * MIB), a=Account(num_bytes=now * 10 * MIB))

    assert {reasons(port, now, connection(received=now * KIB), a=left)[0] for now in range(10, 20)} == {""}


def test_a_connection_that_takes_nothing_for_the_send_timeout_is_closed():
    port = watch()
    reasons(port, 0, connection(A, waiting=1), connection(B, waiting=1))

    assert reasons(port, 20, connection(A, waiting=1), connection(B, waiting=1, acked=1)) == ["", ""]
    assert reasons(port, 31, connection(A, waiting=1), connection(B, waiting=1, acked=1)) == ["send_timeout", ""]


def test_the_send_timeout_starts_when_waiting_bytes_are_first_seen():
    port = watch(send_timeout_s=0.3)
    reasons(port, 0, connection(A))

    assert reasons(port, 0.5, connection(A, waiting=1)) == [""]
    assert reasons(port, 1.0, connection(A, waiting=1)) == ["send_timeout"]


def test_of_too_many_connections_silent_ones_without_calls_are_closed_first():
    port = watch(max_connections=1)
    busy = Account(num_open=1)

    found = reasons(port, 0, connection(A, silent_s=9), connection(B, silent_s=5), connection(C, silent_s=1), a=busy)

    assert found == ["", "connections", "connections"]


def test_calls_account_for_their_bytes_and_resets_do_not_add_any():
    accounts = Accounts()
    answered, reset, left = (accounts.open(f"ipv4:10.0.0.1:{port}") for port in (1, 2, 3))
    answered.note_request(100)
    answered.close(was_reset=False)
    reset.close(was_reset=True)
    left.note_request(100)
    left.close(was_reset=True)

    copy = accounts.copy()
    accounts.forget({A, B})

    paid = 100 + CALL_BYTES
    assert copy == {
        A: Account(num_bytes=paid),
        B: Account(num_resets=1, num_unread=1),
        C: Account(num_bytes=paid, num_resets=1),
    }
    assert set(accounts.copy()) == {C}


@pytest.mark.parametrize("was_reset", [False, True])
def test_calls_with_the_largest_header_are_no_flood_even_if_their_clients_leave(was_reset: bool):
    accounts, port, num_calls = Accounts(), watch(), 40

    def account(now: float) -> Account:
        for _ in range(num_calls // 2):
            call = accounts.open("ipv4:10.0.0.1:1")
            call.note_request(KIB)
            call.close(was_reset=was_reset)
        return accounts.copy()[A]

    assert set(checks(port, lambda now: int(now * num_calls * 17 * KIB), account)) == {""}


def test_waiting_calls_do_not_each_allow_a_flood():
    silent = Account(num_open=64, num_receiving=64)

    assert "flood" in checks(watch(), lambda now: int(now * 10 * MIB), lambda now: silent)


def test_the_windows_of_calls_that_the_library_refused_are_no_flood():
    def refused(now: float) -> Account:
        return Account(num_unread=int(now * 50))

    found = checks(watch(), lambda now: int(now * 3 * MIB), refused)
    flood = checks(watch(), lambda now: int(now * 16 * MIB), refused)

    assert (set(found), "flood" in flood) == ({""}, True)


def test_calls_refused_before_the_first_check_count_like_later_ones():
    found = checks(watch(), lambda now: 20 * 64 * KIB, lambda now: Account(num_unread=20))

    assert set(found) == {""}


@pytest.mark.parametrize(
    ("grpc", "kernel"),
    [
        ("ipv4:127.0.0.1:4000", ("127.0.0.1", 4000)),
        ("ipv6:%5B::1%5D:4000", ("::1", 4000, 0, 0)),
        ("ipv4:127.0.0.1:4000", ("::ffff:127.0.0.1", 4000, 0, 0)),
        ("ipv6:%5Bfe80::1%252%5D:4000", ("fe80::1%eth0", 4000, 0, 2)),
    ],
)
def test_the_kernel_and_grpc_name_the_same_peer(grpc, kernel):
    assert parse_peer(grpc) == normalize_address(kernel)


@pytest.mark.parametrize(
    ("descriptors", "expected"), [(64, (24, 8)), (256, (120, 40)), (1024, (696, 232)), (1 << 20, (10_000, 256))]
)
def test_the_connection_limits_reserve_descriptors_for_the_server(descriptors, expected):
    most = MaxConnections.of(descriptors)

    assert (most.grpc, most.http) == expected


def test_a_process_raises_its_limit_on_open_files():
    code = (
        "import resource; from tgis_server.host.descriptors import raise_limit; kind = resource.RLIMIT_NOFILE;"
        "resource.setrlimit(kind, (100, 300)); print(raise_limit(), resource.getrlimit(kind))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ended.stdout.strip() == "300 (300, 300)"


# Inspections


def test_a_connection_opened_during_an_inspection_keeps_its_account(monkeypatch):
    accounts = Accounts()
    accounts.open("ipv4:10.0.0.1:2").close(was_reset=False)

    def find(ports: set[int]) -> list[tuple[int, Connection]]:
        call = accounts.open("ipv4:10.0.0.1:1")
        call.note_request(2 * MIB)
        call.close(was_reset=False)
        return []

    monkeypatch.setattr(floods, "find_connections", find)

    assert inspect_connections({1: watch()}, accounts, 1).gone == {B}


def test_after_a_failed_inspection_the_next_one_still_finds_the_flood(caplog, monkeypatch):
    monkeypatch.setattr(floods, "CHECK_S", 0.0)
    port, received = watch(), count(0, 100 * MIB)

    def find(ports: set[int]) -> list[tuple[int, Connection]]:
        if (num_received := next(received)) == 300 * MIB:
            raise RuntimeError("bad luck")
        return [(1, connection(received=num_received))]

    async def watch_until_closed() -> None:
        closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        watching = asyncio.create_task(floods.watch_connections({1: port}, Accounts(), 1, closed.set_result))
        assert await asyncio.wait_for(closed, 10) == "flood"
        watching.cancel()

    monkeypatch.setattr(floods, "find_connections", find)
    monkeypatch.setattr(floods, "hang_up", lambda connection: True)
    asyncio.run(watch_until_closed())

    assert "bad luck" in caplog.text


def test_forgiven_bytes_survive_a_failed_inspection(monkeypatch):
    port = watch()
    assert set(checks(port, lambda now: int(now * 50 * KIB), lambda now: Account())) == {""}

    with monkeypatch.context() as patch:
        patch.setattr(PortWatch, "_judge_one", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            reasons(port, 20, connection(received=1000 * KIB))

    assert [reasons(port, 20.5 + late, connection(received=1000 * KIB)) for late in range(9)] == [[""]] * 9


def test_inspections_stay_frequent_while_the_event_loop_is_busy():
    accounts, began_at = Accounts(), []

    class Watching(PortWatch):
        def judge(self, *args: object) -> dict[Connection, str]:
            began_at.append(time.monotonic())
            return {}

    async def be_busy() -> None:
        ports = {1: Watching(10, 30.0, 1, 10)}
        watching = asyncio.create_task(floods.watch_connections(ports, accounts, 1, print))
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            turn_ends_at = time.monotonic() + 0.1
            while time.monotonic() < turn_ends_at:
                pass
            await asyncio.sleep(0)
        watching.cancel()

    asyncio.run(be_busy())

    assert len(began_at) >= 2


def test_connections_are_found_and_closed_with_no_descriptor_left():
    code = """
import os, resource, socket
from tgis_server.frontend.transport import floods as c
with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
    client = socket.create_connection(("127.0.0.1", port))
    served, _ = server.accept()
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    taken = []
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        pass
    found = [one for _, one in c.find_connections({port})]
    print([one.peer == client.getsockname() for one in found], [c.hang_up(one) for one in found], client.recv(1))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ended.stdout.strip() == "[True] [True] b''"


def test_an_older_kernel_that_reports_less_is_no_error(monkeypatch):
    monkeypatch.setattr(floods, "INFO_FORMAT", struct.Struct("24xI24xI64xQQ8xI4000x"))

    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        served, _ = server.accept()
        with served:
            assert list(floods.find_connections({server.getsockname()[1]})) == []
