"""``grpc.health.v1``: the server's state for clients that probe over gRPC."""

from __future__ import annotations

from collections.abc import Mapping

import grpc
from grpc.aio import ServicerContext
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

from tgis_server.frontend.grpc_api.end_call import Writer
from tgis_server.frontend.state import Probe, ServerState
from tgis_server.frontend.transport.patience import Patience

MAX_NAME_CHARACTERS = 100  # clients refuse a long status


class StateHealthServicer(HealthServicer):  # type: ignore[misc]  # the library has no types
    """Answers for the given services, each of which names a probe.

    The library's own servicer drops every Watch of a service when one of them ends: the others miss later changes.
    """

    def __init__(self, state: ServerState, services: Mapping[str, Probe], patience: Patience) -> None:
        self._state = state
        self._patience = patience
        self._services = services

    async def Check(  # noqa: N802  the name of the RPC
        self, request: HealthCheckRequest, context: ServicerContext
    ) -> HealthCheckResponse:
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service[:MAX_NAME_CHARACTERS]!r}")
        return HealthCheckResponse(status=self._status_of(request.service))

    async def Watch(  # noqa: N802  the name of the RPC
        self, request: HealthCheckRequest, context: ServicerContext
    ) -> None:
        """Stream the status now and whenever it changes, until the client leaves or the server shuts down."""
        sent, writer = None, Writer(context, self._patience)
        while True:
            change, status = self._state.next_change(), self._status_of(request.service)
            if status != sent:
                with writer.writing():
                    await context.write(HealthCheckResponse(status=status))
                sent = status
            await change.wait()

    def _status_of(self, service: str) -> int:
        if service not in self._services:
            return int(HealthCheckResponse.SERVICE_UNKNOWN)
        failure = self._state.probe_failure(self._services[service])
        return int(HealthCheckResponse.NOT_SERVING if failure else HealthCheckResponse.SERVING)
