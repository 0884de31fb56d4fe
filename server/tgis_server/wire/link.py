"""The front-end's connection to the engine: requests out, one result per step in.

``EngineLink`` is the interface, which tests implement in their own way; ``GrpcLink`` implements it with the Session of
``shard.proto`` over the leader's Unix socket. A link belongs to one event loop and knows nothing about clients, text or
scheduling.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc

from tgis_server import failures
from tgis_server.errors import Unavailable
from tgis_server.wire import shard_pb2 as pb
from tgis_server.wire.codec import decode_step_result, encode_to_engine
from tgis_server.wire.grpc_channels import UNLIMITED, open_async_channel, reconnect_options
from tgis_server.wire.messages import StepResult, Submit
from tgis_server.wire.shard_pb2_grpc import ShardStub

INFO_TIMEOUT_S = 10.0

CHANNEL_OPTIONS = (
    *UNLIMITED,
    *reconnect_options(first_ms=100, longest_ms=500),  # retrying a socket that does not exist yet is cheap
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Facts about the loaded model that requests are checked against."""

    max_sequence_length: int  # the most that prompt and output may have together
    vocab_size: int
    num_blocks: int  # KV blocks
    end_ids: frozenset[int] = frozenset()  # end tokens of requests that do not set their own


class EngineLink(Protocol):
    """One connection to one engine. All methods are called on the event loop that created it."""

    async def info(self) -> EngineInfo:
        """Facts about the model, once the engine is loaded.

        Raises:
            Unavailable: the engine is still loading or cannot be reached.
        """
        ...

    def submit(self, requests: Iterable[Submit]) -> None:
        """Queue requests, to be sent together and in order.

        Raises:
            Unavailable: no one reads ``results``, so no result could arrive.
        """
        ...

    def cancel(self, request_id: int) -> None:
        """Tell the engine to forget a request. Never fails: without a connection there is nothing to forget."""
        ...

    def results(self) -> AsyncIterator[StepResult]:
        """Connect, then yield the result of each step.

        Raises:
            PeerLost: the connection ended, for whatever reason; the iterator never ends in any other way.
        """
        ...


def open_shard_channel(socket: Path) -> grpc.aio.Channel:
    """A channel to a shard on its Unix socket, without message limits. It connects on first use."""
    return open_async_channel(f"unix:{socket}", CHANNEL_OPTIONS)


class GrpcLink:
    """The Session with the leader over its Unix socket."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._channel: grpc.aio.Channel | None = None
        self._submits: dict[int, Submit] = {}  # requests that have not been sent yet
        self._cancels: list[int] = []
        self._has_outgoing = asyncio.Event()
        self._is_open = False

    async def info(self) -> EngineInfo:
        try:
            reply: pb.InfoReply = await self._stub().Info(pb.InfoRequest(), timeout=INFO_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise Unavailable(f"The engine did not report its model: {describe_rpc_error(error)}.") from error
        return EngineInfo(reply.max_sequence_length, reply.vocab_size, reply.num_blocks, frozenset(reply.end_ids))

    def submit(self, requests: Iterable[Submit]) -> None:
        if not self._is_open:
            raise Unavailable("The engine is not connected; try again.")
        self._submits.update((request.request_id, request) for request in requests)
        self._has_outgoing.set()

    def cancel(self, request_id: int) -> None:
        if self._submits.pop(request_id, None) is None and self._is_open:
            self._cancels.append(request_id)
            self._has_outgoing.set()

    async def results(self) -> AsyncIterator[StepResult]:
        call = self._stub().Session()
        sender = asyncio.create_task(self._send(call), name="session-sender")
        self._is_open = True
        try:
            async for message in call:
                yield decode_step_result(message)
            raise failures.ENGINE_CLOSED.error()
        except grpc.aio.AioRpcError as error:
            raise failures.ENGINE_LOST.error(reason=describe_rpc_error(error)) from error
        except asyncio.CancelledError:
            # A failed sender cancels the call; otherwise the reader itself was cancelled.
            if sender.done() and not sender.cancelled() and (cause := sender.exception()):
                raise failures.ENGINE_REFUSES.error(reason=cause) from cause
            raise
        finally:
            self._is_open = False
            self._submits.clear()
            self._cancels.clear()
            call.cancel()
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def close(self) -> None:
        """Close the connection; the leader then cancels all requests that came from it."""
        if self._channel is not None:
            await self._channel.close()

    async def _send(self, call: Any) -> None:
        """Keep writing everything queued as one message; what arrives during a write goes into the next one."""
        try:
            while True:
                await self._has_outgoing.wait()
                self._has_outgoing.clear()
                submits, self._submits = self._submits, {}
                cancels, self._cancels = self._cancels, []
                if submits or cancels:
                    await call.write(encode_to_engine(submits.values(), cancels))
        finally:
            call.cancel()

    def _stub(self) -> ShardStub:
        if self._channel is None:  # here, not in __init__: a channel belongs to the running event loop
            self._channel = open_shard_channel(self._socket)
        return ShardStub(self._channel)


def describe_rpc_error(error: grpc.aio.AioRpcError) -> str:
    """A gRPC error in a few words."""
    return f"{error.code().name} {error.details() or ''}".strip().rstrip(".")
