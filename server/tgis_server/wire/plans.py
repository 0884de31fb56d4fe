"""The plan channel: the leader hands every plan to its followers over a Unix socket.

Plans travel as serialized messages; a single zero byte is the orderly end. End of stream without it means that the
other side is gone. One thread on each side; nothing here interprets a plan.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from multiprocessing.connection import Connection
from pathlib import Path

from tgis_server import failures
from tgis_server.errors import PeerLost
from tgis_server.wire.codec import decode_plan, encode_plan
from tgis_server.wire.messages import StepPlan

SEND_TIMEOUT_S = 30  # a follower that reads nothing for so long hangs
CONNECT_RETRY_S = 0.02
END = b"\0"  # no protobuf message begins with a zero; a plan without rows is an empty message


class PlanPublisher:
    """The leader's side."""

    def __init__(self, path: Path, num_followers: int) -> None:
        """Listen at once, so that followers can connect whenever they are ready. No socket without followers."""
        self._num_followers = num_followers
        self._connections: list[Connection] = []
        self._listener: socket.socket | None = None
        if num_followers:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(str(path))
            path.chmod(0o600)
            self._listener.listen(num_followers)

    def wait_for_followers(self, timeout_s: float) -> None:
        """Block until every follower has connected.

        Raises:
            PeerLost: one did not within ``timeout_s``; why, the launcher knows.
        """
        deadline = time.monotonic() + timeout_s
        while self._listener and len(self._connections) < self._num_followers:
            self._listener.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                peer, _ = self._listener.accept()
            except TimeoutError:
                missing = self._num_followers - len(self._connections)
                raise failures.FOLLOWER_LATE.error(num_missing=missing, timeout_s=timeout_s) from None
            peer.settimeout(None)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT_S, 0))
            self._connections.append(Connection(peer.detach()))

    def publish(self, plan: StepPlan) -> None:
        """Send a plan to every follower.

        Raises:
            PeerLost: a follower is gone or reads nothing.
        """
        if self._connections:
            self._send(encode_plan(plan))

    def end(self) -> None:
        """Tell the followers that no plan follows, so that they end in peace."""
        with contextlib.suppress(PeerLost):  # gone before us: nobody is left to tell
            self._send(END)

    def close(self) -> None:
        """Close the sockets; without :meth:`end` before, followers take it as a failure of the leader."""
        for connection in self._connections:
            connection.close()
        if self._listener:
            self._listener.close()

    def _send(self, data: bytes) -> None:
        for connection in self._connections:
            try:
                connection.send_bytes(data)
            except OSError as error:
                raise failures.FOLLOWER_GONE.error(reason=error) from error


class PlanSubscriber:
    """A follower's side."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    def connect(cls, path: Path, timeout_s: float) -> PlanSubscriber:
        """Connect to the leader, which may not listen yet.

        Raises:
            PeerLost: it did not within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        while True:
            try:
                peer.connect(str(path))
                return cls(Connection(peer.detach()))
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline:
                    peer.close()
                    raise failures.LEADER_LATE.error(path=path, timeout_s=timeout_s) from None
                time.sleep(CONNECT_RETRY_S)

    def receive(self) -> StepPlan | None:
        """Wait for the next plan; ``None`` at the orderly end.

        Raises:
            PeerLost: the leader is gone.
        """
        try:
            data = self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise failures.LEADER_GONE.error() from error
        return None if data == END else decode_plan(data)

    def close(self) -> None:
        self._connection.close()
