"""`tgis health` and `grpc_healthcheck`: one request, one line, and an exit code for container platforms."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time

import pytest

from frontends import Server, run, serving
from imports import run_and_list_imports
from tgis_cli import grpc_healthcheck
from tgis_cli.clients import probe

DOWN = "127.0.0.1:1"


async def ask(server: Server, *arguments: str) -> int:
    environ = {"PORT": str(server.frontend.state.http_port)}
    return await asyncio.to_thread(probe.main, ("--timeout", "10", *arguments), environ)


@pytest.mark.parametrize(
    ("options", "answer"), [((), "ready"), (("--probe", "live"), "live"), (("--probe", "startup"), "started")]
)
def test_a_healthy_server_prints_one_word(capsys, options: tuple[str, ...], answer: str):
    async def test() -> None:
        async with serving() as server:
            assert await ask(server, *options) == 0

    run(test)
    assert tuple(capsys.readouterr()) == (f"{answer}\n", "")


def test_an_unhealthy_server_prints_its_reason(capsys):
    async def test() -> None:
        async with serving(is_ready=False) as server:
            assert await ask(server) == 1
            assert await ask(server, "--probe", "live") == 0

    run(test)
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("live\n", 1)
    assert err.startswith("tgis: The model is still loading; shard-0: reading weights. ")


@pytest.mark.parametrize("is_ready", [True, False])
def test_json_prints_the_servers_whole_answer(capsys, is_ready: bool):
    async def test() -> None:
        async with serving(is_ready=is_ready) as server:
            assert await ask(server, "--json") == (0 if is_ready else 1)

    run(test)
    assert ("status" if is_ready else "error") in json.loads(capsys.readouterr().out)


def test_a_url_with_a_grpc_scheme_asks_the_grpc_health_service(capsys):
    async def test() -> None:
        async with serving() as server:
            assert await ask(server, "--url", f"grpc://{server.address}") == 0
            assert await ask(server, "--url", f"grpc://{server.address}", "--probe", "startup", "--json") == 0
        async with serving(is_ready=False) as server:
            environ = {"TGIS_URL": server.address, "PORT": "1"}
            assert await asyncio.to_thread(probe.main, ("--timeout", "10"), environ) == 1

    run(test)
    out, err = capsys.readouterr()
    assert out == 'ready\n{"status": "SERVING"}\n'
    assert err.endswith(" is not ready: it says NOT_SERVING; its HTTP port has the reason.\n")


def test_a_missing_server_and_a_different_server_are_told_apart(capsys):
    ports: list[str] = []

    async def test() -> None:
        async with serving() as server:
            ports.append(server.address)
            assert await ask(server, "--url", f"http://{server.address}") == 1

    run(test)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert probe.main(["--timeout", "0.1"], {"PORT": str(port)}) == 1
    assert probe.main(["--url", DOWN], {}) == 1

    not_http, too_late, nobody = capsys.readouterr().err.splitlines()
    assert not_http == (
        f"tgis: {ports[0]} is a gRPC port, and this command asks over HTTP: write grpc://{ports[0]}, or give the "
        "HTTP port, 3000 by default."
    )
    assert too_late.startswith(f"tgis: No answer from 127.0.0.1:{port} (from PORT) within 0.1 s: ")
    assert nobody.startswith(f"tgis: No server at {DOWN}: start one with `tgis launch`")


def test_a_slow_trickle_gets_no_more_time_than_any_answer(capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=drip, args=(server,), daemon=True).start()

        code = probe.main(["--timeout", "0.1"], {"PORT": str(server.getsockname()[1])})

    assert code == 1
    assert " within 0.1 s: " in capsys.readouterr().err


def drip(server: socket.socket) -> None:
    """Send an endless header byte by byte for half a second."""
    connection, _ = server.accept()
    with connection, contextlib.suppress(OSError):
        for _ in range(50):
            connection.sendall(b"H")
            time.sleep(0.01)


def test_what_a_server_says_cannot_control_the_terminal(capsys):
    body = json.dumps({"error": "\x1b]0;owned\x07 not ready"}).encode()
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer_once, args=(server, body), daemon=True).start()

        assert probe.main(["--timeout", "10"], {"PORT": str(server.getsockname()[1])}) == 1

    assert capsys.readouterr().err == "tgis: \\x1b]0;owned\\x07 not ready\n"


def answer_once(server: socket.socket, body: bytes) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.0 503 Service Unavailable\r\n\r\n" + body)


def test_an_impossible_host_name_is_reported_as_no_server(capsys):
    assert probe.main(["--url", "http://a..b:80"], {}) == 1
    assert capsys.readouterr().err == "tgis: a..b cannot be a host name: check its spelling.\n"


@pytest.mark.parametrize(
    ("arguments", "environ", "text"),
    [
        (["--prob", "live"], {}, "tgis: No such option: --prob; did you mean --probe?\n"),
        (["--probe", "dead"], {}, "--probe is 'dead', but must be one of ready"),
        (["--timeout", "0"], {}, "0 is not a number of seconds above 0"),
        (["--timeout", "-1"], {}, "-1 is not a number"),
        (["--timeout", "inf"], {}, "up to 3600"),
        (["--timeout", "x"], {}, "x is not"),
        (["--url", "localhost"], {}, "--url localhost is not HOST:PORT"),
        ([], {"PORT": "tcp://10.0.0.1:80"}, "The variable PORT is 'tcp://10.0.0.1:80', not a port"),
        (["--url", "https://127.0.0.1:1", "--ca", "/no/ca.pem"], {}, "--ca /no/ca.pem cannot be read: No such file"),
        (["--url", "http://127.0.0.1:1", "--ca", "ca.pem"], {}, "--ca is given, but http://127.0.0.1:1 means no TLS"),
    ],
)
def test_wrong_options_are_told_apart_from_an_unhealthy_server(capsys, arguments, environ, text: str):
    try:
        code = probe.main(arguments, environ)
    except SystemExit as end:  # of the parser
        code = end.code

    assert code == 2
    assert text in capsys.readouterr().err


def test_tgis_health_imports_neither_the_server_nor_the_command_framework():
    exit_code, imported = run_and_list_imports("health", "--url", "127.0.0.1:1")

    assert exit_code == 1
    assert imported.isdisjoint({"typer", "grpc"})
    assert {name for name in imported if name.startswith("tgis_server.")} == {
        "tgis_server.host",
        "tgis_server.host.interpreter",
        "tgis_server.words",
        "tgis_server.words.addresses",  # which imports nothing
    }


@pytest.mark.parametrize(("is_ready", "expected"), [(True, (0, "SERVING\n")), (False, (1, "NOT_SERVING\n"))])
def test_the_adapters_grpc_healthcheck_queries_the_health_service(capsys, is_ready: bool, expected: tuple[int, str]):
    codes = []

    async def test() -> None:
        async with serving(is_ready=is_ready) as server:
            codes.append(await asyncio.to_thread(grpc_healthcheck.main, ["--server-url", server.address]))

    run(test)
    assert (codes[0], capsys.readouterr().out) == expected


def test_the_adapters_grpc_healthcheck_reports_why_it_got_no_answer(capsys):
    assert grpc_healthcheck.main(["--server-url", DOWN, "--insecure", "--service-name", "live"]) == 1
    assert capsys.readouterr().err.startswith("UNAVAILABLE: ")
