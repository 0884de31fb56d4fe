"""The command that tries a server which has just become ready: it works when it is pasted into any shell here."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tgis_cli.clients.address import PORT_VARIABLES, find_address
from tgis_cli.clients.connection import pick_name
from tgis_cli.runs.servers import RunningServer, find_running
from tgis_server.errors import TgisError
from tgis_server.host.proxies import host_of, is_loopback
from tgis_server.options import ServeConfig

TEXT = '"Once upon a time"'
CLIENT_FILES = "--cert client.crt --key client.key"  # as in docs/tls.md: only the user knows where they are


def write_first_request(config: ServeConfig, grpc: str, names: tuple[str, ...], *, is_found: bool) -> str:
    """
    Args:
        grpc: where the server serves, ``HOST:PORT``.
        names: that its certificate is for.
        is_found: whether a client finds this server without an address.
    """
    words = ["tgis generate"]
    if not is_found:
        words += write_address(config, grpc, names)
    if config.tls_client_ca_cert_path is not None:
        words.append(CLIENT_FILES)
    return " ".join([*words, TEXT])


def write_address(config: ServeConfig, grpc: str, names: tuple[str, ...]) -> list[str]:
    if config.tls_cert_path is None:
        return [f"--url {grpc}"]
    host, name = host_of(grpc), None
    if "localhost" in names and is_loopback(host):
        grpc = f"localhost:{grpc.rpartition(':')[2]}"
    else:
        name = pick_name(names, host)
    return [
        f"--url {grpc}",
        f"--ca {shlex.quote(str(config.tls_cert_path.absolute()))}",
        *([f"--tls-server-name {name}"] if name else []),
    ]


def is_found_by_clients(pid: int, grpc_port: int, environ: Mapping[str, str]) -> bool:
    """Whether a client that is given no address finds the server of this launcher, here and in a fresh shell.

    Args:
        grpc_port: as bound; not in the run directory yet.
    """

    def find() -> list[RunningServer]:
        return [replace(each, grpc_port=grpc_port) if each.pid == pid else each for each in find_running()]

    fresh = {name: value for name, value in environ.items() if name not in PORT_VARIABLES.values()}
    try:
        found = [find_address(None, shell, find=find) for shell in (environ, fresh)]
    except (TgisError, OSError):  # no single server is found; or no /proc
        return False
    # In this shell, the environment may name its port; a fresh shell must find the same address without that.
    server = found[1].server
    return server is not None and server.pid == pid and found[0].target == found[1].target


def read_names(certificate: Path | None, key: Path | None) -> tuple[str, ...]:
    """The names that a certificate is for; empty if there is none, or if clients would refuse it."""
    from tgis_server.frontend.transport.certificate import list_names, read_own_certificate

    if certificate is None or key is None:
        return ()
    try:
        return tuple(list_names(read_own_certificate(certificate, key) or {}))
    except (OSError, ValueError):  # replaced at this moment
        return ()
