"""Connections between ranks: where the channels listen and connect, and how they send messages of bytes.

Ranks on other machines would only need an endpoint with another scheme; the channels would stay the same.
``shard/entry.py`` makes endpoints; ``plans.py`` and ``control.py`` are the channels.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from tgis_server import failures

SEND_TIMEOUT_S = 30.0  # an idle rank that reads nothing for this long is hung
CONNECT_RETRY_S = 0.02


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a channel, which both sides must know."""

    scheme: str  # only "unix" so far
    address: str  # the path of a Unix socket
    credentials: bytes = b""  # prove the other side's right to connect; for a Unix socket, its mode is enough

    @classmethod
    def unix(cls, path: Path) -> Endpoint:
        return cls("unix", str(path))

    def make_socket(self) -> socket.socket:
        if self.scheme != "unix":
            raise ValueError(f"no transport for endpoints of scheme {self.scheme!r}")
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


class Peer:
    """The other end of a channel, for whole messages, in order.

    It uses no pickles, and no authkey, because FIPS forbids the digest that an authkey requires.
    """

    def __init__(self, connected: socket.socket) -> None:
        connected.settimeout(None)
        self._socket = connected
        self._send_timeout_s = 0.0
        self.connection = Connection(os.dup(connected.fileno()))

    def send(self, data: bytes, timeout_s: float = SEND_TIMEOUT_S) -> None:
        """
        Raises:
            OSError: the peer is gone, or has read nothing for ``timeout_s``.
        """
        if timeout_s != self._send_timeout_s:
            seconds, microseconds = divmod(int(timeout_s * 1e6), 1_000_000)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", seconds, microseconds))
            self._send_timeout_s = timeout_s
        self.connection.send_bytes(data)

    def receive(self) -> bytes | None:
        """Wait for a message; ``None`` when the peer is gone."""
        try:
            return self.connection.recv_bytes()
        except (EOFError, OSError):
            return None

    def close(self) -> None:
        self.connection.close()
        self._socket.close()


class Followers:
    """The leader's side of an endpoint: one peer per follower."""

    def __init__(self, endpoint: Endpoint, num_peers: int) -> None:
        """Listen at once, so that followers can connect when they are ready. Without followers there is no socket."""
        self._num_peers = num_peers
        self.peers: list[Peer] = []
        self._socket: socket.socket | None = None
        if num_peers:
            self._socket = endpoint.make_socket()
            self._socket.bind(endpoint.address)
            Path(endpoint.address).chmod(0o600)
            self._socket.listen(num_peers)

    def wait(self, timeout_s: float) -> None:
        """Block until every follower has connected.

        Raises:
            PeerLost: a follower did not connect within ``timeout_s``; the launcher finds out why.
        """
        deadline = time.monotonic() + timeout_s
        while self._socket and len(self.peers) < self._num_peers:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                self.peers.append(Peer(self._socket.accept()[0]))
            except TimeoutError:
                missing = self._num_peers - len(self.peers)
                raise failures.FOLLOWER_LATE.error(num_missing=missing, timeout_s=timeout_s) from None

    def send(self, data: bytes, timeout_s: float = SEND_TIMEOUT_S) -> None:
        """Send a message to every follower.

        Raises:
            PeerLost: a follower is gone, or has read nothing for ``timeout_s``.
        """
        for peer in self.peers:
            try:
                peer.send(data, timeout_s)
            except OSError as error:
                raise failures.FOLLOWER_GONE.error(reason=error) from error

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        if self._socket:
            self._socket.close()


def connect(endpoint: Endpoint, timeout_s: float) -> Peer:
    """Connect to the leader, which may not be listening yet.

    Raises:
        PeerLost: the leader was not listening within ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    peer = endpoint.make_socket()
    while True:
        try:
            peer.connect(endpoint.address)
            return Peer(peer)
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > deadline:
                peer.close()
                raise failures.LEADER_LATE.error(path=endpoint.address, timeout_s=timeout_s) from None
            time.sleep(CONNECT_RETRY_S)
