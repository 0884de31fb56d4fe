"""The plan channel: the leader sends every plan to its followers.

Plans are sent as serialized messages; a single zero byte marks the orderly end. End of stream without it means that the
other side is gone. Each side uses one thread; nothing here interprets a plan.
"""

from __future__ import annotations

import contextlib

from google.protobuf.message import DecodeError

from tgis_server import failures
from tgis_server.errors import PeerLost
from tgis_server.wire.codec import decode_plan, encode_plan
from tgis_server.wire.endpoints import SEND_TIMEOUT_S, Endpoint, Followers, Peer, connect
from tgis_server.wire.messages import StepPlan

END = b"\0"  # no protobuf message begins with a zero; a plan without rows is an empty message


class PlanPublisher:
    """The leader's side."""

    def __init__(self, endpoint: Endpoint, num_followers: int, step_timeout_s: float = 0.0) -> None:
        """
        Args:
            step_timeout_s: how long any step may take, even if it is predicted to be shorter.
        """
        self._followers = Followers(endpoint, num_followers)
        self._step_timeout_s = step_timeout_s
        self._allowance_s = 0.0  # of the previous plan: a follower reads nothing while it computes

    def wait_for_followers(self, timeout_s: float) -> None:
        """Block until every follower has connected.

        Raises:
            PeerLost: a follower did not connect within ``timeout_s``; the launcher finds out why.
        """
        self._followers.wait(timeout_s)

    def publish(self, plan: StepPlan) -> None:
        """Send a plan to every follower.

        Raises:
            PeerLost: a follower is gone, or reads nothing although its step should have ended.
        """
        if self._followers.peers:
            self._send(encode_plan(plan))
            self._allowance_s = plan.allowance_s

    def end(self) -> None:
        """Tell the followers that there are no more plans, so that they end without an error."""
        with contextlib.suppress(PeerLost):  # the follower ended first
            self._send(END)

    def close(self) -> None:
        """Close the sockets. Followers treat this as a failure of the leader unless :meth:`end` was called first."""
        self._followers.close()

    def _send(self, data: bytes) -> None:
        self._followers.send(data, SEND_TIMEOUT_S + max(self._step_timeout_s, self._allowance_s))


class PlanSubscriber:
    """A follower's side."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    @classmethod
    def connect(cls, endpoint: Endpoint, timeout_s: float) -> PlanSubscriber:
        """Connect to the leader, which may not be listening yet.

        Raises:
            PeerLost: the leader was not listening within ``timeout_s``.
        """
        return cls(connect(endpoint, timeout_s))

    def receive(self) -> StepPlan | None:
        """Wait for the next plan; ``None`` at the orderly end.

        Raises:
            PeerLost: the leader is gone.
            GroupFailed: the message is not a plan.
        """
        data = self._peer.receive()
        if data is None:
            raise failures.LEADER_GONE.error()
        try:
            return None if data == END else decode_plan(data)
        except (DecodeError, ValueError) as error:
            raise failures.MESSAGE_UNUSABLE.error(message="A plan", field="the message", problem=error) from error

    def close(self) -> None:
        self._peer.close()
