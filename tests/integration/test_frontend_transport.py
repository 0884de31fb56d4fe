"""Everything around a call: TLS and its renewal, the bytes of requests, pings, deadlines, correlation ids and logs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shutil
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from frontends import PRIVATE, batch, failure_of, run, serving, single, tokens, until
from links import FakeLink, count_up, step
from tgis_cli.clients import probe
from tgis_server.errors import UsageError
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.generation_pb2_grpc import GenerationServiceStub
from tgis_server.wire.messages import FinishReason, RequestFailure

GO_ON, MAX = FinishReason.NOT_FINISHED, FinishReason.MAX_TOKENS
Code = grpc.StatusCode


# Connections


def test_a_connection_that_has_reached_its_age_ends_and_its_calls_go_on():
    async def test() -> None:
        async with serving(max_connection_age=0.2) as server:
            call = asyncio.create_task(server.generate("t1", **tokens(1)))
            await until(lambda: server.link.submitted)
            await server.channel.wait_for_state_change(grpc.ChannelConnectivity.READY)

            server.link.give(step((1, 9, MAX)))
            assert (await call).responses[0].text == " t9"

    run(test)


# TLS


@pytest.fixture(scope="module")
def authorities(tmp_path_factory) -> Path:
    """The directories ``old``, ``new`` and ``expired``, each with an authority and the certificates that it signed."""
    base = tmp_path_factory.mktemp("tls")
    for name in ("old", "new"):
        issue(base / name)
    issue(base / "expired", "-days", "0")
    return base


def issue(directory: Path, *lifetime: str) -> None:
    directory.mkdir()

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout")
    openssl("req", "-x509", *key, "ca.key", "-out", "ca.pem", "-subj", f"/CN={directory.name}")
    (directory / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
    for name in ("server", "client"):
        openssl("req", *key, f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signing, *lifetime)


class Mount:
    """A directory with the server's TLS files and links through ``..data``, laid out as Kubernetes mounts a secret."""

    def __init__(self, directory: Path, authorities: Path) -> None:
        self.directory = directory
        self.authorities = authorities
        self.swap("old")
        for name in ("server.pem", "server.key", "ca.pem"):
            (directory / name).symlink_to(f"..data/{name}")

    @property
    def options(self) -> dict[str, Path]:
        return {"tls_cert_path": self.directory / "server.pem", "tls_key_path": self.directory / "server.key"}

    def swap(self, authority: str) -> None:
        """Replace all files at once, as Kubernetes does."""
        shutil.copytree(self.authorities / authority, self.directory / f"..{authority}", dirs_exist_ok=True)
        (self.directory / "..tmp").symlink_to(f"..{authority}")
        (self.directory / "..tmp").rename(self.directory / "..data")

    def overwrite(self, authority: str) -> None:
        """Replace the contents of the files, one after the other."""
        for name in ("server.pem", "server.key", "ca.pem"):
            self.put(name, (self.authorities / authority / name).read_bytes())

    def put(self, name: str, content: bytes) -> None:
        (self.directory / name).write_bytes(content)


@pytest.fixture
def mount(tmp_path, authorities) -> Mount:
    return Mount(tmp_path, authorities)


def open_channel(server, authority: Path, client: Path | None = None) -> grpc.aio.Channel:
    """A separate connection that trusts one authority; if given, ``client`` holds the certificate it presents."""
    pair = {}
    if client:
        pair["private_key"] = (client / "client.key").read_bytes()
        pair["certificate_chain"] = (client / "client.pem").read_bytes()
    credentials = grpc.ssl_channel_credentials((authority / "ca.pem").read_bytes(), **pair)
    return grpc.aio.secure_channel(server.address, credentials, options=[PRIVATE])


async def call_info(channel: grpc.aio.Channel) -> str:
    """The status of a call on this channel."""
    return (await GenerationServiceStub(channel).ModelInfo(pb.ModelInfoRequest(), timeout=5).code()).name


async def grpc_status(server, authority: Path, client: Path | None = None) -> str:
    async with open_channel(server, authority, client) as channel:
        return await call_info(channel)


def open_session(authority: Path, client: Path | None = None) -> aiohttp.ClientSession:
    context = ssl.create_default_context(cafile=authority / "ca.pem")
    if client:
        context.load_cert_chain(client / "client.pem", client / "client.key")
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context))


