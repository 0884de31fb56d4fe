"""Which connections are closed, by what the kernel and the calls say of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tgis_server.descriptors import MaxConnections
from tgis_server.frontend.connections import Account, Accounts, Connection, PortWatch, parse_peer, plain

A, B, C = (("10.0.0.1", port) for port in (1, 2, 3))
KIB, MIB = 1 << 10, 1 << 20


def watch(**values: object) -> PortWatch:
    defaults = {"max_connections": 10, "send_timeout_s": 30.0, "max_request_bytes": 8 * MIB, "max_resets": 2000}
    return PortWatch(**{**defaults, **values})


def connection(peer=A, *, received: int = 0, silent_s: float = 0.0, waiting: int = 0, acked: int = 0) -> Connection:
    return Connection(peer[1], peer, waiting, silent_s, acked, received)


def reasons(port: PortWatch, now: float, *connections: Connection, **accounts: Account) -> list[str]:
    """Why each connection is closed, in order; empty where it is not."""
    by_peer = {{"a": A, "b": B, "c": C}[name]: account for name, account in accounts.items()}
    closed = port.judge(list(connections), by_peer, now)
    return [closed.get(one, "") for one in connections]


def test_bytes_that_belong_to_no_call_are_a_flood_where_they_come_fast():
    port = watch()

    assert reasons(port, 0, connection(A), connection(B)) == ["", ""]
    assert reasons(port, 1, connection(A, received=MIB), connection(B, received=100 * KIB)) == ["flood", ""]


def test_pings_now_and_then_are_no_flood_however_long_they_go_on():
    port = watch()

    found = [reasons(port, second, connection(received=second * 20 * KIB)) for second in range(100)]

    assert found == [[""]] * 100


def test_a_flood_behind_an_answered_request_is_one_too():
    port = watch()
    reasons(port, 0, connection(), a=Account())

    assert reasons(port, 1, connection(received=4 * MIB), a=Account(num_bytes=4 * MIB)) == [""]
    assert reasons(port, 2, connection(received=5 * MIB), a=Account(num_bytes=4 * MIB)) == ["flood"]


def test_a_request_that_is_arriving_is_no_flood_until_it_is_more_than_a_request_can_be():
    port = watch()
    arriving = Account(num_open=1, num_receiving=1)
    reasons(port, 0, connection(), a=arriving)

    assert reasons(port, 1, connection(received=8 * MIB), a=arriving) == [""]
    assert reasons(port, 2, connection(received=9 * MIB), a=arriving) == ["flood"]


def test_resets_in_masses_close_a_connection_and_a_client_that_leaves_all_its_calls_does_not():
    port = watch()
    reasons(port, 0, connection(A), connection(B))

    found = reasons(port, 1, connection(A), connection(B), a=Account(num_resets=1000), b=Account(num_resets=4000))

    assert found == ["", "resets"]


def test_a_connection_that_takes_nothing_for_the_send_timeout_is_closed():
    port = watch()
    reasons(port, 0, connection(A, waiting=1), connection(B, waiting=1))

    assert reasons(port, 20, connection(A, waiting=1), connection(B, waiting=1, acked=1)) == ["", ""]
    assert reasons(port, 31, connection(A, waiting=1), connection(B, waiting=1, acked=1)) == ["send_timeout", ""]


def test_of_too_many_connections_the_silent_ones_without_calls_go_first():
    port = watch(max_connections=1)
    busy = Account(num_open=1)

    found = reasons(port, 0, connection(A, silent_s=9), connection(B, silent_s=5), connection(C, silent_s=1), a=busy)

    assert found == ["", "connections", "connections"]


def test_calls_account_for_what_they_sent_and_resets_for_nothing_more():
    accounts = Accounts()
    answered, reset = accounts.open("ipv4:10.0.0.1:1"), accounts.open("ipv4:10.0.0.1:2")
    answered.num_bytes += 100
    accounts.close(answered, was_reset=False)
    accounts.close(reset, was_reset=True)

    copy = accounts.copy()
    accounts.forget({A, B})

    assert (copy[A].num_bytes > 100, copy[A].num_resets) == (True, 0)
    assert (copy[B].num_bytes, copy[B].num_resets) == (0, 1)
    assert accounts.copy() == {}


@pytest.mark.parametrize(
    ("grpc", "kernel"),
    [
        ("ipv4:127.0.0.1:4000", ("127.0.0.1", 4000)),
        ("ipv6:%5B::1%5D:4000", ("::1", 4000, 0, 0)),
        ("ipv4:127.0.0.1:4000", ("::ffff:127.0.0.1", 4000, 0, 0)),
        ("ipv6:%5Bfe80::1%252%5D:4000", ("fe80::1%eth0", 4000, 0, 2)),
    ],
)
def test_the_kernel_and_grpc_mean_the_same_peer(grpc, kernel):
    assert parse_peer(grpc) == plain(kernel)


@pytest.mark.parametrize(
    ("descriptors", "expected"), [(64, (24, 8)), (256, (120, 40)), (1024, (696, 232)), (1 << 20, (10_000, 256))]
)
def test_connections_leave_descriptors_for_the_server_itself(descriptors, expected):
    most = MaxConnections.of(descriptors)

    assert (most.grpc, most.http) == expected


def test_a_process_opens_as_many_files_as_it_has_the_right_to():
    code = (
        "import resource; from tgis_server.descriptors import raise_limit; kind = resource.RLIMIT_NOFILE;"
        "resource.setrlimit(kind, (100, 300)); print(raise_limit(), resource.getrlimit(kind))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ended.stdout.strip() == "300 (300, 300)"
