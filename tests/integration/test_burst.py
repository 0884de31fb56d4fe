"""Thousands of calls at once to a real server: each is answered or refused as overload, and no permit is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from itertools import cycle, islice
from typing import Any

import grpc
import pytest

from frontends import PRIVATE, batch, single, tokens
from tgis_server.wire.generation_pb2_grpc import GenerationServiceStub

pytestmark = pytest.mark.serial  # needs the whole machine

NUM_PERMITS = 512
DEADLINE_S = 120.0

Status = tuple[str, str]


async def call_unary(stub: GenerationServiceStub) -> Status:
    call = stub.Generate(batch("Hello", **tokens(1)))
    return (await call.code()).name, await call.details()


async def call_stream(stub: GenerationServiceStub) -> Status:
    call = stub.GenerateStream(single("Hello", **tokens(1)))
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details()
    return "OK", ""


async def burst(address: str, num_calls: int, num_channels: int) -> tuple[Counter[Status], int]:
    """Run a burst; returns how its calls ended, and the number of outputs of a later call that needs all permits."""
    async with AsyncExitStack() as stack, asyncio.timeout(DEADLINE_S):
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options=[PRIVATE]))
            for _ in range(num_channels)
        ]
        stubs = list(islice(cycle(map(GenerationServiceStub, channels)), num_calls))
        ends = await asyncio.gather(*(call(stub) for stub in stubs for call in (call_unary, call_stream)))
        answer = await stubs[0].Generate(batch(*["Hello"] * NUM_PERMITS, **tokens(1)))
    return Counter(ends), len(answer.responses)


@pytest.mark.parametrize(
    ("num_calls", "num_channels"),
    [
        (1500, 1),
        pytest.param(3000, 1, marks=pytest.mark.acceptance),
        pytest.param(3000, 8, marks=pytest.mark.acceptance),
    ],
)
def test_every_call_of_a_burst_is_answered_or_refused_as_overload(
    launch: Callable[..., Any], num_calls: int, num_channels: int
):
    server = launch("--rehearse", "--max-concurrent-requests", str(NUM_PERMITS))

    ends, num_answered = asyncio.run(burst(server.address, num_calls, num_channels))

    assert set(ends) <= {("OK", ""), ("RESOURCE_EXHAUSTED", "Model is overloaded")}
    assert ends["OK", ""] >= NUM_PERMITS
    assert ends.total() == 2 * num_calls
    assert num_answered == NUM_PERMITS
    assert server.stop() == 0
