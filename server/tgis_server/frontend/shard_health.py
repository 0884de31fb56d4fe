"""The health of the shards: when all of them serve, and when one of them is dead.

Each shard's ``Health`` is called every second and the last reply is kept, so probes are answered at once and never
touch a device. ``ShardHealth`` judges the replies of one shard and ``GroupHealth`` those of all shards; calls are made
only by ``GroupHealth.run``.

A stuck shard is detected after 4 s if it does not answer (three calls and the second before them), after 5 s if its
step loop is hung between steps, and one second after the longest time that a step may take if it is hung in a step.
That time is ``--step-timeout``, or the time that the leader allows for the step if that is longer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from tgis_server import failures
from tgis_server.errors import PeerLost
from tgis_server.wire import shard_pb2 as pb
from tgis_server.wire.link import open_shard_channel
from tgis_server.wire.shard_pb2_grpc import ShardStub
from tgis_server.words.processes import shard_name
from tgis_server.words.sizes import format_bytes

logger = logging.getLogger(__name__)

POLL_S = 1.0
STARTING_POLL_S = 0.1
CALL_TIMEOUT_S = 1.0
MAX_UNANSWERED = 3
MAX_TICK_AGE_S = 3.0  # three ticks: an idle step loop answers one each second


class ShardHealth:
    """The last reply of one shard, and whether the shard is dead."""

    def __init__(self, rank: int, step_timeout_s: float) -> None:
        self._rank = rank
        self._step_timeout_s = step_timeout_s
        self._num_unanswered = 0
        self._last: pb.HealthReply | None = None

    @property
    def phases(self) -> Sequence[pb.Phase]:
        return self._last.phases if self._last else ()

    @property
    def pid(self) -> int:
        """0 before the first reply."""
        return self._last.pid if self._last else 0

    def __str__(self) -> str:
        """The phase and progress that the shard last reported."""
        last = self._last
        if last is None:
            return f"{shard_name(self._rank)}: starting"
        share = ""
        if last.total:
            share = f", {format_bytes(last.done)} of {format_bytes(last.total)} ({last.done / last.total:.0%})"
        return f"{shard_name(self._rank)}: {last.phase}{share}"

    @property
    def is_serving(self) -> bool:
        return self._last is not None and self._last.state == pb.HealthReply.SERVING

    @property
    def is_silent(self) -> bool:
        """Whether the shard serves but did not answer the latest call."""
        return self.is_serving and self._num_unanswered > 0

    @property
    def is_idle(self) -> bool:
        """Whether the shard answered the latest call, between two steps."""
        return self.is_serving and not self.is_silent and self.step_age_s == 0

    @property
    def step_age_s(self) -> float:
        """How long the current step has run; 0 between steps."""
        return self._last.step_age_s if self._last is not None else 0.0

    @property
    def longest_step_s(self) -> float:
        """How long the current step may take. The leader predicts it: a long prompt is slow on a CPU."""
        allowance_s = self._last.allowance_s if self._last is not None else 0.0
        return max(allowance_s, self._step_timeout_s)

    @property
    def is_in_long_step(self) -> bool:
        return self.step_age_s > self.longest_step_s

    def describe_longest_step(self) -> str:
        """The limit of the current step, for a failure text."""
        if self.longest_step_s == self._step_timeout_s:
            return f"--step-timeout {self._step_timeout_s:g}"
        return f"the {self.longest_step_s:.0f} s allowed for this step"

    def observe(self, reply: pb.HealthReply | None, *, expects_ticks: bool = True) -> str | None:
        """Note a reply, or its absence. Return why the shard is dead, or None.

        ``expects_ticks``: whether an idle step loop should have answered its ticks. A follower gets its ticks from the
        leader, which sends none while it waits for the device.
        """
        if reply is None:
            self._num_unanswered += 1
            # Before a shard serves, the launcher judges its silence: importing and loading can block every thread.
            if self.is_serving and self._num_unanswered >= MAX_UNANSWERED:
                return failures.SHARD_SILENT.format(rank=self._rank)
            return None
        last, self._last, self._num_unanswered = self._last, reply, 0
        if reply.state != pb.HealthReply.SERVING:
            return None
        if self.is_in_long_step:
            return failures.STEP_HANGS.format(
                rank=self._rank, age_s=reply.step_age_s, limit=self.describe_longest_step()
            )
        # Between two long steps, the last tick is old too: a shard is stuck only if it has done nothing since the last
        # reply.
        did_nothing = last is not None and last.executed_steps == reply.executed_steps and last.step_age_s == 0
        if expects_ticks and did_nothing and reply.step_age_s == 0 and reply.tick_age_s > MAX_TICK_AGE_S:
            return failures.STEP_LOOP_HANGS.format(rank=self._rank, age_s=reply.tick_age_s)
        return None


class GroupHealth:
    """The health of all shards of the group."""

    def __init__(self, sockets: Sequence[Path], step_timeout_s: float) -> None:
        self._sockets = sockets
        self._shards = [ShardHealth(rank, step_timeout_s) for rank in range(len(sockets))]
        self._all_serving = asyncio.Event()

    def describe(self) -> str:
        """The progress of every shard: ``shard-0: reading weights, 1.2 GiB of 2.7 GiB (44%), shard-1: warming up``."""
        return ", ".join(map(str, self._shards))

    def phases(self) -> dict[str, Sequence[pb.Phase]]:
        """The start phases of every shard, by shard name."""
        return {shard_name(rank): shard.phases for rank, shard in enumerate(self._shards)}

    def pids(self) -> dict[str, int]:
        """The process id of every shard that has answered, by shard name."""
        return {shard_name(rank): shard.pid for rank, shard in enumerate(self._shards) if shard.pid}

    async def wait_until_serving(self) -> None:
        """Wait until every shard has reported SERVING."""
        await self._all_serving.wait()

    def judge(self, replies: Sequence[pb.HealthReply | None]) -> str | None:
        """Note the replies of all shards to one round of calls. Return why the group is dead, or None."""
        leader = self._shards[0]
        was_idle = leader.is_idle
        causes = []
        for shard, reply in zip(self._shards, replies, strict=True):
            expects_ticks = shard is leader or (was_idle and leader.is_idle)
            causes.append(shard.observe(reply, expects_ticks=expects_ticks))
        # While one shard is silent, the others may just be waiting for it: they are judged again once it answers.
        someone_is_silent = any(shard.is_silent for shard in self._shards)
        for shard, cause in zip(self._shards, causes, strict=True):
            if cause and (shard.is_silent or not someone_is_silent):
                return self._explain_long_step(shard) if shard.is_in_long_step else cause
        return None

    def _explain_long_step(self, late: ShardHealth) -> str:
        """In a step of several shards, the working ones wait for the hung one: from outside, they all look alike."""
        ranks = [str(rank) for rank, shard in enumerate(self._shards) if shard.step_age_s > 0]
        values: dict[str, Any] = {"age_s": late.step_age_s, "limit": late.describe_longest_step()}
        if len(ranks) == 1:
            return failures.STEP_HANGS.format(rank=ranks[0], **values)
        return failures.GROUP_STEP_HANGS.format(ranks=f"{', '.join(ranks[:-1])} and {ranks[-1]}", **values)

    async def run(self) -> None:
        """Poll until a shard is dead.

        Raises:
            PeerLost: always, unless cancelled; names the shard and the symptom.
        """
        channels = [open_shard_channel(path) for path in self._sockets]
        try:
            stubs = [ShardStub(channel) for channel in channels]
            while True:
                round_started_at = time.monotonic()
                if cause := self.judge(await asyncio.gather(*(self._ask(stub) for stub in stubs))):
                    raise PeerLost(cause)
                if all(shard.is_serving for shard in self._shards):
                    self._all_serving.set()
                period_s = POLL_S if self._all_serving.is_set() else STARTING_POLL_S
                await asyncio.sleep(round_started_at + period_s - time.monotonic())
        finally:
            for channel in channels:
                await channel.close()

    async def _ask(self, stub: ShardStub) -> pb.HealthReply | None:
        try:
            reply: pb.HealthReply = await stub.Health(pb.HealthRequest(), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return None
        return reply