async def get_health(server, session: aiohttp.ClientSession) -> int | None:
    """The HTTP status, or None if no connection was made."""
    try:
        async with session.get(f"https://127.0.0.1:{server.frontend.state.http_port}/health") as response:
            return response.status
    except aiohttp.ClientConnectionError:
        return None


async def http_status(server, authority: Path, client: Path | None = None) -> int | None:
    async with open_session(authority, client) as session:
        return await get_health(server, session)


def lines_about_tls(caplog) -> list[tuple[str, str]]:
    """The level and the first words of each log line about certificates."""
    records = [record for record in caplog.records if record.name == "tgis_server.frontend.transport.tls"]
    return [(record.levelname, record.getMessage()) for record in records]


def test_mutual_tls_admits_only_clients_with_a_certificate(authorities, mount):
    async def test() -> None:
        old = authorities / "old"
        async with serving(**mount.options, tls_client_ca_cert_path=old / "ca.pem") as server:
            assert await grpc_status(server, old, client=old) == "OK"
            assert await grpc_status(server, old, client=authorities / "new") == "UNAVAILABLE"
            assert await grpc_status(server, old) == "UNAVAILABLE"
            assert (await server.get("/health"))[0] == 200  # HTTP stays plaintext

    run(test)


def test_http_has_tls_if_it_is_enabled(authorities, mount):
    async def test() -> None:
        old = authorities / "old"
        async with serving(**mount.options, tls_client_ca_cert_path=old / "ca.pem", http_tls="server") as server:
            assert await http_status(server, old) == 200
            assert await http_status(server, authorities / "new") is None
            with pytest.raises(aiohttp.ClientError):
                await server.get("/health")

    run(test)


def test_http_with_mutual_tls_demands_client_certificates(authorities, mount):
    async def test() -> None:
        old = authorities / "old"
        async with serving(**mount.options, tls_client_ca_cert_path=old / "ca.pem", http_tls="mutual") as server:
            assert await http_status(server, old, client=old) == 200
            assert await http_status(server, old, client=authorities / "new") is None
            assert await http_status(server, old) is None

    run(test)


@pytest.mark.parametrize("replace", [Mount.swap, Mount.overwrite])
def test_new_connections_get_a_replaced_certificate_and_others_survive(authorities, mount, replace, caplog):
    caplog.set_level(logging.INFO)

    async def test() -> None:
        old, new = authorities / "old", authorities / "new"
        async with (
            serving(**mount.options, http_tls="server") as server,
            open_channel(server, old) as channel,
            open_session(old) as session,
        ):
            assert (await call_info(channel), await get_health(server, session)) == ("OK", 200)
            replace(mount, "new")

            assert (await grpc_status(server, new), await http_status(server, new)) == ("OK", 200)
            assert (await grpc_status(server, old), await http_status(server, old)) == ("UNAVAILABLE", None)
            assert (await call_info(channel), await get_health(server, session)) == ("OK", 200)
            [(level, text)] = lines_about_tls(caplog)
            assert level == "INFO"
            assert re.search(r"server\.pem was reloaded: SHA-256 ([0-9A-F]{2}:){31}[0-9A-F]{2}$", text)

    run(test)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda mount, new: mount.put("server.key", (new / "server.key").read_bytes()), "cannot be used together"),
        (lambda mount, new: mount.put("server.pem", b"garbage"), "cannot be used together"),
        (lambda mount, new: mount.put("ca.pem", b""), "is not a PEM certificate"),
        (lambda mount, new: (mount.directory / "server.key").unlink(), "cannot be read: No such file"),
    ],
    ids=["key-first", "garbage", "empty-ca", "missing"],
)
def test_mismatched_files_are_not_used_until_they_match(authorities, mount, spoil, complaint, caplog):
    caplog.set_level(logging.INFO)

    async def test() -> None:
        old, new = authorities / "old", authorities / "new"
        tls = {**mount.options, "tls_client_ca_cert_path": mount.directory / "ca.pem", "http_tls": "mutual"}
        async with serving(**tls) as server:
            spoil(mount, new)
            statuses = [await grpc_status(server, old, client=old) for _ in range(3)]
            http_statuses = [await http_status(server, old, client=old) for _ in range(2)]
            warnings = lines_about_tls(caplog)
            mount.overwrite("new")

            assert (statuses, http_statuses) == (["OK"] * 3, [200] * 2)
            [(level, text)] = warnings
            assert level == "WARNING"
            assert complaint in text
            assert await grpc_status(server, new, client=new) == "OK"
            assert len(lines_about_tls(caplog)) == 2

    run(test)


