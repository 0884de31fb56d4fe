"""What comes in on each TCP connection, seen from outside: the gRPC library tells nobody of floods.

Twice a second the kernel is asked how many bytes each connection has received and sent. What a client sends without it
being part of a request (pings, settings, windows, header blocks without end, calls that it resets) is a flood where it
comes in masses, and its connection is closed. So is one that takes nothing of what is sent to it, and, where there are
too many connections, the one that has been silent for longest.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import unquote

logger = logging.getLogger(__name__)

Peer: TypeAlias = tuple[str, int]  # address and port

CHECK_S = 0.5
NUM_BEHIND = 6  # checks: so much time the calls have, in a busy process, to account for what has come
IDLE_SHARE = 20  # of the time, at most, is spent on looking: checks are rarer with thousands of connections
CALL_BYTES = 16 << 10  # that a call accounts for: the largest header, which the library does not measure for us
FLOOD_BYTES_PER_S = 64 << 10  # windows and pings of a client that reads fast are a tenth of that
FLOOD_BYTES = 512 << 10  # at once
WINDOW_BYTES = 64 << 10  # that a stream may send before anybody asks for its message
MAX_UNREAD = 64  # calls in a check
MAX_ARRIVING = 8  # requests of a connection whose largest size is allowed for, however many calls wait for one
RESETS_PER_S = 1000
INFO_FORMAT = struct.Struct("24xI24xI64xQQ8xI")  # of TCP_INFO, which Linux only ever extends


@dataclass(slots=True)
class Account:
    """What the calls of a peer account for. Belongs to the event loop; others take copies."""

    num_open: int = 0
    num_receiving: int = 0
    num_bytes: int = 0  # that requests consisted of
    num_resets: int = 0
    num_unread: int = 0  # calls that ended before their request was whole, as those that are far too large

    def copy(self) -> Account:
        """What is arriving is read before what has come, by any thread: so it counts twice rather than not at all."""
        return Account(self.num_open, self.num_receiving, self.num_bytes, self.num_resets, self.num_unread)


@dataclass(slots=True)
class OpenCall:
    """What one call adds to the account of its peer."""

    account: Account
    was_read: bool = False

    def note_request(self, num_bytes: int) -> None:
        self.was_read = True
        self.account.num_bytes += num_bytes

    def close(self, *, was_reset: bool) -> None:
        self.account.num_open -= 1
        self.account.num_unread += not self.was_read
        self.account.num_resets += was_reset
        if self.was_read or not was_reset:  # how many are reset is bounded by itself
            self.account.num_bytes += CALL_BYTES


class Accounts:
    """By peer, as calls tell it."""

    def __init__(self) -> None:
        self._accounts: dict[Peer, Account] = {}

    def open(self, name: str) -> OpenCall:
        """A call of a peer, as gRPC names that, begins."""
        peer = parse_peer(name)
        if (account := self._accounts.get(peer)) is None:
            account = self._accounts[peer] = Account()
        account.num_open += 1
        return OpenCall(account)

    def get_peers(self) -> set[Peer]:
        """Callable from any thread, as is :meth:`copy`."""
        return set(self._accounts)

    def copy(self) -> dict[Peer, Account]:
        return {peer: account.copy() for peer, account in list(self._accounts.items())}

    def forget(self, peers: set[Peer]) -> None:
        """Connections that are gone."""
        for peer in peers:
            if peer in self._accounts and not self._accounts[peer].num_open:
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
class ConnectionHistory:
    """A connection over time."""

    seen_at: float
    received: deque[int] = field(default_factory=lambda: deque([0] * NUM_BEHIND, NUM_BEHIND))  # at the last checks
    num_forgiven: int = 0  # bytes that no request accounts for, and that are none too many
    num_resets: int = 0
    resets: float = 0.0
    num_unread: int = 0
    num_acked: int = 0
    is_waited_for: bool = False  # there was something to take at the last check
    moved_at: float = 0.0  # it took something, or there began to be something to take

    def count_excess(self, num_received: int, num_accounted: int, num_forgiven: int) -> int:
        """Bytes that came some checks ago and that no request accounts for by now, but for what is forgiven.

        Requests may also account for what has come since. What they account for beyond that is no credit for later.
        """
        old = self.received[0]
        self.received.append(num_received)
        self.num_forgiven += num_forgiven
        excess = old - num_accounted - self.num_forgiven
        credit = old - num_received - excess
        if credit > 0:
            self.num_forgiven -= credit
            excess += credit
        return excess


@dataclass(slots=True)
class PortWatch:
    """Decides which connections of one port are closed."""

    max_connections: int
    send_timeout_s: float
    max_message_bytes: int  # from which on the library refuses a request unread
    max_resets: int  # at once
    _watched: dict[Peer, ConnectionHistory] = field(default_factory=dict)

    def judge(
        self, connections: list[Connection], accounts: Mapping[Peer, Account] | None, now: float
    ) -> dict[Connection, str]:
        """Which to close, and for what reason. ``accounts`` is None for a port whose calls are not accounted for."""
        watched: dict[Peer, ConnectionHistory] = {}
        closed = {}
        for connection in connections:
            state = watched[connection.peer] = self._get_history(connection, accounts, now)
            if reason := self._judge_one(connection, accounts, state, now):
                closed[connection] = reason
            state.seen_at = now
        self._watched = watched  # only now: whoever is forgotten midway looks like a flood at once
        excess = len(connections) - len(closed) - self.max_connections
        if excess > 0:
            rest = [one for one in connections if one not in closed]
            rest.sort(key=lambda one: (not is_busy(accounts, one.peer), one.silent_s), reverse=True)
            closed |= dict.fromkeys(rest[:excess], "connections")
        return closed

    def _get_history(
        self, connection: Connection, accounts: Mapping[Peer, Account] | None, now: float
    ) -> ConnectionHistory:
        state = self._watched.get(connection.peer)
        if state is None:
            return ConnectionHistory(now, moved_at=now)
        if connection.num_received >= state.received[-1]:
            return state
        # It comes from the address and port of one that is gone, whose account goes on.
        account = (accounts or {}).get(connection.peer) or Account()
        return ConnectionHistory(now, moved_at=now, num_resets=account.num_resets, num_unread=account.num_unread)

    def _judge_one(
        self, connection: Connection, accounts: Mapping[Peer, Account] | None, state: ConnectionHistory, now: float
    ) -> str:
        if connection.num_acked != state.num_acked or not state.is_waited_for:
            state.num_acked, state.moved_at = connection.num_acked, now
        state.is_waited_for = connection.num_waiting > 0
        if now - state.moved_at > self.send_timeout_s:
            return "send_timeout"
        if accounts is None:
            return ""
        account = accounts.get(connection.peer) or Account()
        passed_s = now - state.seen_at
        # Of a call that the library refused, as much has come as fits in its window.
        num_unread = min(account.num_unread - state.num_unread, MAX_UNREAD)
        state.num_unread = account.num_unread
        forgiven = int(FLOOD_BYTES_PER_S * passed_s) + num_unread * WINDOW_BYTES
        excess = state.count_excess(connection.num_received, account.num_bytes, forgiven)
        state.resets = max(0.0, state.resets + account.num_resets - state.num_resets - RESETS_PER_S * passed_s)
        state.num_resets = account.num_resets
        if state.resets > self.max_resets:
            return "resets"
        arriving = min(account.num_receiving, MAX_ARRIVING) * self.max_message_bytes
        return "flood" if excess > FLOOD_BYTES + arriving else ""


def is_busy(accounts: Mapping[Peer, Account] | None, peer: Peer) -> bool:
    return bool(accounts and peer in accounts and accounts[peer].num_open)


async def watch_connections(
    ports: Mapping[int, PortWatch], accounts: Accounts, grpc_port: int, count: Callable[[str], None]
) -> None:
    """Look at the connections of some ports, for ever; ``count`` is told the reason why one was closed."""
    while True:
        spent_s = 0.0
        try:
            seen = await asyncio.to_thread(inspect_connections, ports, accounts, grpc_port)
            spent_s = seen.spent_s
            accounts.forget(seen.gone)
            for reason in seen.reasons:
                count(reason)
        except Exception:
            logger.exception("The connections could not be looked at.")
        await asyncio.sleep(max(CHECK_S, IDLE_SHARE * spent_s))


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a look has found."""

    reasons: list[str]  # why connections were closed
    gone: set[Peer]  # connected no more
    spent_s: float  # by this thread; that it waited, as in a busy process, does not count


