"""Watches the shards: when all of them serve, and when one of them is dead.

Calls each shard's ``Health`` every second. What it learns is kept, so that probes are answered at once and never touch
a device. ``ShardWatch`` judges one shard's answers and is plain; ``Watch`` does the calling.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

import grpc

from tgis_server.errors import PeerLost
from tgis_server.wire import shard_pb2 as pb
from tgis_server.wire.link import open_channel
from tgis_server.wire.shard_pb2_grpc import ShardStub

logger = logging.getLogger(__name__)

POLL_S = 1.0
STARTING_POLL_S = 0.1
CALL_TIMEOUT_S = 1.0
MAX_UNANSWERED = 3
MAX_TICK_AGE_S = 3.0  # three ticks: an idle step loop answers one each second


class ShardWatch:
    """What one shard said last, and whether that means that it is dead."""

    def __init__(self, rank: int, step_timeout_s: float) -> None:
        self._rank = rank
        self._step_timeout_s = step_timeout_s
        self._num_unanswered = 0
        self._last: pb.HealthReply | None = None

    @property
    def is_serving(self) -> bool:
        return self._last is not None and self._last.state == pb.HealthReply.SERVING

    @property
    def is_between_steps(self) -> bool:
        return self._last is not None and self._last.step_age_s == 0

    def observe(self, reply: pb.HealthReply | None, *, expects_ticks: bool = True) -> str | None:
        """Take in an answer, or its absence. Returns why the shard is dead, or None.

        ``expects_ticks``: an idle step loop should have answered its ticks. A follower gets them from the leader,
        and none while the leader waits for the device.
        """
        if reply is None:
            self._num_unanswered += 1
            # Before it serves, silence is the launcher's to judge: importing and loading can hold everything up.
            if self.is_serving and self._num_unanswered >= MAX_UNANSWERED:
                return f"Shard {self._rank} does not answer any more."
            return None
        last, self._last, self._num_unanswered = self._last, reply, 0
        if reply.state == pb.HealthReply.FAILED:
            return f"Shard {self._rank} failed: {reply.phase or 'no reason given'}."
        if reply.state != pb.HealthReply.SERVING:
            return None
        if reply.step_age_s > self._step_timeout_s:
            return (
                f"Shard {self._rank} hangs: its current step has run for {reply.step_age_s:.0f} s, "
                f"more than --step-timeout {self._step_timeout_s:g}."
            )
        # Between two long steps the last tick is old as well: only a shard that also did nothing since is stuck.
        did_nothing = last is not None and last.executed_steps == reply.executed_steps and last.step_age_s == 0
        if expects_ticks and did_nothing and reply.step_age_s == 0 and reply.tick_age_s > MAX_TICK_AGE_S:
            return f"Shard {self._rank} hangs: its step loop has not answered for {reply.tick_age_s:.0f} s."
        return None


class Watch:
    """All shards of the group."""

    def __init__(self, sockets: Sequence[Path], step_timeout_s: float) -> None:
        self._sockets = sockets
        self._shards = [ShardWatch(rank, step_timeout_s) for rank in range(len(sockets))]
        self._all_serving = asyncio.Event()

    async def wait_until_serving(self) -> None:
        """Until every shard said SERVING."""
        await self._all_serving.wait()

    async def run(self) -> None:
        """Poll until a shard is dead.

        Raises:
            PeerLost: says which shard, and how that was noticed. Always, unless cancelled.
        """
        channels = [open_channel(path) for path in self._sockets]
        try:
            stubs = [ShardStub(channel) for channel in channels]
            while True:
                replies = await asyncio.gather(*(self._ask(stub) for stub in stubs))
                leader = self._shards[0]
                was_idle = leader.is_serving and leader.is_between_steps
                for shard, reply in zip(self._shards, replies, strict=True):
                    is_idle = was_idle and leader.is_between_steps
                    if cause := shard.observe(reply, expects_ticks=shard is leader or is_idle):
                        raise PeerLost(cause)
                if all(shard.is_serving for shard in self._shards):
                    self._all_serving.set()
                await asyncio.sleep(POLL_S if self._all_serving.is_set() else STARTING_POLL_S)
        finally:
            for channel in channels:
                await channel.close()

    async def _ask(self, stub: ShardStub) -> pb.HealthReply | None:
        try:
            reply: pb.HealthReply = await stub.Health(pb.HealthRequest(), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return None
        return reply
