"""The server of a load: one that runs already, or one that is started for it and stopped again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from tgis_cli.clients.address import HTTP, Address, parse_url
from tgis_cli.clients.connection import Connection
from tgis_cli.clients.grpc_client import Client
from tgis_cli.clients.metrics_source import MetricsSource, find_local_server, find_source
from tgis_cli.clients.tls_files import TlsFiles
from tgis_cli.model_files import DEMO
from tgis_cli.own_server.launch_line import read_launch_line
from tgis_cli.own_server.own_server import OwnServer
from tgis_cli.runs.servers import RUN_FILE, RunningServer
from tgis_server.errors import TgisError, UsageError

EXAMPLE = "http://127.0.0.1:3000"
# Of a server on this machine: what its speed may depend on.
RUN_FACTS = (
    *("engine", "device", "dtype", "num_shard", "max_sequence_length", "max_batch_tokens", "tokenization_workers"),
    *("shard_threads", "shard_cpus", "gpus", "label"),
)
CONFIG_FACTS = (
    *("quantize", "kv_cache_memory", "kv_block_size", "prefix_cache", "max_concurrent_requests", "max_batch_size"),
    *("target_inter_token_latency", "rehearse", "rehearse_step_ms", "rehearse_attention_ns", "rehearse_kv_blocks"),
)


@dataclass(frozen=True, slots=True)
class Target:
    """A server that answers."""

    client: Client
    files: TlsFiles | None  # of gRPC; None: plain text
    server: RunningServer | None  # what is known of it, if it is this user's
    metrics: MetricsSource | None
    note: str = ""  # why there are no metrics

    @property
    def address(self) -> Address:
        return self.client.address


@contextlib.contextmanager
def open_target(
    connection: Connection,
    launch: str | None,
    metrics_url: str | None,
    environ: Mapping[str, str],
    err: TextIO,
    *,
    python: str | None = None,
) -> Iterator[Target]:
    """Connect to a server; with ``launch``, one that is started before the block and stopped after it.

    Args:
        python: interpreter of the installation that is launched, if not this one.

    Raises:
        UsageError: the options cannot be used, or do not say which server.
        TgisError: there is no server, or it could not start.
    """
    given = parse_metrics_url(metrics_url) if metrics_url is not None else None
    if launch is None:
        with Client.connect(connection) as client:
            yield make_target(client, connection, given, environ)
        return
    if connection != Connection():
        raise UsageError("Give either --launch or the options of a running server, such as --url, not both.")
    options = dataclasses.replace(read_launch_line(launch, "--launch"), python=python)
    model = str(options.flags.get("model_name") or DEMO)
    title = "the demo model" if model == DEMO else model
    with OwnServer(title, options, environ, err, shows_log=False).connect() as client:
        yield make_target(client, Connection(server=client.address.server), given, environ)


def make_target(
    client: Client, connection: Connection, metrics_url: Address | None, environ: Mapping[str, str]
) -> Target:
    address = client.address
    server = find_local_server(address)
    source, note = None, ""
    try:
        if metrics_url is not None:
            source = MetricsSource(metrics_url, connection.tls_files(metrics_url))
        else:
            source = find_source(connection, environ)
        source.scrape()
    except TgisError as error:
        if metrics_url is not None:
            raise
        hint = " Give their address with --metrics-url URL." if connection.url_flag == "--url" else ""
        source, note = None, f"The server's metrics are missing: {error}{hint}"
    return Target(client, connection.tls_files(address), server, source, note)


def parse_metrics_url(text: str) -> Address:
    """
    Raises:
        UsageError: it is not the URL of an HTTP port. A path to the metrics is left out.
    """
    address = parse_url(text.removesuffix("/metrics"), "--metrics-url", HTTP, with_tls=False, bare=HTTP)
    if address.protocol != HTTP:
        raise UsageError(
            f"--metrics-url {text} is a gRPC address: metrics are served on an HTTP port, such as {EXAMPLE}."
        )
    return address


def describe_model(target: Target) -> dict[str, Any]:
    """Facts about the model, for the fingerprint."""
    info = target.client.model_info()
    return {
        "name": target.server.model if target.server is not None else None,
        "max_sequence_length": info.max_sequence_length,
        "max_new_tokens": info.max_new_tokens,
    }


def describe_server(target: Target) -> dict[str, Any]:
    """The options of the server, as far as its files say; its address alone if it is elsewhere."""
    facts: dict[str, Any] = {"address": str(target.address)}
    if target.server is None or target.server.is_obscure:
        return facts
    with contextlib.suppress(OSError, ValueError):
        run = json.loads((target.server.door / RUN_FILE).read_text())
        facts |= {name: run.get(name) for name in RUN_FACTS}
        facts |= {name: run["config"].get(name) for name in CONFIG_FACTS}
    return facts
