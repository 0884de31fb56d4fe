"""Detects floods by watching each TCP connection from outside the gRPC library, which does not report them.

Twice a second the kernel is queried for the bytes that each connection has received and sent. Large numbers of
bytes outside requests (pings, settings, window updates, endless header blocks, reset calls) count as a flood, and the
connection is closed. A connection that accepts nothing sent to it is closed too. If there are too many connections, the
one that has been silent longest is closed.
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
NUM_BEHIND = 6  # checks within which calls account for received bytes, even in a busy process
IDLE_SHARE = 20  # checks take at most 1/20 of the time: they are less frequent with thousands of connections
CALL_BYTES = 16 << 10  # credited to each call: the size of the largest header, because the library reports no sizes
FLOOD_BYTES_PER_S = 64 << 10  # a fast reader's window updates and pings are a tenth of that
FLOOD_BYTES = 512 << 10  # tolerated at once
WINDOW_BYTES = 64 << 10  # what a stream may send before its message is read
MAX_UNREAD = 64  # calls that are allowed for per check
MAX_ARRIVING = 8  # requests of a connection that are allowed for at full size, however many are arriving
RESETS_PER_S = 1000
INFO_FORMAT = struct.Struct("24xI24xI64xQQ8xI")  # the layout of TCP_INFO, to which Linux only appends


@dataclass(slots=True)
class Account:
    """What the calls of a peer account for. It belongs to the event loop; other threads take copies."""

    num_open: int = 0
    num_receiving: int = 0
    num_bytes: int = 0  # bytes of requests that have been read
    num_resets: int = 0
    num_unread: int = 0  # calls that ended before their request was complete, e.g. because it was far too large

    def copy(self) -> Account:
        """Callable from any thread. Reads ``num_receiving`` first: a request may count twice, but is never missed."""
        return Account(self.num_open, self.num_receiving, self.num_bytes, self.num_resets, self.num_unread)


@dataclass(slots=True)
class OpenCall:
    """The contribution of one call to the account of its peer."""

    account: Account
    was_read: bool = False

    def note_request(self, num_bytes: int) -> None:
        self.was_read = True
        self.account.num_bytes += num_bytes

    def close(self, *, was_reset: bool) -> None:
        self.account.num_open -= 1
        self.account.num_unread += not self.was_read
        self.account.num_resets += was_reset
        if self.was_read or not was_reset:  # resets are bounded separately
            self.account.num_bytes += CALL_BYTES


class Accounts:
    """The accounts of all peers; each call updates the account of its peer."""

    def __init__(self) -> None:
        self._accounts: dict[Peer, Account] = {}

    def open(self, name: str) -> OpenCall:
        """Note a new call from the peer with this gRPC name."""
        peer = parse_peer(name)
        if (account := self._accounts.get(peer)) is None:
            account = self._accounts[peer] = Account()
        account.num_open += 1
        return OpenCall(account)

    def get_peers(self) -> set[Peer]:
        """All peers. Callable from any thread, like :meth:`copy`."""
        return set(self._accounts)

    def copy(self) -> dict[Peer, Account]:
        return {peer: account.copy() for peer, account in list(self._accounts.items())}

    def forget(self, peers: set[Peer]) -> None:
        """Drop the accounts of closed connections."""
        for peer in peers:
            if peer in self._accounts and not self._accounts[peer].num_open:
                del self._accounts[peer]


@dataclass(frozen=True, slots=True)
class Connection:
    """What the kernel knows about a connection."""

    descriptor: int
    peer: Peer
    num_waiting: int  # bytes in the kernel that the client has not taken
    silent_s: float  # time since the client last sent something
    num_acked: int  # bytes that the client has taken
    num_received: int


@dataclass(slots=True)
class ConnectionHistory:
    """A connection's state at its last checks."""

    seen_at: float
    # Bytes received in total, at each of the last checks.
    received: deque[int] = field(default_factory=lambda: deque([0] * NUM_BEHIND, NUM_BEHIND))
    num_forgiven: int = 0  # bytes outside requests that have been allowed so far
    num_resets: int = 0
    resets: float = 0.0
    num_unread: int = 0
    num_acked: int = 0
    is_waited_for: bool = False  # its client had something to take at the last check
    moved_at: float = 0.0  # when its client last took something, or first had something to take

    def count_excess(self, num_received: int, num_accounted: int, num_forgiven: int) -> int:
        """Bytes received some checks ago that no request has accounted for by now, less those forgiven.

        Requests may also account for bytes received since then. If they account for more bytes than were received, the
        surplus gives no credit for later bytes.
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
    """Decides which connections of one port to close."""

    max_connections: int
    send_timeout_s: float
    max_message_bytes: int = 0  # beyond this, the library refuses a request unread; for a port with accounts
    max_resets: int = 0  # tolerated at once; for a port with accounts
    _histories: dict[Peer, ConnectionHistory] = field(default_factory=dict)

    def judge(
        self, connections: list[Connection], accounts: Mapping[Peer, Account] | None, now: float
    ) -> dict[Connection, str]:
        """The connections to close, with reasons. ``accounts`` is None for a port without accounts."""
        histories: dict[Peer, ConnectionHistory] = {}
        closed = {}
        for connection in connections:
            history = histories[connection.peer] = self._get_history(connection, accounts, now)
            if reason := self._judge_one(connection, accounts, history, now):
                closed[connection] = reason
            history.seen_at = now
        self._histories = histories  # only now: without its history a connection would look like a flood
        excess = len(connections) - len(closed) - self.max_connections
        if excess > 0:
            rest = [one for one in connections if one not in closed]
            rest.sort(key=lambda one: (not is_busy(accounts, one.peer), one.silent_s), reverse=True)
            closed |= dict.fromkeys(rest[:excess], "connections")
        return closed

    def _get_history(
        self, connection: Connection, accounts: Mapping[Peer, Account] | None, now: float
    ) -> ConnectionHistory:
        history = self._histories.get(connection.peer)
        if history is None:
            return ConnectionHistory(now, moved_at=now)
        if connection.num_received >= history.received[-1]:
            return history
        # A new connection that reuses the address and port of a closed one also inherits its account.
        account = (accounts or {}).get(connection.peer) or Account()
        return ConnectionHistory(now, moved_at=now, num_resets=account.num_resets, num_unread=account.num_unread)

    def _judge_one(
        self, connection: Connection, accounts: Mapping[Peer, Account] | None, history: ConnectionHistory, now: float
    ) -> str:
        if connection.num_acked != history.num_acked or not history.is_waited_for:
            history.num_acked, history.moved_at = connection.num_acked, now
        history.is_waited_for = connection.num_waiting > 0
        if now - history.moved_at > self.send_timeout_s:
            return "send_timeout"
        if accounts is None:
            return ""
        account = accounts.get(connection.peer) or Account()
        passed_s = now - history.seen_at
        # A call that the library refused may have sent as much as fits in its window.
        num_unread = min(account.num_unread - history.num_unread, MAX_UNREAD)
        history.num_unread = account.num_unread
        forgiven = int(FLOOD_BYTES_PER_S * passed_s) + num_unread * WINDOW_BYTES
        excess = history.count_excess(connection.num_received, account.num_bytes, forgiven)
        history.resets = max(0.0, history.resets + account.num_resets - history.num_resets - RESETS_PER_S * passed_s)
        history.num_resets = account.num_resets
        if history.resets > self.max_resets:
            return "resets"
        arriving = min(account.num_receiving, MAX_ARRIVING) * self.max_message_bytes
        return "flood" if excess > FLOOD_BYTES + arriving else ""


def is_busy(accounts: Mapping[Peer, Account] | None, peer: Peer) -> bool:
    return bool(accounts and peer in accounts and accounts[peer].num_open)


async def watch_connections(
    ports: Mapping[int, PortWatch], accounts: Accounts, grpc_port: int, count: Callable[[str], None]
) -> None:
    """Keep inspecting the connections of some ports; ``count`` gets the reason for each connection closed."""
    while True:
        spent_s = 0.0
        try:
            inspection = await asyncio.to_thread(inspect_connections, ports, accounts, grpc_port)
            spent_s = inspection.spent_s
            accounts.forget(inspection.gone)
            for reason in inspection.reasons:
                count(reason)
        except Exception:
            logger.exception("The connections could not be inspected.")
        await asyncio.sleep(max(CHECK_S, IDLE_SHARE * spent_s))


@dataclass(frozen=True, slots=True)
class Inspection:
    """The result of one inspection."""

    reasons: list[str]  # why connections were closed
    gone: set[Peer]  # no longer connected
    spent_s: float  # CPU time of this thread, without waiting


def inspect_connections(ports: Mapping[int, PortWatch], accounts: Accounts, grpc_port: int) -> Inspection:
    """Inspect all connections once, in a thread: thousands of them take a tenth of a second."""
    began_at = time.thread_time()
    # Before the kernel is queried: a peer that connects later is not found, but it is not gone either.
    known = accounts.get_peers()
    found: dict[int, list[Connection]] = {port: [] for port in ports}
    for port, connection in find_connections(set(ports)):
        found[port].append(connection)
    copy = accounts.copy()  # after the kernel was queried, so all received bytes can be accounted for
    reasons = close_offenders(ports, found, copy, grpc_port)
    gone = known - {one.peer for one in found[grpc_port]}
    return Inspection(reasons, gone, time.thread_time() - began_at)


def close_offenders(
    ports: Mapping[int, PortWatch],
    found: Mapping[int, list[Connection]],
    accounts: Mapping[Peer, Account],
    grpc_port: int,
) -> list[str]:
    """Judge all connections and close the offenders; return the reasons."""
    reasons = []
    for port, watch in ports.items():
        closed = watch.judge(found[port], accounts if port == grpc_port else None, time.monotonic())
        reasons += [reason for one, reason in closed.items() if hang_up(one)]
    return reasons


def find_connections(ports: set[int]) -> Iterator[tuple[int, Connection]]:
    """This process's sockets that clients have opened, with their ports. Takes a few microseconds per socket."""
    for descriptor in list_descriptors():
        with contextlib.suppress(OSError, struct.error):  # an old kernel reports less, and nothing is judged
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
    except (FileNotFoundError, PermissionError):  # /proc is hidden or not mounted
        return ()
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        # Listing needs a descriptor, and none is left, so all possible descriptors are in use.
        return range(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


@contextlib.contextmanager
def borrow_socket(descriptor: int) -> Iterator[socket.socket]:
    """A socket object for a descriptor that something else owns."""
    one = socket.socket(fileno=descriptor)
    try:
        yield one
    finally:
        one.detach()


def hang_up(connection: Connection) -> bool:
    """Shut a connection down; to its owner it looks as if the client had done so. Return whether it was shut down."""
    # The socket is not duplicated: the descriptors may be used up.
    with contextlib.suppress(OSError), borrow_socket(connection.descriptor) as one:
        if normalize_address(one.getpeername()) == connection.peer:  # else the descriptor was reused
            one.shutdown(socket.SHUT_RDWR)
            return True
    return False


def hang_up_all(port: int) -> None:
    """Shut down every connection of a port."""
    with contextlib.suppress(OSError):  # the shutdown continues even if no descriptor is left for the search
        for _, connection in list(find_connections({port})):
            hang_up(connection)


def normalize_address(address: tuple[str, int] | tuple[str, int, int, int]) -> Peer:
    """Map IPv4-mapped IPv6 addresses to IPv4, and drop zones."""
    host = address[0].partition("%")[0]
    return host.removeprefix("::ffff:") if "." in host else host, address[1]


def parse_peer(peer: str) -> Peer:
    """Parse gRPC's ``ipv4:127.0.0.1:4000`` or ``ipv6:%5B::1%5D:4000``."""
    host, _, port = unquote(peer.partition(":")[2]).rpartition(":")
    return normalize_address((unquote(host).strip("[]"), int(port) if port.isdecimal() else 0))
