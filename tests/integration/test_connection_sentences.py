"""Why there is no connection: every command says the same sentence, whichever library hides the reason."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from frontends import Server, run, serving
from shards import wait_until
from tgis_cli.clients import probe
from tgis_cli.clients.address import DEFAULT_PORTS, HTTP
from tgis_cli.clients.connection import Connection
from tgis_cli.clients.grpc_client import Client
from tgis_cli.clients.metrics_source import find_source
from tgis_cli.clients.tls_files import TlsFiles
from tgis_cli.top.watcher import Watcher
from tgis_server.errors import TgisError, Unavailable, UsageError

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of a CA, of servers with various names and dates, and of a client; and files that are unusable."""
    base = tmp_path_factory.mktemp("pki")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=base, check=True, capture_output=True)

    def issue(name: str, names: str, *lifetime: str, ca: str = "ca", usage: str = "") -> None:
        (base / "names").write_text(f"subjectAltName={names}\n" + (f"extendedKeyUsage={usage}\n" if usage else ""))
        openssl("req", *KEY, f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ("-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signing, *lifetime)

    for ca in ("ca", "stranger"):
        openssl("req", "-x509", *KEY, f"{ca}.key", "-out", f"{ca}.pem", "-subj", f"/CN={ca}", "-days", "30")
    issue("server", "DNS:localhost,IP:127.0.0.1")
    issue("elsewhere", "DNS:tgis.example.com,DNS:other.example.com")
    issue("expired", "IP:127.0.0.1", "-days", "0")
    issue("client", "DNS:client")
    issue("foreigner", "DNS:client", ca="stranger")
    issue("misused", "DNS:client", usage="serverAuth")
    openssl("pkey", "-in", "client.key", "-aes256", "-passout", "pass:secret", "-out", "encrypted.key")
    (base / "both.pem").write_bytes((base / "client.key").read_bytes() + (base / "client.pem").read_bytes())
    (base / "text").write_text("hello\n")
    (base / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n")
    return base


def tls_options(pki: Path, name: str = "server", *, client_ca: bool = False) -> dict[str, Any]:
    options: dict[str, Any] = {"tls_cert_path": pki / f"{name}.pem", "tls_key_path": pki / f"{name}.key"}
    return options | ({"tls_client_ca_cert_path": pki / "ca.pem"} if client_ca else {})


def connect(connection: Connection) -> str:
    """Tokenize something; return the sentence of the error, or nothing."""
    try:
        with Client.connect(connection) as client:
            client.tokenize(["t1"])
    except TgisError as error:
        return str(error)
    return ""


def ask(options: dict[str, Any], make: Callable[[Server], Connection]) -> tuple[str, str]:
    """Connect to a server with these options; return the sentence, and the server's address."""
    answers: list[tuple[str, str]] = []

    async def test() -> None:
        async with serving(**options) as server:
            answers.append((await asyncio.to_thread(connect, make(server)), server.address))

    run(test)
    return answers[0]


@contextlib.contextmanager
def answering(answer: bytes | None) -> Iterator[str]:
    """The address of a process that answers any connection with these bytes; ``None``: it only accepts."""
    with contextlib.ExitStack() as kept, socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection = kept.enter_context(listener.accept()[0])
                    if answer is not None:
                        with contextlib.suppress(OSError):  # who leaves early does not keep the next from an answer
                            connection.sendall(answer)
                            connection.shutdown(socket.SHUT_WR)  # closing with unread input could lose the answer

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


# -- nobody there


def test_a_name_that_does_not_resolve_is_not_reported_as_a_missing_server():
    assert connect(Connection("no-such-host.invalid:8033")).startswith("The name no-such-host.invalid ")
    assert connect(Connection("127.0.0.1:1")) == (
        "No server at 127.0.0.1:1: start one with `tgis launch`, or give the address with --url HOST:PORT."
    )


def test_the_variable_with_the_address_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TGIS_URL", "127.0.0.1:1")

    assert connect(Connection()).startswith("No server at 127.0.0.1:1 (from TGIS_URL): ")


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", 'does not speak gRPC; it answers "SSH-2.0-OpenSSH_9.6".'),
        (b"", "closes the connection: it does not speak gRPC."),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", "speaks HTTP, not gRPC, and is not a TGIS server."),
    ],
)
def test_a_port_that_speaks_something_else_is_not_mistaken_for_a_missing_server(answer: bytes, sentence: str):
    with answering(answer) as address:
        assert connect(Connection(address)) == f"The process at {address} {sentence}"


def test_a_process_that_never_answers_is_not_called_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tgis_cli.clients.grpc_client.CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setattr("tgis_cli.clients.no_connection.ANSWER_S", 0.2)

    with answering(None) as address:
        assert connect(Connection(address)).startswith(f"The process at {address} accepts connections, but does not ")


STRANGER = "The process at {address} speaks HTTP, not gRPC, and is not a TGIS server."
PORT_UNKNOWN = "{address} is a TGIS server's HTTP port; gRPC uses another, 8033 by default."


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("{", STRANGER),
        ("[1]", STRANGER),
        ('{"grpc_port": 1}', STRANGER),
        ("[" * 9999, STRANGER),
        ('{"model": "x", "grpc_port": "\\u001b[31m"}', PORT_UNKNOWN),
        ('{"model": "x", "grpc_port": 65536}', PORT_UNKNOWN),
    ],
)
def test_the_answer_of_another_http_server_is_not_trusted(body: str, sentence: str):
    answer = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()

    with answering(answer) as address:
        assert connect(Connection(address)) == sentence.format(address=address)