def test_an_expired_certificate_is_not_used_and_the_expiry_is_exported(authorities, mount, caplog):
    caplog.set_level(logging.INFO)

    async def test() -> None:
        old = authorities / "old"
        async with serving(**mount.options, http_tls="server") as server:
            shown = re.compile(r"^tgi_tls_certificate_expiry_timestamp_seconds\{path=.*server\.pem.*\} (\S+)$", re.M)

            def get_expiry() -> float:
                return float(shown.search(server.frontend.metrics.to_text().decode())[1])

            before = get_expiry()
            made_at = (authorities / "expired" / "server.pem").stat().st_mtime
            await until(lambda: time.time() > made_at + 1)
            mount.swap("expired")
            statuses = [await grpc_status(server, old), await http_status(server, old)]

            assert statuses == ["OK", 200]
            assert get_expiry() == before > time.time() + 29 * 86_400
            [(level, text)] = lines_about_tls(caplog)
            assert level == "WARNING"
            assert text.startswith("The TLS certificate in use is kept: The TLS certificate of server in ")

    run(test)


def test_the_clients_authority_is_replaced_as_well(authorities, mount):
    async def test() -> None:
        old, new = authorities / "old", authorities / "new"
        tls = {**mount.options, "tls_client_ca_cert_path": mount.directory / "ca.pem", "http_tls": "mutual"}
        async with serving(**tls) as server:
            mount.put("ca.pem", (new / "ca.pem").read_bytes())

            assert await grpc_status(server, old, client=new) == "OK"
            assert await grpc_status(server, old, client=old) == "UNAVAILABLE"
            assert await http_status(server, old, client=new) == 200
            assert await http_status(server, old, client=old) is None

    run(test)


