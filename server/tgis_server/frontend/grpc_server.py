"""The public gRPC server: port, reflection, health. Knows no generation."""

from __future__ import annotations

from typing import get_args

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from tgis_server import failures
from tgis_server.config import ServeConfig
from tgis_server.frontend.health import StateHealthServicer
from tgis_server.frontend.receive import library_limit_bytes, make_handlers
from tgis_server.frontend.service import GenerationServicer
from tgis_server.frontend.state import Probe, ServerState
from tgis_server.frontend.tls import Tls
from tgis_server.ports import listen
from tgis_server.wire import generation_pb2

GENERATION = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]

SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),  # two servers on one port would share its calls without a word
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", 100_000),
    # Calls that wait to be taken from the library. Its defaults (1000, 3000) cancel a part of a burst, at random.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    # Clients may ping as often as they like, with or without a call: an idle channel must survive.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 100),
)


class PublicServer:
    """``fmaas.GenerationService`` with health and reflection, on the configured port."""

    def __init__(self, config: ServeConfig, state: ServerState, servicer: GenerationServicer) -> None:
        self._config = config
        max_bytes = config.max_request_bytes
        library_limit = ("grpc.max_receive_message_length", library_limit_bytes(max_bytes))
        self._server = grpc.aio.server(options=(*SERVER_OPTIONS, library_limit))
        probes = StateHealthServicer(
            state, {"": "ready", GENERATION.full_name: "ready", **{probe: probe for probe in get_args(Probe)}}
        )
        names = [service.full_name for service in (GENERATION, HEALTH, REFLECTION)]
        self._server.add_generic_rpc_handlers(
            [
                make_handlers(GENERATION, servicer, max_bytes, servicer.refuse),
                make_handlers(HEALTH, probes, max_bytes),
                make_handlers(REFLECTION, reflection.aio.ReflectionServicer(names), max_bytes),
            ]
        )

    async def start(self, tls: Tls | None) -> int:
        """Bind and answer; returns the port.

        Raises:
            UsageError: the port cannot be bound.
        """
        config = self._config
        address = f"[{config.host}]:{config.grpc_port}" if ":" in config.host else f"{config.host}:{config.grpc_port}"
        try:
            if tls:
                port: int = self._server.add_secure_port(address, tls.grpc_credentials())
            else:
                port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            listen(config.host, config.grpc_port, "--grpc-port").close()  # the library does not tell why: this does
            reason = "gRPC gives no reason"
            raise failures.CANNOT_LISTEN.error(port=config.grpc_port, flag="--grpc-port", reason=reason) from error
        await self._server.start()
        return port

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, give those in flight ``grace_s`` seconds, then end."""
        await self._server.stop(grace_s)
