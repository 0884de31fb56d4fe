"""The load generator's client against servers of the gRPC library, over plain text and TLS, and its reconnecting."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tgis_cli.bench.http2.channel import MAX_FAILURES, Channel, Endpoint, NotConnectedError
from tgis_cli.bench.http2.client import (
    CANCELLED,
    INTERNAL,
    OK,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    ClientStream,
)
from tgis_cli.clients.tls_files import TlsFiles

PATIENCE_S = 60.0
LARGE = 3_000_000


class Call(ClientStream):
    __slots__ = ("ended", "has_begun", "messages", "times")

    def __init__(self, block: bytes, body: bytes) -> None:
        super().__init__(block, body)
        self.messages: list[bytes] = []
        self.times: list[float] = []
        self.has_begun = asyncio.Event()
        self.ended: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()

    def on_sent(self, at: float) -> None:
        self.times.append(at)

    def on_message(self, message: bytes, at: float) -> None:
        self.messages.append(message)
        self.has_begun.set()
        self.times.append(at)

    def on_end(self, status: int, text: str, at: float) -> None:
        self.times.append(at)
        self.ended.set_result((status, text))


def give_up(reason: str) -> None:
    pytest.fail(f"no connection: {reason}")


def start(channel: Channel, target: Endpoint, method: str, body: bytes = b"x") -> Call:
    call = Call(target.make_block(f"/x.X/{method}"), body)
    channel.start(call)
    return call


@asynccontextmanager
async def connect(target: Endpoint, on_give_up: Callable[[str], None] = give_up) -> AsyncIterator[Channel]:
    channel = Channel(target, on_give_up)
    await channel.connect()
    try:
        yield channel
    finally:
        channel.close()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await test()

    asyncio.run(limited())


# Servers


def repeat(request: bytes, context: Any) -> Iterator[bytes]:
    """A message for each byte."""
    for byte in request:
        yield bytes([byte]) * 10


def refuse(request: bytes, context: Any) -> Iterator[bytes]:
    yield b"first"
    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "zu viel: ä%\n")


METHODS = grpc.method_handlers_generic_handler(
    "x.X",
    {
        "Echo": grpc.unary_unary_rpc_method_handler(lambda request, context: request),
        "Repeat": grpc.unary_stream_rpc_method_handler(repeat),
        "Refuse": grpc.unary_stream_rpc_method_handler(refuse),
        "Crash": grpc.unary_unary_rpc_method_handler(lambda request, context: None),
    },
)
UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


@contextmanager
def sync_server(
    credentials: grpc.ServerCredentials | None = None, options: tuple[tuple[str, int], ...] = ()
) -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(8), (METHODS,), options=(*UNLIMITED, *options))
    port = add_port(server, credentials)
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def add_port(server: Any, credentials: grpc.ServerCredentials | None) -> int:
    if credentials is None:
        return server.add_insecure_port("127.0.0.1:0")
    return server.add_secure_port("127.0.0.1:0", credentials)


async def repeat_async(request: bytes, context: Any) -> AsyncIterator[bytes]:
    for byte in request:
        yield bytes([byte]) * 10


async def wait_for_ever(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield b"started"
    await asyncio.Event().wait()


@asynccontextmanager
async def async_server(port: int = 0) -> AsyncIterator[tuple[grpc.aio.Server, int]]:
    methods = {
        "Repeat": grpc.unary_stream_rpc_method_handler(repeat_async),
        "Wait": grpc.unary_stream_rpc_method_handler(wait_for_ever),
    }
    server = grpc.aio.server(options=UNLIMITED)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x.X", methods),))
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield server, bound
    finally:
        await server.stop(None)


# Calls


def test_calls_to_a_threaded_server_bring_what_the_library_would_bring():
    async def test() -> None:
        with sync_server() as port:
            target = Endpoint("127.0.0.1", port, None)
            async with connect(target) as channel:
                echo = start(channel, target, "Echo", b"hello")
                stream = start(channel, target, "Repeat", bytes(range(200)))
                refused = start(channel, target, "Refuse")
                missing = start(channel, target, "Missing")
                crashed = start(channel, target, "Crash")

                assert await echo.ended == (OK, "")
                assert echo.messages == [b"hello"]
                assert await stream.ended == (OK, "")
                assert stream.messages == [bytes([byte]) * 10 for byte in range(200)]
                assert await refused.ended == (RESOURCE_EXHAUSTED, "zu viel: ä%\n")
                assert refused.messages == [b"first"]
                assert (await missing.ended)[0] == UNIMPLEMENTED
                assert (await crashed.ended)[0] == INTERNAL
                assert stream.times == sorted(stream.times)

    run(test)


def test_large_messages_pass_the_windows_of_both_sides():
    async def test() -> None:
        with sync_server() as port:
            target = Endpoint("127.0.0.1", port, None)
            async with connect(target) as channel:
                calls = [start(channel, target, "Echo", bytes([number]) * LARGE) for number in range(3)]
                assert [await call.ended for call in calls] == [(OK, "")] * 3
                assert [call.messages for call in calls] == [[bytes([number]) * LARGE] for number in range(3)]

    run(test)


def test_calls_beyond_the_servers_limit_of_streams_wait_for_their_turn():
    async def test() -> None:
        with sync_server(options=(("grpc.max_concurrent_streams", 2),)) as port:
            target = Endpoint("127.0.0.1", port, None)
            async with connect(target) as channel:
                calls = [start(channel, target, "Repeat", b"abc") for _ in range(10)]
                assert channel.num_queued == 8
                assert [len(call.times) for call in calls] == [1, 1] + [0] * 8
                assert [await call.ended for call in calls] == [(OK, "")] * 10

    run(test)


def test_a_thousand_streams_at_a_time_from_an_asynchronous_server():
    async def test() -> None:
        async with async_server() as (_, port):
            target = Endpoint("127.0.0.1", port, None)
            async with connect(target) as channel:
                calls = [start(channel, target, "Repeat", bytes(range(20))) for _ in range(1000)]
                assert {await call.ended for call in calls} == {(OK, "")}
                assert {len(call.messages) for call in calls} == {20}

    run(test)


def test_a_cancelled_call_ends_at_the_server_and_others_go_on():
    async def test() -> None:
        async with async_server() as (_, port):
            target = Endpoint("127.0.0.1", port, None)
            async with connect(target) as channel:
                call = start(channel, target, "Wait")
                channel.cancel(call)
                other = start(channel, target, "Repeat", b"abc")
                assert await other.ended == (OK, "")
                assert not call.ended.done()

    run(test)


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("tls")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout")
    openssl("req", "-x509", *key, "ca.key", "-out", "ca.pem", "-subj", "/CN=authority")
    (directory / "names").write_text("subjectAltName=DNS:models.example")
    for name in ("server", "client"):
        openssl("req", *key, f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signing)
    return directory


def credentials_of(directory: Path) -> grpc.ServerCredentials:
    """Of a server that requires a client's certificate."""
    pair = ((directory / "server.key").read_bytes(), (directory / "server.pem").read_bytes())
    return grpc.ssl_server_credentials([pair], (directory / "ca.pem").read_bytes(), require_client_auth=True)