@pytest.mark.parametrize("scheme", ["", "http://"])
@pytest.mark.parametrize("is_ready", [True, False])
def test_our_own_http_port_says_where_grpc_is(scheme: str, is_ready: bool):
    sentences: list[str] = []

    async def test() -> None:
        async with serving(is_ready=is_ready) as server:
            http, port = f"127.0.0.1:{server.frontend.state.http_port}", server.frontend.state.grpc_port
            sentences.append(await asyncio.to_thread(connect, Connection(scheme + http)))
            sentences.append(f"{http} is a TGIS server's HTTP port; its gRPC port is {port}: --url 127.0.0.1:{port}.")

    run(test)
    assert sentences[0] == sentences[1]


@pytest.mark.parametrize("is_there", [True, False])
def test_connecting_leaves_no_thread_that_a_close_could_crash(is_there: bool):
    threads: list[set[threading.Thread]] = []

    def connect_and_look(address: str) -> None:
        threads.append(set(threading.enumerate()))
        with contextlib.suppress(Unavailable), Client.connect(Connection(address)):
            pass
        threads.append(set(threading.enumerate()))

    async def test() -> None:
        async with serving() as server:
            await asyncio.to_thread(connect_and_look, server.address if is_there else "127.0.0.1:1")

    run(test)
    assert threads[1] <= threads[0]


# -- TLS


@pytest.mark.parametrize("url", ["grpcs://127.0.0.1:{port}", "https://localhost:{port}", "localhost:{port}"])
def test_a_certificate_of_the_given_ca_is_accepted(pki: Path, url: str):
    def make(server: Server) -> Connection:
        return Connection(url.format(port=server.frontend.state.grpc_port), ca=pki / "ca.pem")

    assert ask(tls_options(pki), make)[0] == ""


def test_the_servers_own_certificate_may_be_given_as_the_ca(pki: Path):
    assert ask(tls_options(pki), lambda server: Connection(server.address, ca=pki / "server.pem"))[0] == ""


def test_a_server_that_demands_tls_says_so(pki: Path):
    for client_ca in (False, True):
        sentence, address = ask(tls_options(pki, client_ca=client_ca), lambda server: Connection(server.address))
        assert sentence == (
            f"The server at {address} requires TLS: give its CA with --ca FILE, or write grpcs://{address} if this "
            "system trusts its CA."
        )


def test_a_server_that_demands_a_client_certificate_says_so(pki: Path):
    options = tls_options(pki, client_ca=True)

    sentence, address = ask(options, lambda server: Connection(server.address, ca=pki / "ca.pem"))

    assert sentence == f"The server at {address} requires a client certificate: --cert FILE --key FILE."


@pytest.mark.parametrize("files", [("client.pem", "client.key"), ("both.pem", None)])
def test_a_client_certificate_of_its_ca_is_accepted(pki: Path, files: tuple[str, str | None]):
    cert, key = files

    def make(server: Server) -> Connection:
        return Connection(server.address, ca=pki / "ca.pem", cert=pki / cert, key=pki / key if key else None)

    assert ask(tls_options(pki, client_ca=True), make)[0] == ""


@pytest.mark.parametrize("name", ["foreigner", "misused"])
def test_a_client_certificate_of_another_ca_or_for_another_purpose_is_refused(pki: Path, name: str):
    def make(server: Server) -> Connection:
        return Connection(server.address, pki / "ca.pem", pki / f"{name}.pem", pki / f"{name}.key")

    sentence, address = ask(tls_options(pki, client_ca=True), make)

    assert sentence == (
        f"The server at {address} refuses the client certificate {pki}/{name}.pem: it must be signed by the server's "
        "client CA, valid now, and for clientAuth if it has an extendedKeyUsage."
    )