def inspect_connections(ports: Mapping[int, PortWatch], accounts: Accounts, grpc_port: int) -> Inspection:
    """Look once, in a thread of its own: with thousands of connections it takes a tenth of a second."""
    began_at = time.thread_time()
    known = accounts.get_peers()  # before the kernel is asked: who comes later is not found, and is not gone
    found = find_by_port(set(ports))
    copy = accounts.copy()  # later than what the kernel says: what has come is accounted for first
    reasons = close_offenders(ports, found, copy, grpc_port)
    gone = known - {one.peer for one in found[grpc_port]}
    return Inspection(reasons, gone, time.thread_time() - began_at)


def find_by_port(ports: set[int]) -> dict[int, list[Connection]]:
    """All connections. Takes a few microseconds for each."""
    found: dict[int, list[Connection]] = {port: [] for port in ports}
    for port, connection in find_connections(ports):
        found[port].append(connection)
    return found


def close_offenders(
    ports: Mapping[int, PortWatch],
    found: Mapping[int, list[Connection]],
    accounts: Mapping[Peer, Account],
    grpc_port: int,
) -> list[str]:
    """Judge all connections, close some, and say for what reasons."""
    reasons = []
    for port, watch in ports.items():
        closed = watch.judge(found[port], accounts if port == grpc_port else None, time.monotonic())
        reasons += [reason for one, reason in closed.items() if hang_up(one)]
    return reasons


