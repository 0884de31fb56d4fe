"""Checks of the server's ports, of who can reach them, and of tracing."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from tgis_cli.decide.preflight import explain_own_server, find_own_server, is_held_by_server
from tgis_cli.doctor.verdict import Subject, Verdict, failed, ok, warn
from tgis_cli.machine.container import is_in_container
from tgis_server import failures
from tgis_server.errors import TgisError
from tgis_server.host.ports import ALL_INTERFACES, find_owner, listen
from tgis_server.words.url_credentials import mask_credentials

TRACING_MODULES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc")


def check_ports(subject: Subject) -> Iterator[Verdict]:
    """Whether the ports are free and, if not, which process uses them."""
    config = subject.config
    for port, flag in ((config.grpc_port, "--grpc-port"), (config.port, "--port")):
        try:
            listen(config.host, port, flag).close()
        except TgisError as error:
            if port and (own := find_own_server(port)):
                sentence, _, advice = str(explain_own_server(own, port, flag)).partition(": ")
                yield warn(f"{sentence}.", advice[0].upper() + advice[1:], port=port)
            elif port and is_held_by_server(port):
                yield warn(
                    f"Port {port} is used by a running TGIS server: {find_owner(port)}.",
                    f"Stop it before starting another one, or choose another port with {flag}.",
                    port=port,
                )
            else:
                yield failed(error)
        else:
            yield ok(f"Port {port} ({flag}) is free." if port else f"{flag} 0: any free port.", port=port)


def check_exposure(subject: Subject) -> Iterator[Verdict]:
    """Whether other machines can use the server without TLS; in a container the platform decides who reaches a port."""
    config = subject.config
    is_open = config.host in ALL_INTERFACES and config.tls_cert_path is None
    if is_open and not config.rehearse and not is_in_container(subject.environ, subject.host.root):
        yield warn(
            "The server listens on all interfaces without TLS: anyone who reaches this machine may use it.",
            "Use --host 127.0.0.1, or TLS (--tls-cert-path).",
            host=config.host,
        )


def check_tracing(subject: Subject) -> Iterator[Verdict]:
    """Whether the tracing libraries are installed, if an endpoint is given."""
    endpoint = subject.config.otlp_endpoint
    if not endpoint:
        return
    for module in TRACING_MODULES:
        try:
            is_installed = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # its parent is missing
            is_installed = False
        if not is_installed:
            yield failed(failures.TRACING_NOT_INSTALLED.error(package=module))
            return
    yield ok(f"Traces go to {mask_credentials(endpoint)}.")