def test_a_certificate_that_the_ca_has_not_signed_is_refused(pki: Path):
    sentence, address = ask(tls_options(pki), lambda server: Connection(server.address, ca=pki / "stranger.pem"))

    assert sentence == (
        f"The certificate of the server at {address} is not signed by the CA in {pki}/stranger.pem: give the right one "
        "with --ca FILE."
    )


def test_a_certificate_of_a_private_ca_needs_that_ca(pki: Path):
    sentence, address = ask(tls_options(pki), lambda server: Connection(f"grpcs://{server.address}"))

    assert sentence == (
        f"The certificate of the server at {address} is not signed by a CA that this system trusts: give its CA with "
        "--ca FILE."
    )


def test_a_certificate_for_another_name_is_refused_unless_that_name_is_expected(pki: Path):
    options, ca = tls_options(pki, "elsewhere"), pki / "ca.pem"

    sentence, address = ask(options, lambda server: Connection(server.address, ca=ca))
    wrong, _ = ask(options, lambda server: Connection(server.address, ca=ca, tls_server_name="wrong"))
    right, _ = ask(options, lambda server: Connection(server.address, ca=ca, tls_server_name="other.example.com"))

    assert sentence == (
        f"The certificate of the server at {address} is for tgis.example.com, other.example.com, not for 127.0.0.1; "
        "expect its name with --tls-server-name tgis.example.com."
    )
    assert " not for wrong; " in wrong
    assert right == ""


def test_an_expired_certificate_is_refused(pki: Path):
    made_at = (pki / "expired.pem").stat().st_mtime
    wait_until(lambda: time.time() > made_at + 1, "the certificate to expire")

    sentence, address = ask(tls_options(pki, "expired"), lambda server: Connection(server.address, ca=pki / "ca.pem"))

    assert re.fullmatch(
        rf"The certificate of the server at {address} has expired on \w+ [\d :]+ GMT: renew it, or correct this "
        r"machine's clock\.",
        sentence,
    )


def test_tls_with_a_plain_text_port_is_refused(pki: Path):
    with_files, first = ask({}, lambda server: Connection(server.address, ca=pki / "ca.pem"))
    with_scheme, second = ask({}, lambda server: Connection(f"https://{server.address}"))

    assert with_files == (f"The server at {first} does not speak TLS: leave the files out, if the network is trusted.")
    assert with_scheme == (
        f"The server at {second} does not speak TLS: write grpc://{second}, if the network is trusted."
    )


def test_health_says_the_same_over_https(pki: Path, capsys: pytest.CaptureFixture[str]):
    codes: list[int] = []
    addresses: list[str] = []

    async def test() -> None:
        async with serving(**tls_options(pki, "elsewhere", client_ca=True), http_tls="server") as server:
            address = f"127.0.0.1:{server.frontend.state.http_port}"
            addresses.append(address)
            commands = (
                ["--url", address],
                ["--url", f"https://{address}"],
                ["--url", f"https://{address}", "--ca", str(pki / "stranger.pem")],
                ["--url", f"https://{address}", "--ca", str(pki / "ca.pem")],
                ["--url", address, "--ca", str(pki / "ca.pem"), "--tls-server-name", "tgis.example.com"],
                ["--url", f"https://{server.address}"],
            )
            codes.extend([await asyncio.to_thread(probe.main, ["--timeout", "10", *words], {}) for words in commands])

    run(test)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert codes == [1, 0, 1, 1, 0, 1]
    assert out == "ready\nready\n"
    assert lines[0].startswith(
        f"tgis: The server at {addresses[0]} requires TLS: give its CA with --ca FILE, or write "
    )
    assert f"is not signed by the CA in {pki}/stranger.pem" in lines[1]
    assert "is for tgis.example.com, other.example.com, not for 127.0.0.1" in lines[2]
    assert "is a gRPC port, but this command uses HTTP" in lines[3]


def test_metrics_are_read_with_a_client_certificate(pki: Path):
    async def test() -> None:
        async with serving(**tls_options(pki, client_ca=True), http_tls="mutual") as server:
            url = f"https://127.0.0.1:{server.frontend.state.http_port}"
            files = {"ca": pki / "ca.pem", "cert": pki / "client.pem", "key": pki / "client.key"}
            source = find_source(Connection(url, **files), {}, protocol=HTTP)
            assert (await asyncio.to_thread(source.scrape)).samples
            with pytest.raises(Unavailable, match="requires a client certificate: --cert FILE --key FILE"):
                await asyncio.to_thread(find_source(Connection(url), {}, protocol=HTTP).scrape)

    run(test)


