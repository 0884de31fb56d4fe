"""Where a command reads ``/metrics`` of the server that it talks to, and what a server says of its state there."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tgis_cli.clients.address import DEFAULT_PORTS, GRPC, HTTP, Address, find_in_environment, to_address
from tgis_cli.clients.connection import Connection
from tgis_cli.clients.metrics import WAITING, Scrape, parse_scrape
from tgis_cli.clients.probe import explain, fetch, make_connection
from tgis_cli.clients.tls_files import TlsFiles
from tgis_cli.runs.servers import RunningServer, find_at_port
from tgis_server.errors import Unavailable, UsageError
from tgis_server.host.proxies import is_loopback

TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class MetricsSource:
    """The HTTP port of one server."""

    address: Address
    files: TlsFiles | None  # for TLS
    timeout_s: float = TIMEOUT_S

    def scrape(self) -> Scrape:
        """
        Raises:
            Unavailable: the server does not answer, is still starting, or is no TGIS server.
            UsageError: a TLS file cannot be used.
        """
        status, body = self._get("/metrics")
        at_s = time.monotonic()
        if status != http.client.OK and (reason := read_error(body)):
            raise Unavailable(reason)
        try:
            scrape = parse_scrape(body.decode(), at_s)
        except (ValueError, KeyError, IndexError):  # the parser raises any of them
            scrape = Scrape(at_s, {})
        if status != http.client.OK or WAITING not in scrape.samples:
            raise Unavailable(
                f"The HTTP server at {self.address} is not TGIS: its /metrics answers with status {status}."
            )
        return scrape

    def read_health(self, probe: str) -> dict[str, Any]:
        """The facts in a probe's answer; if the probe fails, ``{"error": why}``.

        Raises:
            Unavailable: the server does not answer, or is no TGIS server.
            UsageError: a TLS file cannot be used.
        """
        status, body = self._get(f"/health/{probe}")
        try:
            facts = json.loads(body)
        except ValueError:
            facts = None
        if not isinstance(facts, dict) or not ("model" in facts if status == http.client.OK else "error" in facts):
            raise Unavailable(f"The HTTP server at {self.address} is not TGIS: it answers with status {status}.")
        return facts

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = make_connection(self.address, self.files)
        connection.timeout = self.timeout_s  # so that the thread in which it waits ends, too
        try:
            return fetch(connection, path, self.timeout_s)
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            raise Unavailable(explain(self.address, self.files, error, self.timeout_s)) from None


def read_error(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, TypeError, KeyError):
        return ""


def find_source(
    connection: Connection, environ: Mapping[str, str] = os.environ, *, protocol: str = GRPC
) -> MetricsSource:
    """The HTTP port of the server that a command talks to. Nothing is sent there yet, unless the port is a guess.

    Args:
        protocol: what an address without a scheme on the command line means: ``GRPC``, or ``HTTP``.

    Raises:
        UsageError: the options or the environment cannot be used, or the HTTP port is not known.
        Unavailable: the server has not yet got a port.
    """
    address = connection.find_address(environ, protocol)
    if address.protocol == HTTP:
        return MetricsSource(address, connection.tls_files(address))
    if (server := find_local_server(address)) is not None:
        http_address = to_address(server, HTTP)
        return MetricsSource(http_address, connection.tls_files(http_address))
    guesses = guess_sources(connection, address, environ)
    if source := next((guess for guess in guesses if leads_to(guess, address.port)), None):
        return source
    tried = " or ".join(str(guess.address) for guess in guesses)
    hint = f"; write --url {HTTP}{'s' * guesses[-1].address.is_tls}://HOST:PORT" if protocol == HTTP else ""
    raise UsageError(
        f"The HTTP port of the server at {address} is not known: no server at {tried} has that gRPC port{hint}."
    )


def find_local_server(address: Address) -> RunningServer | None:
    """This user's running server that an address leads to, if it does."""
    return address.server or (find_at_port(address.port) if is_loopback(address.host) else None)


def guess_sources(connection: Connection, address: Address, environ: Mapping[str, str]) -> list[MetricsSource]:
    """The HTTP port in the environment if the gRPC port is from there too; otherwise the default one of that host.

    A server that uses TLS for gRPC may use it for HTTP as well.
    """
    guess = find_in_environment(environ, HTTP, with_tls=False, find=list) if address.source == "GRPC_PORT" else None
    guesses = (
        [guess]
        if guess
        else [
            Address(address.host, DEFAULT_PORTS[HTTP], is_tls=is_tls, source="the default", protocol=HTTP)
            for is_tls in sorted({False, address.is_tls})
        ]
    )
    return [MetricsSource(each, connection.tls_files(each)) for each in guesses]


def leads_to(source: MetricsSource, grpc_port: int) -> bool:
    """Whether the server behind an HTTP port has this gRPC port."""
    try:
        return source.read_health("live").get("grpc_port") == grpc_port
    except Unavailable:
        return False
