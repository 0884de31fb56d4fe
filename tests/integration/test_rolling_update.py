"""A rolling update in miniature: a new server is ready, then the old one is stopped, and no client notices.

Clients find the servers as in Kubernetes: by the addresses behind a headless Service, once they have resolved its name
again, or by a Service with an address of its own, which gives each new connection to a ready server and never moves
one. Their channels have no retry policy, so a call that fails is not repeated.

The long streams outlast the drain delay however slow the machine is: their answers are larger than what gRPC keeps on
the way, and their client reads on only when the old server refuses new calls.
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
NUM_TOKENS = 800  # of a long stream; with their alternatives about 100 KB, more than gRPC keeps on the way
DEADLINE_S = 120.0
POLL_S = 0.2  # how often readiness is probed
SERVER = ("--rehearse", "--rehearse-step-ms", "5", "--host", "127.0.0.1", "--drain-delay", "3", "--send-timeout", "120")
FIXED_WINDOW = ("grpc.http2.bdp_probe", 0)  # gRPC keeps 64 KiB of a stream that nobody reads, and no more with time
REFUSING = re.compile(r"draining: (\d+) calls in flight, \d+ s left")  # new calls are refused, after the delay
TEXT = "Once upon a time"
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

    def open_channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=[FIXED_WINDOW])

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
    """Long streams that are read to their end when told, and callers that call again and again; counts the ends."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = GenerationServiceStub(channel)
        self._is_stopped = False
        self._may_read = asyncio.Event()
        self.num_streaming = 0  # long streams that have received a token
        self.streams: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    async def run_streams(self, number: int) -> None:
        await asyncio.gather(*(self._note(self.streams, self._stream_long()) for _ in range(number)))

    def read_on(self) -> None:
        self._may_read.set()

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

    async def _stream_long(self) -> str:
        async for frame in self._open_stream(NUM_TOKENS, generated_tokens=True, token_logprobs=True, top_n_tokens=10):
            if frame.generated_token_count and not self._may_read.is_set():
                self.num_streaming += 1
                await self._may_read.wait()
            last = frame
        return describe_end(last)

    async def _stream(self, num_tokens: int) -> str:
        return describe_end([frame async for frame in self._open_stream(num_tokens)][-1])

    def _open_stream(self, num_tokens: int, **details: object) -> AsyncIterator[pb.GenerationResponse]:
        params = exactly(num_tokens, **details)
        return self._stub.GenerateStream(
            pb.SingleGenerationRequest(request={"text": TEXT}, params=params), timeout=DEADLINE_S
        )

    async def _generate(self) -> str:
        inputs = [pb.GenerationRequest(text=TEXT)]
        answer = await self._stub.Generate(
            pb.BatchedGenerationRequest(requests=inputs, params=exactly(2)), timeout=DEADLINE_S
        )
        return describe_end(*answer.responses)


def describe_end(output: pb.GenerationResponse) -> str:
    return f"{pb.StopReason.Name(output.stop_reason)} after {output.generated_token_count}"


def exactly(num_tokens: int, **details: object) -> pb.Parameters:
    stopping = pb.StoppingCriteria(min_new_tokens=num_tokens, max_new_tokens=num_tokens)
    return pb.Parameters(stopping=stopping, response=pb.ResponseOptions(**details))


async def update(client: Client, old: Any, new: Any, *, callers_use: list[Any], num_streams: int) -> None:
    """Stop the old server while 20 streams run there, and go on calling until it has been gone for a moment."""
    callers = asyncio.create_task(client.run_callers())
    for server in callers_use:
        await wait_for_calls(server)
    streams = asyncio.create_task(client.run_streams(num_streams))
    await until(lambda: client.num_streaming == num_streams)
    before = count_calls(new)
    old.process.send_signal(signal.SIGTERM)
    await until(lambda: REFUSING.search(old.stderr))
    client.read_on()
    assert await asyncio.to_thread(old.wait) == 0
    so_far = client.calls.total()
    await until(lambda: client.calls.total() > so_far + 2 * NUM_CALLERS)
    client.stop_callers()
    await asyncio.gather(streams, callers)

    assert client.streams == {f"MAX_TOKENS after {NUM_TOKENS}": num_streams}
    assert set(client.calls) == {"MAX_TOKENS after 2"}
    assert int(REFUSING.search(old.stderr)[1]) >= NUM_STREAMS
    assert count_calls(new) > before + 2 * NUM_CALLERS


async def wait_for_calls(server: Any) -> None:
    while not await asyncio.to_thread(count_calls, server):  # noqa: ASYNC110  the server sends no event
        await asyncio.sleep(0.05)


def count_calls(server: Any) -> float:
    text = urllib.request.urlopen(f"{server.facts['http']}/metrics", timeout=10).read().decode()
    lines = [line for line in text.splitlines() if line.startswith("tgi_request_count_total{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def test_a_client_that_watches_the_health_of_all_servers_loses_no_call(launch: Start):
    """Round robin over the addresses of a headless Service. The client moves when the old server says NOT_SERVING."""
    old, new = launch(*SERVER), launch(*SERVER)
    options = [("grpc.service_config", WITH_HEALTH), ("grpc.enable_retries", 0), FIXED_WINDOW]

    async def test() -> None:
        async with grpc.aio.insecure_channel(f"ipv4:{old.address},{new.address}", options=options) as channel:
            both = [old, new]
            await update(Client(channel), old, new, callers_use=both, num_streams=2 * NUM_STREAMS)

    asyncio.run(asyncio.wait_for(test(), DEADLINE_S))


def test_a_client_that_knows_only_the_address_of_a_service_loses_no_call(launch: Start):
    """Connections stay with the old server until --max-connection-age, so this must be less than --drain-delay."""
    old, new = (launch(*SERVER, "--max-connection-age", "1.5") for _ in range(2))

    async def test() -> None:
        service = Service([old, new])
        async with service.running(), service.open_channel() as channel:
            await update(Client(channel), old, new, callers_use=[old], num_streams=NUM_STREAMS)

    asyncio.run(asyncio.wait_for(test(), DEADLINE_S))
