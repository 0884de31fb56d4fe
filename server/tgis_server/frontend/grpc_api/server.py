"""The public gRPC server: port, options, reflection and health."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import get_args

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tgis_server import failures
from tgis_server.frontend.grpc_api.health import StateHealthServicer
from tgis_server.frontend.grpc_api.reflection import make_reflection
from tgis_server.frontend.grpc_api.requests import ServicePolicy, library_limit_bytes, make_handlers
from tgis_server.frontend.grpc_api.service import GenerationServicer
from tgis_server.frontend.state import Probe, ServerState
from tgis_server.frontend.transport.floods import WINDOW_BYTES, Accounts, PortWatch, hang_up_all
from tgis_server.frontend.transport.patience import Patience
from tgis_server.frontend.transport.tls import Tls
from tgis_server.host.ports import listen
from tgis_server.options import ServeConfig
from tgis_server.wire import generation_pb2

GENERATION = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]

CLOSE_GRACE_S = 0.2  # time from the end of the calls to the end of their connections
SPARE_STREAMS = 200  # per connection: for probes, and for calls without permits, which are refused with a status
MIN_STREAMS = 1000

SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),  # two servers on one port would silently share its calls
    ("grpc.max_send_message_length", -1),
    # The bytes that a stream may send before its message is read. gRPC's default is 4 MiB.
    ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
    ("grpc.http2.bdp_probe", 0),
    # Clients may ping as often as they like, even without a call: an idle channel must survive. floods.py decides what
    # is a flood, because the library only half-closes a connection with too many pings.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 100),
    # Includes TLS, the preface and the first SETTINGS.
    ("grpc.server_handshake_timeout_ms", 20_000),
)


def num_streams(max_concurrent_requests: int) -> int:
    """The number of calls that may be open on a connection."""
    return max(MIN_STREAMS, max_concurrent_requests + SPARE_STREAMS)


def stream_options(max_concurrent_requests: int) -> tuple[tuple[str, int], ...]:
    """Limits on the calls that are open on a connection, and on those that wait in the library to be accepted.

    HTTP/2 clients queue calls beyond the first limit. Between the two limits on waiting calls, the library refuses
    calls at random. Each call costs 10 KiB of memory, and waiting calls delay the next client.
    """
    most = num_streams(max_concurrent_requests)
    return (
        ("grpc.max_concurrent_streams", most),
        # Streams of finished calls that are not freed yet: beyond this, the library refuses calls that it has allowed.
        ("grpc.http2.max_deallocating_streams", most),
        ("grpc.server.max_pending_requests", 8 * most),
        ("grpc.server.max_pending_requests_hard_limit", 10 * most),
    )


def age_options(max_age_s: float) -> tuple[tuple[str, int], ...]:
    """Send GOAWAY to connections of this age, and let their calls finish; 0: never.

    This is the only GOAWAY after which the library still accepts the calls that were on their way: those that arrive
    after ``stop`` end without a status.
    """
    return (("grpc.max_connection_age_ms", max(1, round(max_age_s * 1000))),) if max_age_s else ()


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
        ages = age_options(config.max_connection_age)
        self._server = grpc.aio.server(options=(*SERVER_OPTIONS, *streams, *ages, connections, library_limit))
        probes = StateHealthServicer(
            state,
            {"": "ready", GENERATION.full_name: "ready", **{probe: probe for probe in get_args(Probe)}},
            patience,
        )
        self.accounts = Accounts()  # account for received bytes
        self.port_watch = PortWatch(
            max_connections * 9 // 10,  # the longest silent are closed before the library would refuse new ones
            config.send_timeout,
            library_limit_bytes(max_bytes),
            2 * num_streams(config.max_concurrent_requests),
        )
        probing = ServicePolicy(patience, max_bytes, accounts=self.accounts)
        generating = replace(probing, refuse=servicer.refuse, get_refusal=servicer.get_refusal, limits_memory=True)
        names = [service.full_name for service in (GENERATION, HEALTH, REFLECTION)]
        self._server.add_generic_rpc_handlers(
            [
                make_handlers(GENERATION, servicer, generating),
                make_handlers(HEALTH, probes, probing),
                make_handlers(REFLECTION, make_reflection(names), probing),
            ]
        )

    async def start(self, tls: Tls | None) -> int:
        """Bind and serve; return the port.

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
            listen(config.host, config.grpc_port, "--grpc-port").close()  # unlike gRPC, this says why
            reason = "gRPC gives no reason"
            raise failures.CANNOT_LISTEN.error(port=config.grpc_port, flag="--grpc-port", reason=reason) from error
        await self._server.start()
        self._port = port
        return port

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, give those in flight ``grace_s`` seconds, then stop."""
        stopping = asyncio.create_task(self._server.stop(grace_s), name="stop-grpc")
        done, _ = await asyncio.wait({stopping}, timeout=grace_s + CLOSE_GRACE_S)
        if not done:  # the library waits until clients take GOAWAY, and one that does not read never takes it
            await asyncio.to_thread(hang_up_all, self._port)
        await stopping


def should_log(record: logging.LogRecord) -> bool:
    """Drop records that any client can cause in large numbers, each with a traceback from the library.

    Clients cause them by leaving before the answer or sending metadata that is not text.
    """
    return not (record.exc_info and isinstance(record.exc_info[1], (grpc.aio.InternalError, UnicodeDecodeError)))
