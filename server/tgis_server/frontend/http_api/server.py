"""The HTTP port: ``/health`` and ``/health/…`` for probes, ``/metrics`` for Prometheus. Answers come from memory."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import get_args

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

from tgis_server.frontend.http_api.connections import HttpConnection, HttpConnections
from tgis_server.frontend.metrics import Metrics, MetricsText
from tgis_server.frontend.state import Probe, ServerState
from tgis_server.frontend.transport.floods import PortWatch
from tgis_server.frontend.transport.patience import Patience
from tgis_server.frontend.transport.tls import Tls
from tgis_server.host.ports import listen
from tgis_server.run import Run

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
HANDSHAKE_TIMEOUT_S = 10.0
STOP_GRACE_S = 0.5  # a scraper that does not read must not delay the shutdown by a minute


class HttpServer:
    """Plaintext unless ``--http-tls`` enables TLS, even if gRPC has TLS: probes and scrapers are internal."""

    def __init__(
        self, run: Run, state: ServerState, metrics: Metrics, patience: Patience, max_connections: int
    ) -> None:
        self._run = run
        self._state = state
        self._metrics_text = MetricsText(metrics.take_snapshot)
        app = web.Application()
        app.router.add_get("/health", self._get_health)
        for probe in get_args(Probe):
            app.router.add_get(f"/health/{probe}", partial(self._get_probe, probe))
        app.router.add_get("/metrics", self._get_metrics)
        self._logger = logging.getLogger(f"{__name__}.requests")
        self._logger.addFilter(should_log)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=STOP_GRACE_S)
        self._connections = HttpConnections(patience, metrics, max_connections)
        # Also counts connections in their TLS handshake, which only the kernel knows about.
        self.port_watch = PortWatch(max_connections, run.config.send_timeout)
        self._listener: asyncio.Server | None = None

    async def start(self, tls: Tls | None) -> int:
        """Bind and serve; return the port.

        Raises:
            UsageError: the port cannot be bound.
        """
        server_socket = listen(self._run.config.host, self._run.config.port, "--port")
        await self._runner.setup()
        context = tls.http_context() if tls else None
        self._listener = await asyncio.get_running_loop().create_server(
            self._connect,
            sock=server_socket,
            ssl=context,
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S if context else None,
        )
        bound_port: int = server_socket.getsockname()[1]
        return bound_port

    async def stop(self) -> None:
        if self._listener:
            self._listener.close()
        await self._runner.cleanup()

    def _connect(self) -> HttpConnection:
        assert self._runner.server is not None, "listening before setup"
        return HttpConnection(self._runner.server, self._connections, self._logger)

    async def _get_health(self, request: web.Request) -> web.Response:
        if failure := self._state.probe_failure("ready"):
            return web.json_response({"error": failure}, status=503)
        return web.Response()

    async def _get_probe(self, probe: Probe, request: web.Request) -> web.Response:
        state = self._state
        if failure := state.probe_failure(probe):
            return web.json_response({"error": failure}, status=503)
        return web.json_response(
            {
                "status": state.serving_state.name.lower(),
                "model": self._run.model_id,
                "mode": self._run.label,
                "grpc_port": state.grpc_port,
                "calls_in_flight": state.num_calls,
                "up_s": round(time.monotonic() - state.start_phases.started_at, 1),
            }
        )

    async def _get_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=await self._metrics_text.get(), headers={"Content-Type": METRICS_TYPE})


def should_log(record: logging.LogRecord) -> bool:
    """Drop records of invalid requests: anyone can send many of them, and the library logs a traceback for each."""
    return not (record.exc_info and isinstance(record.exc_info[1], BadHttpMessage))
