"""The public gRPC server: port, reflection, health. Knows no generation."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import get_args

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from tgis_server import failures
from tgis_server.frontend.grpc_api.health import StateHealthServicer
from tgis_server.frontend.grpc_api.requests import ServicePolicy, library_limit_bytes, make_handlers
from tgis_server.frontend.grpc_api.service import GenerationServicer
from tgis_server.frontend.state import Probe, ServerState
from tgis_server.frontend.transport.floods import WINDOW_BYTES, Accounts, hang_up_all
from tgis_server.frontend.transport.patience import Patience
from tgis_server.frontend.transport.tls import Tls
from tgis_server.host.ports import listen
from tgis_server.options import ServeConfig
from tgis_server.wire import generation_pb2

GENERATION = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]

GOODBYE_S = 0.2  # from the end of the calls to the end of their connections
SPARE_STREAMS = 200  # of a connection: calls beyond all permits are refused in words, and probes have room
MIN_STREAMS = 1000

SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),  # two servers on one port would share its calls without a word
    ("grpc.max_send_message_length", -1),
    # A stream may send so many bytes before anybody asks for its message. By default gRPC allows 4 MiB.
    ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
    ("grpc.http2.bdp_probe", 0),
    # Clients may ping as often as they like, with or without a call: an idle channel must survive. What is a flood
    # is decided in connections.py: the library only half closes a connection with too many pings, and keeps it.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 100),
    # For TLS, the preface and the first SETTINGS together.
    ("grpc.server_handshake_timeout_ms", 20_000),
)


def num_streams(max_concurrent_requests: int) -> int:
    """How many calls may be open on a connection."""
    return max(MIN_STREAMS, max_concurrent_requests + SPARE_STREAMS)


def stream_options(max_concurrent_requests: int) -> tuple[tuple[str, int], ...]:
    """How many calls may be open on a connection, and how many may wait to be taken from the library.

    Clients that know HTTP/2 queue what is beyond the first by themselves. Of the second the library refuses a part, at
    random, from the lower limit on. Both are paid for in memory, 10 KiB each, and by the next client, who waits.
    """
    most = num_streams(max_concurrent_requests)
    return (
        ("grpc.max_concurrent_streams", most),
        # Streams whose calls are over and not freed yet: beyond that the library refuses what it has allowed.
        ("grpc.http2.max_deallocating_streams", most),
        ("grpc.server.max_pending_requests", 8 * most),
        ("grpc.server.max_pending_requests_hard_limit", 10 * most),
    )


class PublicServer:
    """``fmaas.GenerationService`` with health and reflection, on the configured port."""

    def __init__(
        self,
        config: ServeConfig,
        state: ServerState,
        servicer: GenerationServicer,
        patience: Patience,
        max_connections: int,
    ) -> None:
        self._config = config
        self._port = 0
        logging.getLogger("grpc._cython.cygrpc").addFilter(should_log)
        max_bytes = config.max_request_bytes
        library_limit = ("grpc.max_receive_message_length", library_limit_bytes(max_bytes))
        streams = stream_options(config.max_concurrent_requests)
        connections = ("grpc.max_allowed_incoming_connections", max_connections)
        self._server = grpc.aio.server(options=(*SERVER_OPTIONS, *streams, connections, library_limit))
        probes = StateHealthServicer(
            state,
            {"": "ready", GENERATION.full_name: "ready", **{probe: probe for probe in get_args(Probe)}},
            patience,
        )
        self.accounts = Accounts()  # of what comes in
        probing = ServicePolicy(patience, max_bytes, accounts=self.accounts)
        generating = replace(probing, refuse=servicer.refuse, get_refusal=servicer.get_refusal, limits_memory=True)
        names = [service.full_name for service in (GENERATION, HEALTH, REFLECTION)]
        self._server.add_generic_rpc_handlers(
            [
                make_handlers(GENERATION, servicer, generating),
                make_handlers(HEALTH, probes, probing),
                make_handlers(REFLECTION, reflection.aio.ReflectionServicer(names), probing),
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
        self._port = port
        return port

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, give those in flight ``grace_s`` seconds, then end."""
        stopping = asyncio.create_task(self._server.stop(grace_s), name="stop-grpc")
        done, _ = await asyncio.wait({stopping}, timeout=grace_s + GOODBYE_S)
        if not done:  # a client that does not read does not take a GOAWAY either, and the library waits for it
            await asyncio.to_thread(hang_up_all, self._port)
        await stopping


def should_log(record: logging.LogRecord) -> bool:
    """What a client does is not: leave before its answer, or send metadata that is no text. Any client can do so in
    masses, and the library logs a traceback each time."""
    return not (record.exc_info and isinstance(record.exc_info[1], (grpc.aio.InternalError, UnicodeDecodeError)))
