"""What comes in on each TCP connection, seen from outside: the gRPC library tells nobody of floods.

Twice a second the kernel is asked how many bytes each connection has received and sent. What a client sends without it
being part of a request (pings, settings, windows, header blocks without end, calls that it resets) is a flood where it
comes in masses, and its connection is closed. So is one that takes nothing of what is sent to it, and, where there are
too many connections, the one that has been silent for longest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import unquote

Peer: TypeAlias = tuple[str, int]  # address and port

CHECK_S = 0.5
IDLE_SHARE = 20  # of the time, at most, is spent on looking: checks are rarer with thousands of connections
CALL_BYTES = 4 << 10  # of header and framing that an answered call accounts for
FLOOD_BYTES_PER_S = 64 << 10  # windows and pings of a client that reads fast are a tenth of that
FLOOD_BYTES = 512 << 10  # at once
RESETS_PER_S = 1000
INFO_FORMAT = struct.Struct("24xI24xI64xQQ8xI")  # of TCP_INFO, which Linux only ever extends


@dataclass(slots=True)
class Account:
    """What the calls of a peer account for. Belongs to the event loop."""

    num_open: int = 0
    num_receiving: int = 0
    num_bytes: int = 0  # that requests consisted of
    num_resets: int = 0


class Accounts:
    """By peer, as calls tell it."""

    def __init__(self) -> None:
        self._accounts: dict[Peer, Account] = {}

    def open(self, peer: str) -> Account:
        """A call of a peer, as gRPC names that, begins."""
        account = self._accounts.setdefault(parse_peer(peer), Account())
        account.num_open += 1
        return account

    @staticmethod
    def close(account: Account, *, was_reset: bool) -> None:
        account.num_open -= 1
        if was_reset:
            account.num_resets += 1
        else:
            account.num_bytes += CALL_BYTES

    def copy(self) -> dict[Peer, Account]:
        return {
            peer: Account(one.num_open, one.num_receiving, one.num_bytes, one.num_resets)
            for peer, one in self._accounts.items()
        }

    def forget(self, peers: set[Peer]) -> None:
        """Connections that are gone."""
        for peer in peers:
            if (account := self._accounts.get(peer)) and not account.num_open:
                del self._accounts[peer]


@dataclass(frozen=True, slots=True)
class Connection:
    """What the kernel knows of a connection."""

    descriptor: int
    peer: Peer
    num_waiting: int  # what waits for the client in the kernel; 0 if nothing does
    silent_s: float  # since it sent something
    num_acked: int  # bytes that it has taken
    num_received: int


@dataclass(slots=True)
class Watched:
    """A connection over time."""

    seen_at: float
    num_excess: int = 0  # bytes that no request accounts for, all in all
    flood: float = 0.0  # of these, what has not been forgiven yet
    num_resets: int = 0
    resets: float = 0.0
    num_acked: int = 0
    moved_at: float = 0.0  # it took something, or there was nothing to take


@dataclass(slots=True)
class PortWatch:
    """Decides which connections of one port are closed."""

    max_connections: int
    send_timeout_s: float
    max_request_bytes: int
    max_resets: int  # at once
    _watched: dict[Peer, Watched] = field(default_factory=dict)

    def judge(
        self, connections: list[Connection], accounts: Mapping[Peer, Account] | None, now: float
    ) -> dict[Connection, str]:
        """Which to close, and for what reason. ``accounts`` is None for a port whose calls are not accounted for."""
        watched, self._watched = self._watched, {}
        closed = {}
        for connection in connections:
            state = watched.get(connection.peer) or Watched(now, moved_at=now)
            self._watched[connection.peer] = state
            if reason := self._judge_one(connection, accounts, state, now):
                closed[connection] = reason
            state.seen_at = now
        excess = len(connections) - len(closed) - self.max_connections
        if excess > 0:
            rest = [one for one in connections if one not in closed]
            rest.sort(key=lambda one: (not is_busy(accounts, one.peer), one.silent_s), reverse=True)
            closed |= dict.fromkeys(rest[:excess], "connections")
        return closed

    def gone(self, peers: set[Peer]) -> set[Peer]:
        """Of these, who is connected no more."""
        return peers - self._watched.keys()

    def _judge_one(
        self, connection: Connection, accounts: Mapping[Peer, Account] | None, state: Watched, now: float
    ) -> str:
        if connection.num_acked != state.num_acked or not connection.num_waiting:
            state.num_acked, state.moved_at = connection.num_acked, now
        if now - state.moved_at > self.send_timeout_s:
            return "send_timeout"
        if accounts is None:
            return ""
        account = accounts.get(connection.peer) or Account()
        passed_s = now - state.seen_at
        num_excess = connection.num_received - account.num_bytes
        state.flood = max(0.0, state.flood + num_excess - state.num_excess - FLOOD_BYTES_PER_S * passed_s)
        state.num_excess = num_excess
        state.resets = max(0.0, state.resets + account.num_resets - state.num_resets - RESETS_PER_S * passed_s)
        state.num_resets = account.num_resets
        if state.resets > self.max_resets:
            return "resets"
        arriving = min(account.num_receiving * self.max_request_bytes, connection.num_received)
        return "flood" if state.flood > FLOOD_BYTES + arriving else ""


def is_busy(accounts: Mapping[Peer, Account] | None, peer: Peer) -> bool:
    return bool(accounts and peer in accounts and accounts[peer].num_open)


async def watch_connections(
    ports: Mapping[int, PortWatch], accounts: Accounts, grpc_port: int, count: Callable[[str], None]
) -> None:
    """Look at the connections of some ports, for ever; ``count`` is told the reason why one was closed."""
    while True:
        began_at = time.monotonic()
        copy = accounts.copy()
        for reason in await asyncio.to_thread(check_ports, ports, copy, grpc_port):
            count(reason)
        accounts.forget(ports[grpc_port].gone(set(copy)))
        await asyncio.sleep(max(CHECK_S, IDLE_SHARE * (time.monotonic() - began_at)))


def check_ports(ports: Mapping[int, PortWatch], accounts: Mapping[Peer, Account], grpc_port: int) -> list[str]:
    """Judge all connections, close some, and say for what reasons. Takes a few microseconds for each."""
    found: dict[int, list[Connection]] = {port: [] for port in ports}
    for port, connection in find_connections(set(ports)):
        found[port].append(connection)
    reasons = []
    for port, watch in ports.items():
        closed = watch.judge(found[port], accounts if port == grpc_port else None, time.monotonic())
        reasons += [reason for one, reason in closed.items() if hang_up(one)]
    return reasons


def find_connections(ports: set[int]) -> Iterator[tuple[int, Connection]]:
    """Of this process's sockets those that clients have opened, with their ports."""
    names = []
    with contextlib.suppress(OSError):  # /proc is not mounted everywhere
        names = os.listdir("/proc/self/fd")
    for name in names:
        with contextlib.suppress(OSError, ValueError):
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with borrowed(int(name)) as one:
                if one.family not in (socket.AF_INET, socket.AF_INET6) or (port := one.getsockname()[1]) not in ports:
                    continue
                peer = one.getpeername()
                info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO_FORMAT.size)
                unacked, silent_ms, acked, received, unsent = INFO_FORMAT.unpack(info)
                yield (
                    port,
                    Connection(int(name), plain(peer), unacked + unsent, silent_ms / 1000, acked, received),
                )


