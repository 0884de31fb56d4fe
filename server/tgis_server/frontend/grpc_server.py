"""The public gRPC server and the launcher's socket: ports, reflection, health. Knows no generation."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from tgis_server.config import ServeConfig
from tgis_server.errors import UsageError
from tgis_server.frontend.health import StateHealthServicer
from tgis_server.frontend.receive import library_limit_bytes, make_handlers
from tgis_server.frontend.service import GenerationServicer
from tgis_server.frontend.state import ServerState
from tgis_server.frontend.tls import Tls
from tgis_server.wire import generation_pb2, shard_pb2
from tgis_server.wire.shard_pb2_grpc import FrontendServicer, add_FrontendServicer_to_server

GENERATION = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
HEALTH_GRACE_S = 0.5  # a probe in flight is answered before its server ends

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
        probes = StateHealthServicer(state, ("", GENERATION.full_name))
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
            raise explain_bind_failure(config.host, config.grpc_port, "--grpc-port", "gRPC") from error
        await self._server.start()
        return port

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, give those in flight ``grace_s`` seconds, then end."""
        await self._server.stop(grace_s)


class LauncherServer(FrontendServicer):
    """Tells the launcher how the front-end is, on a socket that only this user can open."""

    def __init__(self, path: Path, state: ServerState) -> None:
        self._path = path
        self._state = state
        self._server = grpc.aio.server()
        add_FrontendServicer_to_server(self, self._server)

    async def start(self) -> None:
        self._server.add_insecure_port(f"unix:{self._path}")
        self._path.chmod(0o600)
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(HEALTH_GRACE_S)

    async def Health(  # noqa: N802  the name of the RPC
        self, request: shard_pb2.HealthRequest, context: object
    ) -> shard_pb2.FrontendHealth:
        state = self._state
        return shard_pb2.FrontendHealth(
            state=shard_pb2.FrontendHealth.State.Name(state.phase.value),
            text=state.text,
            grpc_port=state.grpc_port,
            http_port=state.http_port,
            in_flight=state.num_calls,
            phases=state.phases.encode(),
        )


def explain_bind_failure(host: str, port: int, flag: str, what: str) -> UsageError:
    """Why a port cannot be bound, found by binding it once more: libraries do not tell."""
    try:
        listen(host, port).close()
    except OSError as error:
        return bind_error(error, host, port, flag, what)
    return UsageError(f"{what} cannot listen on {host}:{port}. Check the address and the TLS files.")


def bind_error(error: OSError, host: str, port: int, flag: str, what: str) -> UsageError:
    """A bind error as a sentence that says what to do."""
    if error.errno == errno.EADDRINUSE:
        return UsageError(
            f"{what} port {port} is in use: another server listens on it. Stop that one or choose another with {flag}."
        )
    if error.errno == errno.EACCES:
        return UsageError(
            f"{what} port {port} needs privileges that this user lacks: choose one above 1023 with {flag}."
        )
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
    return UsageError(f"{what} cannot listen on {host}:{port}: {reason}. Check --host and {flag}.")


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket."""
    if ":" not in host:
        return socket.create_server((host, port))
    both = host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=both)
