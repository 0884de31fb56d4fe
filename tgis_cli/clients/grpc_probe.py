"""``tgis health`` over gRPC: one call to ``grpc.health.v1``."""

from __future__ import annotations

import time

from tgis_cli.clients.address import Address
from tgis_cli.clients.connection import own_files
from tgis_cli.clients.tls_files import TlsFiles
from tgis_server.errors import Unavailable

MIN_CALL_S = 0.05  # for the call, if connecting took nearly all the time


def check(address: Address, files: TlsFiles | None, service: str, timeout_s: float) -> str:
    """The status of a service, such as ``SERVING``.

    Raises:
        UsageError: a TLS file cannot be used.
        Unavailable: there is no connection, or no answer in time, or no health service.
    """
    from tgis_cli.clients.grpc_client import open_connected_channel

    deadline = time.monotonic() + timeout_s
    with open_connected_channel(address, own_files(address, files), timeout_s) as channel:
        import grpc
        from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
        from grpc_health.v1.health_pb2_grpc import HealthStub

        try:
            left_s = max(MIN_CALL_S, deadline - time.monotonic())
            reply = HealthStub(channel).Check(HealthCheckRequest(service=service), timeout=left_s)
        except grpc.RpcError as error:
            raise Unavailable(explain(address, service, error, timeout_s)) from None
    return str(HealthCheckResponse.ServingStatus.Name(reply.status))


def explain(address: Address, service: str, error: object, timeout_s: float) -> str:
    status = error.code().name  # type: ignore[attr-defined]
    if status == "DEADLINE_EXCEEDED":
        return f"No answer from {address.target} within {timeout_s:g} s: the server is overloaded or hung."
    if status in ("UNIMPLEMENTED", "NOT_FOUND"):
        return f"The gRPC server at {address.target} has no health service {service}: it is not TGIS."
    return f"The gRPC server at {address.target} does not report its health: {error.details()} ({status})."  # type: ignore[attr-defined]