@contextlib.contextmanager
def borrowed(descriptor: int) -> Iterator[socket.socket]:
    """Somebody else's socket."""
    one = socket.socket(fileno=descriptor)
    try:
        yield one
    finally:
        one.detach()


def hang_up(connection: Connection) -> bool:
    """Shut a connection down; its owner notices as if the client had."""
    try:
        own = socket.socket(fileno=os.dup(connection.descriptor))
    except OSError:
        return False
    with own, contextlib.suppress(OSError):
        if plain(own.getpeername()) == connection.peer:  # the number may mean another connection by now
            own.shutdown(socket.SHUT_RDWR)
            return True
    return False


def hang_up_all(port: int) -> None:
    """Shut down every connection of a port."""
    for _, connection in list(find_connections({port})):
        hang_up(connection)


def plain(address: tuple[str, int] | tuple[str, int, int, int]) -> Peer:
    """An address of IPv4 in one of IPv6 is one of IPv4; zones do not count."""
    host = address[0].partition("%")[0]
    return host.removeprefix("::ffff:") if "." in host else host, address[1]


def parse_peer(peer: str) -> Peer:
    """gRPC's ``ipv4:127.0.0.1:4000`` or ``ipv6:%5B::1%5D:4000``."""
    host, _, port = unquote(peer.partition(":")[2]).rpartition(":")
    return plain((unquote(host).strip("[]"), int(port) if port.isdecimal() else 0))
