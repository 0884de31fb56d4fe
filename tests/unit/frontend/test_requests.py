"""What the gRPC door does when a client leaves: grpc.aio leaks memory if its operations are interrupted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from test_patience import make_patience, run
from tgis_server.errors import RequestError
from tgis_server.frontend.grpc_api import requests
from tgis_server.frontend.grpc_api.requests import ServicePolicy, make_handlers
from tgis_server.wire.generation_pb2 import DESCRIPTOR

GENERATION = DESCRIPTOR.services_by_name["GenerationService"]


class FakeContext:
    """A call whose client sends nothing until ``received`` is set."""

    def __init__(self) -> None:
        self.received: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.was_read_to_the_end = False

    def peer(self) -> str:
        return "ipv4:127.0.0.1:9"

    def done(self) -> bool:
        return False

    def add_done_callback(self, callback: Callable[[Any], None]) -> None: ...

    async def read(self) -> Any:
        received = await self.received
        self.was_read_to_the_end = True
        return received


class Servicer:
    def __getattr__(self, method: str) -> Any:
        return None


async def start_call(refusals: list[RequestError]) -> tuple[FakeContext, asyncio.Task[None]]:
    """A unary call that waits for its request."""

    async def refuse(context: Any, error: RequestError) -> None:
        refusals.append(error)

    class Details:
        method = "/fmaas.GenerationService/Generate"

    context = FakeContext()
    handler = make_handlers(GENERATION, Servicer(), ServicePolicy(make_patience(), 100, refuse)).service(Details())
    call = asyncio.create_task(handler.stream_unary(None, context))
    await asyncio.sleep(0)
    return context, call


def test_a_read_is_finished_even_though_its_call_is_cancelled() -> None:
    async def test() -> None:
        context, call = await start_call([])
        await asyncio.sleep(0)

        call.cancel()
        context.received.set_result(grpc.aio.EOF)
        with contextlib.suppress(asyncio.CancelledError):
            await call
        await asyncio.sleep(0)

        assert context.was_read_to_the_end

    run(test)


def test_a_client_that_left_is_sent_no_status() -> None:
    async def test() -> None:
        refusals: list[RequestError] = []
        context, call = await start_call(refusals)

        context.received.set_result(grpc.aio.EOF)
        await asyncio.sleep(0.01)  # the library cancels the call a moment later
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call

        assert refusals == []

    run(test)


def test_a_client_that_sends_no_request_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "DEPARTURE_S", 0.0)

    async def test() -> None:
        refusals: list[RequestError] = []
        context, call = await start_call(refusals)

        context.received.set_result(grpc.aio.EOF)
        with pytest.raises(RequestError):
            await call

        assert [str(error) for error in refusals] == ["failed to decode Protobuf message: there is none"]

    run(test)