def test_top_watches_a_server_over_tls(pki: Path):
    async def test() -> None:
        async with serving(**tls_options(pki, client_ca=True), http_tls="mutual") as server:
            url = f"https://127.0.0.1:{server.frontend.state.http_port}"
            files = {"ca": pki / "ca.pem", "cert": pki / "client.pem", "key": pki / "client.key"}
            watcher = await asyncio.to_thread(Watcher.connect, Connection(url, **files))
            glances = [await asyncio.to_thread(watcher.look) for _ in range(2)]
            with pytest.raises(Unavailable, match="requires a client certificate: --cert FILE --key FILE"):
                await asyncio.to_thread(Watcher.connect, Connection(url))

        assert [(glance.url, glance.state, glance.reason, glance.running) for glance in glances] == [
            (url, "ready", "", 0)
        ] * 2
        assert glances[1].requests_per_s == 0

    run(test)


@pytest.mark.parametrize("http_tls", ["off", "server"])
def test_top_finds_the_default_http_port_of_a_tls_server(pki: Path, monkeypatch, http_tls: str):
    async def test() -> None:
        async with serving(**tls_options(pki), http_tls=http_tls) as server:
            connection = Connection(f"grpcs://{server.address}", ca=pki / "ca.pem")
            with pytest.raises(UsageError, match=r"http://\S+ or https://\S+ has .*; write --url https://HOST:PORT"):
                await asyncio.to_thread(Watcher.connect, connection)
            monkeypatch.setitem(DEFAULT_PORTS, HTTP, server.frontend.state.http_port)
            watcher = await asyncio.to_thread(Watcher.connect, connection)

        assert watcher.source.address.is_tls == (http_tls == "server")

    run(test)


# -- files


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"ca": "none"}, "--ca {pki}/none cannot be read: No such file or directory."),
        ({"ca": "."}, "--ca {pki} cannot be read: Is a directory."),
        ({"ca": "text"}, "--ca {pki}/text has no certificate: it must be a PEM file (-----BEGIN CERTIFICATE-----)."),
        ({"ca": "client.key"}, "--ca {pki}/client.key has no certificate: it must be a PEM file"),
        ({"cert": "none", "key": "client.key"}, "--cert {pki}/none cannot be read: No such file or directory."),
        ({"cert": "client.pem", "key": "none"}, "--key {pki}/none cannot be read: No such file or directory."),
        ({"cert": "client.key", "key": "client.key"}, "--cert {pki}/client.key has no certificate"),
        ({"cert": "client.pem", "key": "text"}, "--key {pki}/text has no key: give the PEM file with the private key"),
        ({"cert": "client.pem"}, "--cert {pki}/client.pem has no key, and --key is not given: give the PEM file"),
        ({"cert": "client.pem", "key": "server.key"}, "--key {pki}/server.key does not belong to the certificate --ce"),
        ({"cert": "client.pem", "key": "encrypted.key"}, "--key {pki}/encrypted.key is encrypted: decrypt it with"),
        (
            {"cert": "broken.pem", "key": "client.key"},
            "--cert {pki}/broken.pem and --key {pki}/client.key cannot be used",
        ),
        ({"key": "client.key"}, "--key {pki}/client.key is given without --cert: the server needs the certificate"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_usage_error(
    pki: Path, files: dict[str, str], complaint: str, capsys: pytest.CaptureFixture[str]
):
    paths = {name: pki / file for name, file in files.items()}
    flags = [word for name, path in paths.items() for word in (f"--{name}", str(path))]

    with pytest.raises(UsageError) as refused, Client.connect(Connection("127.0.0.1:1", **paths)):
        pass
    code = probe.main(["--url", "https://127.0.0.1:1", *flags], {})

    assert str(refused.value).startswith(complaint.format(pki=pki))
    assert (code, capsys.readouterr().err) == (2, f"tgis: {refused.value}\n")


def test_files_may_be_pipes(pki: Path):
    def pipe(name: str) -> Path:
        reader, writer = os.pipe()
        os.write(writer, (pki / name).read_bytes())
        os.close(writer)
        return Path(f"/dev/fd/{reader}")

    def make(server: Server) -> Connection:
        return Connection(server.address, pipe("ca.pem"), pipe("client.pem"), pipe("client.key"))

    assert ask(tls_options(pki, client_ca=True), make)[0] == ""


@pytest.mark.parametrize("name", ["", ".example.com", "a b", "größe", "[::1]"])
def test_a_name_that_no_certificate_can_have_is_a_usage_error(name: str):
    with pytest.raises(UsageError, match=r"--tls-server-name .* is not a name"):
        TlsFiles(None, None, None, name).make_context()


def test_an_ipv6_address_in_brackets_is_reached():
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unavailable, match=rf"No server at \[::1\]:{port}"), Client.connect(Connection(f"[::1]:{port}")):
        pass
