"""The control channel: the leader's requests to the followers outside of steps, and their replies.

So far the only request is to read an adapter, so that a plan can activate it. Only side threads use the channel, never
a step loop. End of stream means that the other side is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from google.protobuf.message import DecodeError

from tgis_server import failures
from tgis_server.wire import shard_pb2 as pb
from tgis_server.wire.codec import decode_adapter, encode_adapter
from tgis_server.wire.endpoints import Endpoint, Followers, Peer, connect
from tgis_server.wire.messages import Adapter

MESSAGE = "A message of the control channel"  # the subject of error sentences


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """A rank's reply about one adapter."""

    digest: bytes
    rank: int
    error: str = ""  # a sentence for clients; empty if the rank can use the adapter


class ControlPublisher:
    """The leader's side. One thread may send while another receives."""

    def __init__(self, endpoint: Endpoint, num_followers: int) -> None:
        self._followers = Followers(endpoint, num_followers)

    @property
    def num_followers(self) -> int:
        return len(self._followers.peers)

    def wait_for_followers(self, timeout_s: float) -> None:
        """Block until every follower has connected.

        Raises:
            PeerLost: a follower did not connect within ``timeout_s``.
        """
        self._followers.wait(timeout_s)

    def stage(self, adapter: Adapter) -> None:
        """Ask every follower to read an adapter.

        Raises:
            PeerLost: a follower is gone or does not read its messages.
        """
        self._followers.send(pb.Stage(adapter=encode_adapter(adapter)).SerializeToString())

    def receive(self) -> Acknowledgement:
        """Wait for the next reply from any follower.

        Raises:
            PeerLost: a follower is gone.
            GroupFailed: the message is not a reply.
        """
        peers = {peer.connection: peer for peer in self._followers.peers}
        peer = peers[wait(list(peers))[0]]  # type: ignore[index]  # wait returns the objects it was given
        if (data := peer.receive()) is None:
            raise failures.FOLLOWER_GONE.error(reason="it closed the control channel")
        message: pb.Acknowledgement = _parse(pb.Acknowledgement, data)
        return Acknowledgement(message.digest, message.rank, message.error)

    def close(self) -> None:
        self._followers.close()


class ControlSubscriber:
    """A follower's side."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    @classmethod
    def connect(cls, endpoint: Endpoint, timeout_s: float) -> ControlSubscriber:
        """Connect to the leader, which may not be listening yet.

        Raises:
            PeerLost: the leader was not listening within ``timeout_s``.
        """
        return cls(connect(endpoint, timeout_s))

    def receive(self) -> Adapter | None:
        """Wait for the next adapter to read; ``None`` when the leader is gone.

        Raises:
            GroupFailed: the message does not name an adapter.
        """
        if (data := self._peer.receive()) is None:
            return None
        message: pb.Stage = _parse(pb.Stage, data)
        if not message.adapter.digest:
            raise failures.MESSAGE_UNUSABLE.error(message=MESSAGE, field="adapter.digest", problem="is empty")
        return decode_adapter(message.adapter)

    def acknowledge(self, answer: Acknowledgement) -> None:
        """Reply to the leader.

        Raises:
            PeerLost: the leader is gone.
        """
        message = pb.Acknowledgement(digest=answer.digest, rank=answer.rank, error=answer.error)
        try:
            self._peer.send(message.SerializeToString())
        except OSError as error:
            raise failures.LEADER_GONE.error() from error

    def close(self) -> None:
        self._peer.close()


def _parse(kind: type[Any], data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise failures.MESSAGE_UNUSABLE.error(message=MESSAGE, field="the message", problem=error) from error