def test_tls_with_a_clients_certificate_and_another_name(certificates):
    async def test() -> None:
        with sync_server(credentials_of(certificates)) as port:
            pair = (certificates / "client.pem", certificates / "client.key")
            target = Endpoint("127.0.0.1", port, TlsFiles(certificates / "ca.pem", *pair, "models.example"))
            async with connect(target) as channel:
                echo = start(channel, target, "Echo", bytes(LARGE))
                stream = start(channel, target, "Repeat", bytes(100))
                assert await echo.ended == await stream.ended == (OK, "")
                assert (len(echo.messages[0]), len(stream.messages)) == (LARGE, 100)

    run(test)


@pytest.mark.parametrize("name", [None, "other.example"])
def test_a_server_with_another_name_is_refused(certificates, name):
    async def test() -> None:
        with sync_server(credentials_of(certificates)) as port:
            pair = (certificates / "client.pem", certificates / "client.key")
            channel = Channel(Endpoint("127.0.0.1", port, TlsFiles(certificates / "ca.pem", *pair, name)), give_up)
            with pytest.raises(NotConnectedError, match="certificate verify failed"):
                await channel.connect()

    run(test)


# Connections that end


def test_a_server_that_drains_finishes_its_calls_and_new_ones_go_to_its_successor():
    async def test() -> None:
        async with async_server() as (server, port):
            target = Endpoint("127.0.0.1", port, None)
            async with connect(target, lambda reason: None) as channel:
                call = start(channel, target, "Wait")
                await call.has_begun.wait()
                await server.stop(0.2)
                assert (await call.ended)[0] in (CANCELLED, UNAVAILABLE)
                async with async_server(port):
                    later = start(channel, target, "Repeat", b"abc")
                    assert await later.ended == (OK, "")

    run(test)


def test_without_a_server_calls_fail_and_the_channel_gives_up_after_some_attempts():
    async def test() -> None:
        reasons: list[str] = []
        async with async_server() as (_, port):
            target = Endpoint("127.0.0.1", port, None)
            async with connect(target, reasons.append) as channel:
                first = start(channel, target, "Repeat", b"abc")
                await first.ended
        for number in range(MAX_FAILURES):
            assert len(reasons) == 0, number
            status, text = await start(channel, target, "Repeat").ended
            assert (status, text.split(":")[0]) == (UNAVAILABLE, "no connection")
        assert len(reasons) == 1

    run(test)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n"])
def test_what_is_no_http2_server_is_not_connected_to(answer):
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer)
        writer.close()

    async def test() -> None:
        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        with closing(server):
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(NotConnectedError, match="HTTP/2" if answer else "closed"):
                await Channel(Endpoint("127.0.0.1", port, None), give_up).connect()

    run(test)


def test_a_server_that_hangs_up_after_each_connection_is_given_up():
    async def test() -> None:
        given_up = asyncio.get_running_loop().create_future()

        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)
            writer.write(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))  # SETTINGS
            await reader.readexactly(10)  # the request
            writer.close()

        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        with closing(server):
            target = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1], None)

            def note(reason: str) -> None:
                if not given_up.done():
                    given_up.set_result(reason)

            async with connect(target, note) as channel:
                for _ in range(MAX_FAILURES):
                    assert (await start(channel, target, "Repeat").ended)[0] == UNAVAILABLE
                assert await given_up

    run(test)
