"""Calls to this machine never go through a proxy."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tgis_cli import grpc_healthcheck
from tgis_cli.clients.address import Address
from tgis_cli.clients.connection import Connection
from tgis_cli.clients.grpc_client import Client
from tgis_cli.clients.no_connection import explain_no_connection
from tgis_server.errors import Unavailable
from tgis_server.host.proxies import find_proxy, goes_direct, host_of, is_exempt, is_loopback

ROOT = Path(__file__).parents[3]
SERVICE = "fmaas.GenerationService"
NOWHERE = "http://me:word@127.0.0.1:9"  # nothing listens there


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("127.0.0.1:8033", "127.0.0.1"),
        ("localhost", "localhost"),
        ("[::1]:8033", "::1"),
        ("::1", "::1"),
        ("dns:///server.ns.svc:8033", "server.ns.svc"),
        ("dns:server:8033", "server"),
        ("ipv4:10.0.0.1:8033", "10.0.0.1"),
        ("ipv6:[::1]:8033", "::1"),
        ("grpc://server:8033", "server"),
        ("http://me:word@collector:4317/path", "collector"),
        ("unix:/run/shard-0.sock", ""),
        ("unix-abstract:name", ""),
    ],
)
def test_the_host_of_a_target_is_found(target: str, host: str):
    assert host_of(target) == host


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST.", "api.localhost", "127.0.0.1", "127.8.9.1", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1"],
)
def test_names_and_addresses_of_this_machine_are_recognized(host: str):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["localhost.example.com", "128.0.0.1", "10.0.0.1", "fe80::1%eth0", "server"])
def test_names_and_addresses_of_other_machines_are_told_apart(host: str):
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("host", "entry", "expected"),
    [
        ("a.svc", "*", True),
        ("a.svc", ".svc", True),
        ("a.svc", "svc", True),
        ("a.svc", "vc", False),
        ("a.svc", "", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("a.svc", "10.0.0.0/8", False),
        ("10.1.2.3", "nonsense/8", False),
    ],
)
def test_entries_of_no_proxy_are_names_suffixes_and_networks(host: str, entry: str, expected: bool):
    assert is_exempt(host, entry) is expected


@pytest.mark.parametrize("name", ["no_grpc_proxy", "no_proxy", "NO_PROXY"])
def test_all_spellings_of_no_proxy_are_honoured(name: str):
    environ = {"http_proxy": NOWHERE, name: "other, .svc"}

    assert goes_direct("server.ns.svc:8033", environ)
    assert find_proxy("server.ns.svc:8033", environ) == ("", "")
    assert find_proxy("server:8033", environ) == ("http_proxy", NOWHERE)


# -- Real channels ----------------------------------------------------------------------------------------------------


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, NOWHERE)
    for name in ("no_grpc_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a server that has only a health service."""
    servicer = health.HealthServicer()
    servicer.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    number = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield number
    server.stop(None)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_grpc_healthcheck_connects_to_this_machine_directly(proxied: None, port: int, host: str):
    assert grpc_healthcheck.main(["--server-url", f"{host}:{port}", "--timeout", "20"]) == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_clients_connect_to_this_machine_directly(proxied: None, port: int, host: str):
    with Client.connect(Connection(f"{host}:{port}")):
        pass


def test_a_failed_connection_through_a_proxy_is_explained(proxied: None):
    sentence = explain_no_connection(Address("server.invalid", 8033, is_tls=False, source="--url"), None, 1.0)

    assert sentence == (
        "No connection to server.invalid:8033 through the proxy http://***@127.0.0.1:9 (grpc_proxy): if the server is "
        "internal, add server.invalid to NO_PROXY."
    )


FAR = Connection("server.invalid:8033")


def test_clients_explain_a_failed_connection_through_a_proxy(proxied: None):
    with pytest.raises(Unavailable, match="through the proxy"), Client.connect(FAR):
        pass


def test_only_one_module_opens_channels():
    files = [path for part in ("tgis_cli", "server", "scripts") for path in sorted((ROOT / part).rglob("*.py"))]
    makers = {
        str(path.relative_to(ROOT))
        for path in files
        if not path.name.endswith("_pb2_grpc.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("insecure_channel", "secure_channel")
    }

    assert makers == {"server/tgis_server/wire/grpc_channels.py"}