def test_an_https_client_that_leaves_is_no_error(authorities, mount, caplog):
    context = ssl.create_default_context(cafile=authorities / "old" / "ca.pem")

    async def test() -> None:
        async with serving(**mount.options, http_tls="server") as server:
            port = server.frontend.state.http_port
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            writer.write(b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n")
            answer = await reader.readuntil(b"\r\n\r\n")
            writer.close()
            await writer.wait_closed()

            assert answer.startswith(b"HTTP/1.1 200")
            assert await http_status(server, authorities / "old") == 200

    run(test)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_the_health_command_works_over_tls(authorities, mount, capsys, caplog):
    async def test() -> None:
        tls = {**mount.options, "tls_client_ca_cert_path": mount.directory / "ca.pem", "http_tls": "mutual"}
        files = {name: str(authorities / "old" / name) for name in ("ca.pem", "client.pem", "client.key")}
        identity = ("--cert", files["client.pem"], "--key", files["client.key"])
        async with serving(**tls) as server:
            environ = {"PORT": str(server.frontend.state.http_port), "HTTP_TLS": "mutual"}

            codes = [
                await asyncio.to_thread(probe.main, arguments, environ)
                for arguments in (identity, ("--ca", files["ca.pem"], *identity), ())
            ]
            assert codes == [0, 0, 1]

    run(test)
    assert capsys.readouterr().err.endswith(" requires a client certificate: --cert FILE --key FILE.\n")
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize(
    ("certificate", "key", "ca", "text"),
    [
        ("none.pem", "server.key", None, r"none\.pem cannot be read: No such file"),
        ("names", "server.key", None, r"names and key .*server\.key cannot be used together"),
        ("server.pem", "client.key", None, r"cannot be used together: the key does not belong to the certificate\."),
        ("server.pem", "server.key", "names", r"client CA .*names is not a PEM certificate"),
    ],
)
def test_unusable_tls_files_end_startup_and_are_named(authorities, certificate, key, ca, text):
    async def test() -> None:
        directory = authorities / "old"
        with pytest.raises(UsageError, match=text):
            async with serving(
                is_ready=False,
                tls_cert_path=directory / certificate,
                tls_key_path=directory / key,
                tls_client_ca_cert_path=directory / ca if ca else None,
            ):
                pass

    run(test)


def test_a_server_with_http_tls_becomes_ready_and_reports_https(authorities, mount, launch: Callable[..., Any]):
    files = [f"--{name.replace('_', '-')}={path}" for name, path in mount.options.items()]
    server = launch("--rehearse", "--http-tls", "server", *files)
    url = f"{server.facts['http']}/health"

    context = ssl.create_default_context(cafile=authorities / "old" / "ca.pem")
    with urllib.request.urlopen(url, timeout=10, context=context) as response:
        assert response.status == 200
    assert url.startswith("https://127.0.0.1:")
    assert url in server.stdout


# Requests as bytes


def sized(num_bytes: int) -> bytes:
    """A request of exactly ``num_bytes`` (at least 131) with nothing but a ``model_id``: it is valid for any method."""
    request = pb.ModelInfoRequest(model_id="x" * (num_bytes - 3)).SerializeToString()
    assert len(request) == num_bytes
    return request


async def send(server, method: str, raw: bytes, **options: Any) -> bytes:
    """Send bytes to a method; returns its one answer."""
    if method == "GenerateStream":
        return await server.channel.unary_stream(f"/fmaas.GenerationService/{method}")(raw, **options).read()
    return await server.channel.unary_unary(f"/fmaas.GenerationService/{method}")(raw, **options)


METHODS = ("Generate", "GenerateStream", "Tokenize", "ModelInfo")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("raw", "code", "text"),
    [
        (sized(1001), Code.OUT_OF_RANGE, "Error, message length too large: found 1001 bytes, the limit is: 1000 bytes"),
        (b"\xff\xff\xff", Code.INTERNAL, r"failed to decode Protobuf message: .*fmaas\..*Request.*"),
    ],
    ids=["too-large", "no-message"],
)
def test_invalid_requests_are_refused_and_leave_nothing_behind(method, raw, code, text):
    async def test() -> None:
        async with serving(FakeLink(count_up), max_request_bytes=1000, max_concurrent_requests=1) as server:
            found, details = await failure_of(send(server, method, raw))
            _, metrics = await server.get("/metrics")

            assert found is code
            assert re.fullmatch(text, details)
            assert not [line for line in metrics.splitlines() if line.startswith(("tgi_request_c", "tgi_request_f"))]
            await until(lambda: not server.frontend.state.num_calls)
            assert len((await server.generate("t1", **tokens(1))).responses) == 1

    run(test)


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_the_uncompressed_size_of_a_request_is_limited(compression):
    async def test() -> None:
        async with serving(max_request_bytes=1000) as server:
            assert await send(server, "ModelInfo", sized(1000), compression=compression)
            code, _ = await failure_of(send(server, "ModelInfo", sized(1001), compression=compression))
            assert code is Code.OUT_OF_RANGE

    run(test)


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_far_too_large_request_is_refused_by_the_library_and_the_connection_survives(compression):
    async def test() -> None:
        async with serving(max_request_bytes=1000) as server:
            await server.channel.channel_ready()
            code, _ = await failure_of(send(server, "ModelInfo", sized(8001), compression=compression))

            assert code is Code.RESOURCE_EXHAUSTED
            assert server.channel.get_state() is grpc.ChannelConnectivity.READY
            assert await send(server, "ModelInfo", b"")

    run(test)


# Pings and deadlines


