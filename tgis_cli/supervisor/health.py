"""Health checks of the children, over their Unix sockets."""

from __future__ import annotations

import contextlib
from pathlib import Path

import grpc

from tgis_server.run import Run
from tgis_server.wire import shard_pb2 as pb
from tgis_server.wire import shard_pb2_grpc
from tgis_server.wire.grpc_channels import open_async_channel, reconnect_options
from tgis_server.words.processes import rank_of

# Retries quickly while a child has not bound its socket; gRPC's default first pause is a second.
CHANNEL_OPTIONS = reconnect_options(first_ms=50, longest_ms=100)

Reply = pb.HealthReply | pb.FrontendHealth


class HealthClient:
    """Probes the processes of one run; ``None`` means that a process does not answer, or not yet."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._channels: dict[Path, grpc.aio.Channel] = {}

    async def check(self, name: str, timeout_s: float) -> Reply | None:
        """Health of ``frontend`` or ``shard-R``."""
        rank = rank_of(name)
        path = self._run.frontend_socket if rank is None else self._run.shard_socket(rank)
        if not path.exists():
            return None
        stub = shard_pb2_grpc.FrontendStub if rank is None else shard_pb2_grpc.ShardStub
        try:
            reply: Reply = await stub(self._channel(path)).Health(pb.HealthRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError:
            return None
        return reply

    async def info(self, rank: int, timeout_s: float) -> pb.InfoReply | None:
        """Facts about the loaded model, from a shard that is SERVING."""
        channel = self._channel(self._run.shard_socket(rank))
        try:
            reply: pb.InfoReply = await shard_pb2_grpc.ShardStub(channel).Info(pb.InfoRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError:
            return None
        return reply

    async def end(self, cause: str, timeout_s: float) -> None:
        """Tell the front-end why the group ends; it does not matter if the front-end does not answer."""
        stub = shard_pb2_grpc.FrontendStub(self._channel(self._run.frontend_socket))
        with contextlib.suppress(grpc.aio.AioRpcError):
            await stub.End(pb.EndRequest(cause=cause), timeout=timeout_s)

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close(grace=None)

    def _channel(self, path: Path) -> grpc.aio.Channel:
        if path not in self._channels:
            self._channels[path] = open_async_channel(f"unix:{path}", CHANNEL_OPTIONS)
        return self._channels[path]
