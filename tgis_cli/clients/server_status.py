"""What running servers of this user are doing, as reported on the sockets in their run directories.

Those sockets answer whatever TLS the public ports require, and even while the server starts. A query does not count
as a sign of life of the launcher.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from tgis_cli.runs.servers import CAUSE_FILE, FRONTEND_SOCKET, RunningServer
from tgis_server.words.loading import INSPECTING
from tgis_server.words.sizes import format_count

Reply = TypeVar("Reply")

TIMEOUT_S = 1.0


class State(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    RESTARTING = "restarting"  # it has failed, and its launcher will start it again
    FAILED = "failed"
    SILENT = "no answer"
    FROZEN = "frozen"  # its launcher is stopped (SIGSTOP)
    LOST = "run directory deleted"  # with its sockets, so it cannot answer
    FOREIGN = "of another version"  # its sockets may differ


@dataclass(frozen=True, slots=True)
class Status:
    """A server's state and its details."""

    state: State
    num_calls: int = 0  # in flight
    phase: str = ""  # while it starts: the phase of the shard that is furthest behind
    share: float | None = None  # of that phase's bytes that are done, if known
    text: str = ""  # why it failed or does not serve

    def __str__(self) -> str:
        """``ready``, ``starting: reading weights 40%``, ``draining, 3 calls``."""
        if self.state is State.STARTING and self.phase:
            return f"starting: {self.phase}" + (f" {self.share:.0%}" if self.share is not None else "")
        if self.state is State.DRAINING or (self.state is State.READY and self.num_calls):
            return f"{self.state}, {format_count(self.num_calls, 'call')}"
        return str(self.state)


def ask_all(servers: Sequence[RunningServer]) -> list[Status]:
    """Ask all servers at once; this takes about a second at most."""
    if not servers:
        return []
    with ThreadPoolExecutor(len(servers)) as pool:
        return list(pool.map(ask, servers))


def ask(server: RunningServer, timeout_s: float = TIMEOUT_S) -> Status:
    """What the front-end says; while it starts, what the shards say."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's C library would log failed connections
    from tgis_server.wire import shard_pb2 as pb
    from tgis_server.wire.shard_pb2_grpc import FrontendStub

    if server.is_frozen:
        return Status(State.FROZEN)
    if server.is_lost:
        return Status(State.LOST)
    if server.is_of_another_version:
        return Status(State.FOREIGN)
    if server.is_looking:
        return Status(State.STARTING, phase=INSPECTING)
    reply = call(server.door / FRONTEND_SOCKET, lambda channel: FrontendStub(channel).Health, timeout_s)
    if reply is None and (cause := read_cause(server.door)):
        return Status(State.RESTARTING, text=cause)
    if reply is None and not server.has_been_ready and not (server.door / FRONTEND_SOCKET).exists():
        return Status(State.STARTING, phase="starting processes")
    if reply is None:
        return Status(State.SILENT)
    if reply.state == pb.FrontendHealth.STARTING:
        return ask_shards(server, timeout_s)
    states = {
        pb.FrontendHealth.SERVING: State.READY,
        pb.FrontendHealth.DRAINING: State.DRAINING,
        pb.FrontendHealth.FAILED: State.FAILED,
    }
    return Status(states[reply.state], reply.in_flight, text=reply.text)


def ask_shards(server: RunningServer, timeout_s: float) -> Status:
    """The phase that the start is waiting for, and the share of it that the shards in it have done."""
    from tgis_server.wire import shard_pb2 as pb
    from tgis_server.wire.shard_pb2_grpc import ShardStub

    def ask_shard(socket: Path) -> pb.HealthReply | None:
        return call(socket, lambda channel: ShardStub(channel).Health, timeout_s)

    with ThreadPoolExecutor(len(server.shard_sockets)) as pool:
        replies = [reply for reply in pool.map(ask_shard, server.shard_sockets) if reply is not None]
    if len(replies) < len(server.shard_sockets):
        return Status(State.STARTING, phase="starting processes")
    loading = [reply for reply in replies if reply.state == pb.HealthReply.LOADING]
    if not loading:
        return Status(State.STARTING, phase="warming up")
    phase = loading[0].phase or "loading"
    done, total = (sum(getattr(reply, name) for reply in loading if reply.phase == phase) for name in ("done", "total"))
    return Status(State.STARTING, phase=phase, share=min(1.0, done / total) if total else None)


def read_cause(door: Path) -> str:
    """Why the run has failed; empty if it has not."""
    try:
        return (door / CAUSE_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def call(socket: Path, pick: Callable[[Any], Callable[..., Reply]], timeout_s: float) -> Reply | None:
    """The answer of one process to a health query; ``None`` if it does not come in time."""
    import grpc

    from tgis_server.wire import shard_pb2 as pb
    from tgis_server.wire.grpc_channels import open_channel

    with open_channel(f"unix:{socket}") as channel:
        try:
            return pick(channel)(pb.HealthRequest(is_onlooker=True), timeout=timeout_s)
        except grpc.RpcError:
            return None