def test_clients_that_ping_every_second_stay_connected_whether_idle_or_with_a_slow_stream():
    async def test() -> None:
        options = [
            PRIVATE,
            ("grpc.keepalive_time_ms", 1000),  # the most frequent pings that the library allows
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
        ]
        async with (
            serving() as server,
            grpc.aio.insecure_channel(server.address, options=options) as idle,
            grpc.aio.insecure_channel(server.address, options=options) as busy,
        ):
            await GenerationServiceStub(idle).ModelInfo(pb.ModelInfoRequest())
            stream = GenerationServiceStub(busy).GenerateStream(single("t1", **tokens(2)))
            await stream.read()
            await until(lambda: server.link.submitted)
            changes = [
                asyncio.create_task(channel.wait_for_state_change(grpc.ChannelConnectivity.READY))
                for channel in (idle, busy)
            ]
            # A server that objects sends GOAWAY after the third ping.
            changed, waiting = await asyncio.wait(changes, timeout=3.7, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()

            assert not changed
            server.link.give(step((1, 2, MAX)))
            assert (await stream.read()).stop_reason == pb.MAX_TOKENS

    run(test)


def test_a_clients_deadline_releases_the_permit_and_cancels_the_sequence():
    async def test() -> None:
        async with serving(max_concurrent_requests=1) as server:
            code, _ = await failure_of(server.stub.Generate(batch("t1"), timeout=0.2))
            await until(lambda: server.link.cancelled == [1])
            await until(lambda: not server.frontend.state.num_calls)

            assert code is Code.DEADLINE_EXCEEDED
            call = asyncio.create_task(server.generate("t2", **tokens(1)))
            await until(lambda: len(server.link.submitted) == 2)
            server.link.give(step((2, 3, MAX)))
            assert (await call).responses[0].text == " t3"

    run(test)


# Correlation ids and logs


def named(name: str) -> dict[str, Any]:
    """Call options with a correlation id."""
    return {"metadata": [("x-correlation-id", name)]}


async def returned_id(call) -> str:
    """The returned correlation id."""
    if isinstance(call, grpc.aio.UnaryStreamCall):
        await read_to_its_end(call)
    [(key, value)] = await call.trailing_metadata()
    assert key == "x-correlation-id"
    return value


async def read_to_its_end(stream) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for _ in stream:
            pass


def lines_about_inputs(caplog) -> list[tuple[str, str, str, int, int]]:
    """The level, request, stop reason, and numbers of input and generated tokens of each completion line."""
    records = [record for record in caplog.records if record.name == "tgis_server.frontend.request_log"]
    return [
        (one.levelname, one.correlation_id, one.stop_reason, one.input_tokens, one.generated_tokens) for one in records
    ]


def test_the_correlation_id_is_returned_with_answers_and_errors():
    async def test() -> None:
        async with serving(FakeLink(count_up)) as server:
            calls = [
                server.stub.Generate(batch("t1"), **named("a")),
                server.stub.Generate(batch("t1", **tokens(10**6)), **named("b")),
                server.stub.GenerateStream(single("t1"), **named("c")),
                server.stub.GenerateStream(pb.SingleGenerationRequest(), **named("d")),
                server.stub.Tokenize(pb.BatchedTokenizeRequest(), **named("e")),
                server.stub.ModelInfo(pb.ModelInfoRequest(), **named("f")),
                server.channel.unary_unary("/fmaas.GenerationService/ModelInfo")(b"\xff", **named("g")),
            ]

            assert [await returned_id(call) for call in calls] == list("abcdefg")

    run(test)


@pytest.mark.parametrize("metadata", [(), [("x-correlation-id", "")]])
def test_a_call_without_a_correlation_id_gets_a_random_one(metadata):
    async def test() -> None:
        async with serving() as server:
            ids = [await returned_id(server.stub.ModelInfo(pb.ModelInfoRequest(), metadata=metadata)) for _ in "ab"]

            assert all(re.fullmatch("[0-9a-f]{16}", name) for name in ids)
            assert ids[0] != ids[1]

    run(test)


def test_a_long_correlation_id_is_truncated():
    async def test() -> None:
        async with serving() as server:
            assert await returned_id(server.stub.ModelInfo(pb.ModelInfoRequest(), **named("x" * 2000))) == "x" * 128

    run(test)


def test_each_input_is_logged_in_one_line_with_counts_and_times_but_no_text(caplog):
    caplog.set_level(logging.INFO, "tgis_server.frontend.request_log")

    async def test() -> None:
        async with serving() as server:
            call = asyncio.create_task(server.stub.Generate(batch("t4 t5", "t6", **tokens(2)), **named("mine")).code())
            await until(lambda: len(server.link.submitted) == 2)
            started = [(one.request_id, 0.0) for one in server.link.submitted]
            server.link.give(step((1, 7, GO_ON), (2, 8, FinishReason.EOS_TOKEN), started=started))
            server.link.give(step((1, 9, MAX)))

            assert await call is Code.OK
            assert lines_about_inputs(caplog) == [
                ("INFO", "mine", "MAX_TOKENS", 2, 2),
                ("INFO", "mine", "EOS_TOKEN", 1, 1),
            ]
            line = vars(caplog.records[-1])
            assert line["kind"] == "batch"
            names = ("validation_s", "queue_s", "inference_s", "time_per_token_s", "total_s")
            assert all(isinstance(line[name], float) for name in names)
            assert "t6" not in str(line)

    run(test)


def test_an_input_cut_short_by_the_context_is_logged_as_a_warning(caplog):
    async def test() -> None:
        async with serving(FakeLink(count_up, max_sequence_length=4), max_new_tokens=3) as server:
            await read_to_its_end(server.stub.GenerateStream(single("t1 t2", **tokens(3)), **named("mine")))

            assert lines_about_inputs(caplog) == [("WARNING", "mine", "TOKEN_LIMIT", 2, 2)]

    run(test)


def test_an_input_whose_client_left_is_logged_as_a_warning(caplog):
    async def test() -> None:
        async with serving() as server:
            stream = server.stub.GenerateStream(single("t1"), **named("mine"))
            await stream.read()
            await until(lambda: server.link.submitted)
            stream.cancel()
            await until(lambda: lines_about_inputs(caplog))

            assert lines_about_inputs(caplog) == [("WARNING", "mine", "CANCELLED", 1, 0)]

    run(test)


def test_a_failed_input_is_logged_as_an_error_and_its_siblings_are_cancelled(caplog):
    async def test() -> None:
        async with serving() as server:
            call = asyncio.create_task(server.stub.Generate(batch("t1", "t2"), **named("mine")).code())
            await until(lambda: len(server.link.submitted) == 2)
            server.link.give(step((1, 9, GO_ON), failures=[RequestFailure(2, "INTERNAL", "bad things")]))

            assert await call is Code.INTERNAL
            await until(lambda: len(lines_about_inputs(caplog)) == 2)
            assert lines_about_inputs(caplog) == [
                ("WARNING", "mine", "CANCELLED", 1, 1),
                ("ERROR", "mine", "ERROR", 1, 0),
            ]
            assert caplog.messages[-1] == "input failed: Request failed during generation: bad things"

    run(test)


def test_the_log_line_of_an_input_that_hit_a_bug_has_the_traceback(caplog):
    async def test() -> None:
        async with serving() as server:
            call = asyncio.create_task(server.stub.Generate(batch("t1"), **named("mine")).code())
            await until(lambda: server.link.submitted)
            server.link.give(step((1, "no token", MAX)))

            assert await call is Code.INTERNAL
            await until(lambda: lines_about_inputs(caplog))
            [record] = [record for record in caplog.records if record.levelname == "ERROR"]
            assert record.correlation_id == "mine"
            assert record.exc_info

    run(test)


def test_a_correlation_id_unsafe_for_logs_is_replaced(caplog):
    """Libraries refuse to send such an id, so the HTTP/2 frames are built by hand."""
    caplog.set_level(logging.INFO, "tgis_server.frontend.request_log")

    async def test() -> None:
        async with serving(FakeLink(count_up)) as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.frontend.state.grpc_port)
            request = batch("t1", **tokens(1)).SerializeToString()
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + http2_frame(4, 0, 0, b""))
            writer.write(http2_frame(1, 4, 1, call_headers("Generate", "x-correlation-id", "grün".encode())))
            writer.write(http2_frame(0, 1, 1, b"\x00" + len(request).to_bytes(4) + request))
            await until(lambda: lines_about_inputs(caplog))
            writer.close()
            await writer.wait_closed()

            assert lines_about_inputs(caplog) == [("INFO", "<non-ascii>", "MAX_TOKENS", 1, 1)]

    run(test)


def http2_frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream_id.to_bytes(4) + payload


def call_headers(method: str, name: str, value: bytes) -> bytes:
    """A header block without compression."""
    headers = {
        ":method": b"POST",
        ":scheme": b"http",
        ":path": f"/fmaas.GenerationService/{method}".encode(),
        ":authority": b"localhost",
        "te": b"trailers",
        "content-type": b"application/grpc",
        name: value,
    }
    return b"".join(b"\x00" + text(key.encode()) + text(value) for key, value in headers.items())


def text(value: bytes) -> bytes:
    return bytes([len(value)]) + value
