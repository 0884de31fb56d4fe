"""Clients that do not read, do not finish their requests, or flood: only they lose their calls and connections."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest

from attackers import CONTINUATION, DATA, END_HEADERS, HEADERS, PING, SETTINGS, Attacker, call, frame, headers
from frontends import PRIVATE, batch, failure_of, run, serving, single, tokens, until
from links import FakeLink, count_up, step
from tgis_server.frontend.http_api import connections as http_connections
from tgis_server.frontend.transport import patience
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.generation_pb2_grpc import GenerationServiceStub
from tgis_server.wire.messages import FinishReason

GENERATE = "/fmaas.GenerationService/Generate"
LONG = " ".join(["t1"] * 100_000)  # does not fit in a window
ECHO = {"response": pb.ResponseOptions(input_text=True), "truncate_input_tokens": 1}


@asynccontextmanager
async def attacking(server, **options: object) -> AsyncIterator[Attacker]:
    """A connection to the gRPC port, made by a client that reads everything that its window lets the server send."""
    async with Attacker.connect(server.frontend.state.grpc_port, **options) as attacker:
        attacker.listen()
        yield attacker


@asynccontextmanager
async def visiting(server) -> AsyncIterator[Attacker]:
    """A connection to the HTTP port, made by a client that reads everything."""
    async with Attacker.connect(server.frontend.state.http_port, greets=False) as visitor:
        visitor.listen()
        yield visitor


async def count_aborts(server) -> dict[str, float]:
    """The number of aborts by reason."""
    _, text = await server.get("/metrics")
    lines = [line for line in text.splitlines() if line.startswith("tgi_abort_count{")]
    return {line.split('"')[1]: float(line.split()[-1]) for line in lines}


def start_stalled(channel: grpc.aio.Channel, **params: object) -> grpc.aio.UnaryStreamCall:
    """A stream that is not read and whose first frame does not fit in the window."""
    return GenerationServiceStub(channel).GenerateStream(single(LONG, **ECHO, **params))


def no_reader(server) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(server.address, options=[PRIVATE, ("grpc.http2.bdp_probe", 0)])


def test_an_unread_stream_is_ended_and_its_sequence_cancelled():
    async def test() -> None:
        async with serving(send_timeout=0.3) as server, no_reader(server) as channel:
            stalled = start_stalled(channel)
            await until(lambda: server.link.submitted)
            await until(lambda: server.link.cancelled == [1])
            await until(lambda: not server.frontend.state.num_calls)

            assert (await count_aborts(server))["send_timeout"] >= 1  # its connection may be closed for the same reason
            code, text = await failure_of(stalled.read())
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert text.startswith("The client did not take the answer in time")

    run(test)


def test_a_permit_is_released_when_the_answer_is_complete_even_if_unread():
    async def test() -> None:
        link = FakeLink(count_up)
        async with serving(link, max_concurrent_requests=1) as server, no_reader(server) as channel:
            start_stalled(channel, **tokens(1))
            await until(lambda: link.submitted)

            assert len((await server.generate("t1", **tokens(1))).responses) == 1
            assert server.frontend.state.num_calls == 1

    run(test)


def test_the_deadline_of_a_request_also_bounds_its_writes(monkeypatch):
    monkeypatch.setattr(patience, "DEADLINE_GRACE_S", 0.1)
    monkeypatch.setattr(patience, "MIN_BYTES_PER_S", 1 << 30)

    async def test() -> None:
        async with serving() as server, no_reader(server) as channel:
            start_stalled(channel, stopping=pb.StoppingCriteria(time_limit_millis=200))
            await until(lambda: server.link.cancelled == [1])

            assert await count_aborts(server) == {"send_timeout": 1}

    run(test)


@pytest.mark.parametrize("method", ["Generate", "Tokenize", "ModelInfo"])
def test_unread_unary_answers_are_dropped_without_a_log_line(method, caplog):
    caplog.set_level(logging.WARNING)
    body = (batch("t1", **tokens(1)) if method == "Generate" else pb.ModelInfoRequest()).SerializeToString()

    async def test() -> None:
        async with (
            serving(FakeLink(count_up), send_timeout=0.2, max_concurrent_requests=1) as server,
            attacking(server, window=0) as attacker,
        ):
            await attacker.send(call(1, f"/fmaas.GenerationService/{method}", body))
            await until(lambda: b"did not take the answer" in attacker.said)

            assert len((await server.generate("t1", **tokens(1))).responses) == 1
            assert (await count_aborts(server))["send_timeout"] == 1

    run(test)
    assert not [record for record in caplog.records if record.name.startswith("grpc")]


def test_a_request_that_does_not_arrive_in_time_is_ended(monkeypatch):
    monkeypatch.setattr(patience, "RECEIVE_TIMEOUT_S", 0.2)

    async def test() -> None:
        async with serving() as server, attacking(server) as attacker:
            await attacker.send(frame(HEADERS, END_HEADERS, 1, headers(GENERATE)))
            await until(lambda: b"The request did not arrive within" in attacker.said)

            assert await count_aborts(server) == {"receive_timeout": 1}

    run(test)


def test_a_call_without_a_request_is_refused():
    async def test() -> None:
        async with serving() as server:
            requests = server.channel.stream_unary(GENERATE)
            code, text = await failure_of(requests(iter([])))

            assert (code, text) == (grpc.StatusCode.INTERNAL, "failed to decode Protobuf message: there is none")

    run(test)


def test_the_bytes_of_requests_are_bounded_and_later_requests_wait():
    async def test() -> None:
        async with serving() as server:
            server.frontend._patience.max_bytes_held = 1000
            big = asyncio.create_task(server.generate(" ".join(["t1"] * 400), truncate_input_tokens=1, **tokens(1)))
            await until(lambda: len(server.link.submitted) == 1)
            waiting = asyncio.create_task(server.generate("t2", **tokens(1)))
            probe = await server.channel.unary_unary("/grpc.health.v1.Health/Check")(b"")

            assert probe == b"\x08\x01"
            assert len(server.link.submitted) == 1
            server.link.give(step((1, 2, FinishReason.MAX_TOKENS)))
            await big
            await until(lambda: len(server.link.submitted) == 2)
            server.link.give(step((2, 3, FinishReason.MAX_TOKENS)))
            assert (await waiting).responses[0].text == " t3"
            await until(lambda: not server.frontend._patience.num_bytes_held)

    run(test)


# Connections


SETTINGS_FRAME = frame(SETTINGS, 0, 0)
PING_FRAME = frame(PING, 0, 0, b"12345678")
ENDLESS = frame(HEADERS, 0, 1, headers(GENERATE))
FLOODS = {
    "settings": (b"", SETTINGS_FRAME * 2000),
    "pings": (b"", PING_FRAME * 1000),
    "continuations": (ENDLESS, frame(CONTINUATION, 0, 1, b"\0\1x" + b"\x7f\x81\x7d" + b"y" * 16_000)),
    "empty-data": (frame(HEADERS, END_HEADERS, 1, headers(GENERATE)), frame(DATA, 0, 1) * 2000),
    "windows": (b"", frame(8, 0, 0, struct.pack(">I", 1)) * 1000),
    "unknown": (b"", frame(0x77, 0, 0, b"x" * 16_000)),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flooding_connection_is_closed_and_others_are_served(kind):
    beginning, flood = FLOODS[kind]

    async def test() -> None:
        async with serving(FakeLink(count_up)) as server, attacking(server) as attacker:
            await attacker.send(beginning)
            await asyncio.gather(attacker.flood(flood, 8), until(lambda: attacker.is_closed))

            assert len((await server.generate("t1", **tokens(1))).responses) == 1

    run(test)


def test_a_connection_that_resets_large_numbers_of_calls_is_closed_and_counted():
    async def test() -> None:
        async with serving() as server, attacking(server) as attacker:
            await attacker.reset_calls(GENERATE, 8)

            assert attacker.is_closed
            assert set(await count_aborts(server)) <= {"flood", "resets"}
            assert await count_aborts(server)

    run(test)


def test_connections_with_half_a_request_make_room_for_others_or_time_out(monkeypatch):
    monkeypatch.setattr(http_connections, "HEADER_TIMEOUT_S", 0.5)

    async def test() -> None:
        async with serving() as server, AsyncExitStack() as stack:
            server.frontend._http._connections._max_connections = 5
            half = []
            for _ in range(8):
                half.append(await stack.enter_async_context(visiting(server)))
                await half[-1].send(b"GET /health HTTP/1.1\r\nHost: x\r\n")
            await until(lambda: [one.is_closed for one in half] == [True] * 3 + [False] * 5)
            assert (await server.get("/health"))[0] == 200
            await until(lambda: all(one.is_closed for one in half))

            counts = await count_aborts(server)
            assert counts["connections"] + counts["header_timeout"] == 8

    run(test)


def test_a_scraper_that_does_not_read_loses_its_connection():
    async def test() -> None:
        async with (
            serving(send_timeout=0.3) as server,
            Attacker.connect(server.frontend.state.http_port, greets=False) as scraper,
        ):
            await scraper.flood(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 50, 1)
            await until(lambda: not server.frontend._http._connections._open)

            assert (await count_aborts(server))["send_timeout"] >= 1

    run(test)


def test_a_request_may_follow_a_pause_on_a_kept_alive_connection(monkeypatch):
    monkeypatch.setattr(http_connections, "HEADER_TIMEOUT_S", 0.2)

    async def test() -> None:
        async with serving() as server, visiting(server) as client:
            await client.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: client.said.count(b"200 OK") == 1)
            await asyncio.sleep(0.4)
            await client.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: client.said.count(b"200 OK") == 2)

    run(test)


def test_a_body_in_pieces_keeps_the_connection_and_an_incomplete_header_does_not(monkeypatch):
    monkeypatch.setattr(http_connections, "HEADER_TIMEOUT_S", 0.2)

    async def test() -> None:
        async with serving() as server, visiting(server) as client:
            await client.send(b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
            await until(lambda: client.said.count(b"405 ") == 1)
            await client.send(b"x")
            await client.send(b"x")
            await asyncio.sleep(0.4)
            await client.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: client.said.count(b"200 OK") == 1)
            await client.send(b"GET /health HTTP/1.1\r\n")
            await until(lambda: client.is_closed)

            assert await count_aborts(server) == {"header_timeout": 1}

    run(test)


@pytest.mark.parametrize(
    "request_line", [b"GET /health", b"GET /nothing", b"GET /health HTTP/1.1\r\nExpect: much\r\nX: "]
)
def test_a_client_sending_endless_requests_waits_and_a_probe_does_not(request_line: bytes):
    request = request_line + b" HTTP/1.1\r\nHost: x\r\n\r\n"

    async def test() -> None:
        async with serving() as server, AsyncExitStack() as stack:
            for _ in range(20):
                await (await stack.enter_async_context(visiting(server))).send(request * 100)

            rate, manager = server.frontend._http._connections.rate, server.frontend._http._runner.server
            await until(lambda: len(rate._queue) == 20)
            num_handled = manager.requests_count
            assert [(await server.get("/health"))[0] for _ in range(5)] == [200] * 5

            assert manager.requests_count < num_handled + 500

    run(test)


def test_the_first_request_of_a_connection_never_waits():
    async def test() -> None:
        async with serving() as server, visiting(server) as client:
            server.frontend._http._connections.rate._bucket.tokens = -1e6

            await client.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
            await until(lambda: client.said.count(b"200 OK") == 1)
            assert (await server.get("/health"))[0] == 200
            assert client.said.count(b"200 OK") == 1

    run(test)


def test_a_client_that_does_not_read_goaway_does_not_delay_the_shutdown():
    async def test() -> None:
        async with serving() as server, Attacker.connect(server.frontend.state.grpc_port) as attacker:
            await attacker.flood(SETTINGS_FRAME * 2000, 1)
            server.frontend.request_immediate_stop()
            await asyncio.wait_for(server.life, 4)

    run(test)
