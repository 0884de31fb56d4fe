"""How commands find and read `/metrics` of the server that they talk to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from frontends import Server, run, serving, tokens
from links import FakeLink, count_up
from tgis_cli.bench.server_side import difference
from tgis_cli.clients.address import HTTP
from tgis_cli.clients.connection import Connection
from tgis_cli.clients.metrics import Scrape
from tgis_cli.clients.metrics_source import MetricsSource, find_source
from tgis_server.errors import TgisError, Unavailable, UsageError


def http(server: Server) -> str:
    return f"127.0.0.1:{server.frontend.state.http_port}"


async def in_thread(work: Callable[..., Any], *words: Any, **options: Any) -> Any:
    return await asyncio.to_thread(work, *words, **options)


async def find(url: str | None = None, environ: dict[str, str] | None = None, **options: Any) -> MetricsSource:
    found = await in_thread(find_source, Connection(url), environ or {}, **options)
    assert isinstance(found, MetricsSource)
    return found


@contextlib.contextmanager
def foreign_server(body: bytes) -> Iterator[str]:
    """An HTTP server that is not ours; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def test_what_a_server_did_is_in_the_difference_of_two_scrapes():
    async def test() -> None:
        async with serving(FakeLink(count_up)) as server:
            source = await find(http(server), protocol=HTTP)
            before = await in_thread(source.scrape)
            await server.generate("t1 t2 t3", "t4", **tokens(5))
            said = difference(before, await in_thread(source.scrape))

        assert (said["calls"], said["inputs"], said["prompt_tokens"], said["output_tokens"]) == (1, 2, 4, 10)
        assert said["outcomes"] == {"MAX_TOKENS": 2}
        assert said["first_token_s"] > 0

    run(test)


def test_the_http_port_in_the_environment_belongs_to_the_grpc_port_there():
    async def test() -> None:
        async with serving() as server, serving() as other:
            environ = {"GRPC_PORT": server.address.rpartition(":")[2], "PORT": http(server).rpartition(":")[2]}
            assert (await find(environ=environ)).address.target == http(server)
            wrong = environ | {"PORT": http(other).rpartition(":")[2]}
            with pytest.raises(UsageError, match=r"no server at http://127.0.0.1:[0-9]+ has that gRPC port"):
                await find(environ=wrong)

    run(test)


def test_a_starting_server_has_metrics_and_says_why_it_is_not_ready():
    async def test() -> None:
        async with serving(is_ready=False) as server:
            source = await find(http(server), protocol=HTTP)
            assert isinstance(await in_thread(source.scrape), Scrape)
            assert (await in_thread(source.read_health, "live"))["status"] == "starting"
            assert (await in_thread(source.read_health, "ready"))["error"].startswith("The model is still loading")

    run(test)


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\xfe", b'{"a": 1}', b"go_goroutines 7\n"])
def test_another_http_server_is_no_tgis(body: bytes):
    with foreign_server(body) as address:
        source = find_source(Connection(address), {}, protocol=HTTP)
        for ask in (source.scrape, lambda: source.read_health("live")):
            with pytest.raises(Unavailable, match=f"^The HTTP server at http://{address} is not TGIS: "):
                ask()


def test_a_server_that_does_not_answer_is_given_up_in_time():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"127.0.0.1:{listener.getsockname()[1]}"
        address = find_source(Connection(url), {}, protocol=HTTP).address
        with pytest.raises(Unavailable, match=r"^No answer from 127.0.0.1:[0-9]+ within 0.1 s: "):
            MetricsSource(address, None, timeout_s=0.1).scrape()


def test_tls_files_without_tls_are_refused():
    with pytest.raises(TgisError, match="--ca is given, but http:// in --url means no TLS: write https://"):
        find_source(Connection("http://h:1", ca="ca.pem"), {}, protocol=HTTP)  # type: ignore[arg-type]
