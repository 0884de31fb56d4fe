"""A rolling update in miniature: a new server is ready, then the old one is stopped, and no client notices.

Clients find the servers as in Kubernetes: by a headless Service, whose addresses they all connect to, or by a Service
with an address of its own, which gives each new connection to a ready server and never moves one. Their channels have
no retry policy, so a call that fails is not repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from frontends import until
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.generation_pb2_grpc import GenerationServiceStub

Start = Callable[..., Any]  # starts a Server of conftest.py

pytestmark = [pytest.mark.acceptance, pytest.mark.serial]

NUM_STREAMS = 20
NUM_CALLERS = 8
DEADLINE_S = 60.0
POLL_S = 0.2  # how often readiness is probed
SERVER = ("--rehearse", "--rehearse-step-ms", "20", "--host", "127.0.0.1", "--drain-delay", "3")
WITH_HEALTH = json.dumps({"healthCheckConfig": {"serviceName": "ready"}, "loadBalancingConfig": [{"round_robin": {}}]})


def is_ready(server: Any) -> bool:
    try:
        return urllib.request.urlopen(f"{server.facts['http']}/health/ready", timeout=1).status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


@dataclass
class Service:
    """A TCP address that hands each new connection to the next server that was ready when it was last probed."""

    servers: list[Any]
    ready: list[Any] = field(default_factory=list)
    port: int = 0
    _num_connections: int = 0
    _connections: set[asyncio.Task[None] | None] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        listener = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        self.ready = list(self.servers)
        probing = asyncio.create_task(self._probe())
        try:
            yield
        finally:
            listener.close()
            for task in (probing, *self._connections):
                task.cancel()
            await asyncio.gather(probing, *self._connections, return_exceptions=True)

    async def _probe(self) -> None:
        while True:
            verdicts = await asyncio.gather(*(asyncio.to_thread(is_ready, server) for server in self.servers))
            self.ready = [server for server, is_good in zip(self.servers, verdicts, strict=True) if is_good]
            await asyncio.sleep(POLL_S)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = self.ready[self._num_connections % len(self.ready)]
        self._num_connections += 1
        self._connections.add(asyncio.current_task())
        host, port = server.address.split(":")
        server_reader, server_writer = await asyncio.open_connection(host, int(port))
        async with closing(writer), closing(server_writer):
            await asyncio.gather(copy(reader, server_writer), copy(server_reader, writer))


@contextlib.asynccontextmanager
async def closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    try:
        yield
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


class Client:
    """Long streams, and callers that call again and again; counts how their calls end."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = GenerationServiceStub(channel)
        self._is_stopped = False
        self.num_streaming = 0
        self.streams: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    async def run_streams(self, num_tokens: int) -> None:
        await asyncio.gather(*(self._note(self.streams, self._stream(num_tokens)) for _ in range(NUM_STREAMS)))

    async def run_callers(self) -> None:
        await asyncio.gather(*(self._call_repeatedly(number) for number in range(NUM_CALLERS)))

    def stop_callers(self) -> None:
        self._is_stopped = True

    async def _call_repeatedly(self, number: int) -> None:
        await asyncio.sleep(number * 0.01)
        while not self._is_stopped:
            await self._note(self.calls, self._stream(2) if number % 2 else self._generate())

    async def _note(self, ends: Counter[str], call: Any) -> None:
        try:
            ends[await call] += 1
        except grpc.aio.AioRpcError as error:
            ends[f"{error.code().name} {error.details()}"] += 1

    async def _stream(self, num_tokens: int) -> str:
        request = pb.SingleGenerationRequest(request={"text": "Once upon a time"}, params=exactly(num_tokens))
        num_received, reason = 0, pb.NOT_FINISHED
        async for frame in self._stub.GenerateStream(request, timeout=30):
            self.num_streaming += not num_received and frame.generated_token_count > 0
            num_received, reason = frame.generated_token_count, frame.stop_reason
        return f"{pb.StopReason.Name(reason)} after {num_received}"

    async def _generate(self) -> str:
        inputs = [pb.GenerationRequest(text="Once upon a time")]
        answer = await self._stub.Generate(pb.BatchedGenerationRequest(requests=inputs, params=exactly(2)), timeout=30)
        [output] = answer.responses
        return f"{pb.StopReason.Name(output.stop_reason)} after {output.generated_token_count}"


def exactly(num_tokens: int) -> pb.Parameters:
    return pb.Parameters(stopping=pb.StoppingCriteria(min_new_tokens=num_tokens, max_new_tokens=num_tokens))


async def update(client: Client, old: Any, new: Any) -> None:
    """Stop the old server while its streams run, and go on calling until it has been gone for a moment."""
    streams = asyncio.create_task(client.run_streams(250))
    await until(lambda: client.num_streaming == NUM_STREAMS)
    callers = asyncio.create_task(client.run_callers())
    await until(lambda: client.calls.total() > 2 * NUM_CALLERS)
    before = count_calls(new)
    old.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(old.wait) == 0
    so_far = client.calls.total()
    await until(lambda: client.calls.total() > so_far + 2 * NUM_CALLERS)
    client.stop_callers()
    await asyncio.gather(streams, callers)

    assert client.streams == {"MAX_TOKENS after 250": NUM_STREAMS}
    assert set(client.calls) == {"MAX_TOKENS after 2"}
    assert re.search(r"draining: 20 calls in flight, \d+ s left", old.stderr)  # when it refused new calls already
    assert count_calls(new) > before + 2 * NUM_CALLERS


def count_calls(server: Any) -> float:
    text = urllib.request.urlopen(f"{server.facts['http']}/metrics", timeout=10).read().decode()
    lines = [line for line in text.splitlines() if line.startswith("tgi_request_count_total{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def test_a_client_that_watches_the_health_of_all_servers_loses_no_call(launch: Start):
    """Round robin over the addresses of a headless Service. The client moves when the old server says NOT_SERVING."""
    old, new = launch(*SERVER), launch(*SERVER)
    options = [("grpc.service_config", WITH_HEALTH), ("grpc.enable_retries", 0)]

    async def test() -> None:
        async with grpc.aio.insecure_channel(f"ipv4:{old.address},{new.address}", options=options) as channel:
            await update(Client(channel), old, new)

    asyncio.run(asyncio.wait_for(test(), DEADLINE_S))


def test_a_client_that_knows_only_the_address_of_a_service_loses_no_call(launch: Start):
    """Connections stay with the old server until --max-connection-age, so this must be less than --drain-delay."""
    old, new = (launch(*SERVER, "--max-connection-age", "1") for _ in range(2))

    async def test() -> None:
        service = Service([old, new])
        async with service.running(), grpc.aio.insecure_channel(f"127.0.0.1:{service.port}") as channel:
            await update(Client(channel), old, new)

    asyncio.run(asyncio.wait_for(test(), DEADLINE_S))