def find_connections(ports: set[int]) -> Iterator[tuple[int, Connection]]:
    """Of this process's sockets those that clients have opened, with their ports."""
    for descriptor in list_descriptors():
        with contextlib.suppress(OSError, struct.error):  # an old kernel tells less, and then nobody is judged
            if not os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:"):
                continue
            with borrow_socket(descriptor) as one:
                if one.family not in (socket.AF_INET, socket.AF_INET6) or (port := one.getsockname()[1]) not in ports:
                    continue
                peer = one.getpeername()
                info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO_FORMAT.size)
                unacked, silent_ms, acked, received, unsent = INFO_FORMAT.unpack(info)
                num_waiting, silent_s = unacked + unsent, silent_ms / 1000
                yield port, Connection(descriptor, normalize_address(peer), num_waiting, silent_s, acked, received)


def list_descriptors() -> Iterable[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except (FileNotFoundError, PermissionError):  # /proc is not mounted everywhere, or hidden
        return ()
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        # Listing takes a descriptor, and there is none left: so all that there can be are in use.
        return range(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


@contextlib.contextmanager
def borrow_socket(descriptor: int) -> Iterator[socket.socket]:
    """Somebody else's socket."""
    one = socket.socket(fileno=descriptor)
    try:
        yield one
    finally:
        one.detach()


def hang_up(connection: Connection) -> bool:
    """Shut a connection down; its owner notices as if the client had."""
    # Not a duplicate of the socket: the descriptors may be used up.
    with contextlib.suppress(OSError), borrow_socket(connection.descriptor) as one:
        if normalize_address(one.getpeername()) == connection.peer:  # the number may mean another connection by now
            one.shutdown(socket.SHUT_RDWR)
            return True
    return False


def hang_up_all(port: int) -> None:
    """Shut down every connection of a port."""
    with contextlib.suppress(OSError):  # the end goes on where the system has no descriptor left to look with
        for _, connection in list(find_connections({port})):
            hang_up(connection)


def normalize_address(address: tuple[str, int] | tuple[str, int, int, int]) -> Peer:
    """An address of IPv4 in one of IPv6 is one of IPv4; zones do not count."""
    host = address[0].partition("%")[0]
    return host.removeprefix("::ffff:") if "." in host else host, address[1]


def parse_peer(peer: str) -> Peer:
    """gRPC's ``ipv4:127.0.0.1:4000`` or ``ipv6:%5B::1%5D:4000``."""
    host, _, port = unquote(peer.partition(":")[2]).rpartition(":")
    return normalize_address((unquote(host).strip("[]"), int(port) if port.isdecimal() else 0))
