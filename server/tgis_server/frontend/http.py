"""The HTTP port: ``/health`` for probes and ``/metrics`` for Prometheus. Answers from memory, never from the device."""

from __future__ import annotations

import logging

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

from tgis_server.config import ServeConfig
from tgis_server.frontend.grpc_server import HEALTH_GRACE_S, bind_error, listen
from tgis_server.frontend.state import ServerState
from tgis_server.frontend.tls import Tls
from tgis_server.metrics import Metrics

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class HttpServer:
    """Plain text also where gRPC has TLS, unless ``--http-tls`` asks for it: probes and scrapers come from inside."""

    def __init__(self, config: ServeConfig, state: ServerState, metrics: Metrics) -> None:
        self._config = config
        self._state = state
        self._metrics = metrics
        app = web.Application()
        app.router.add_get("/health", self._get_health)
        app.router.add_get("/metrics", self._get_metrics)
        logger = logging.getLogger(f"{__name__}.requests")
        logger.addFilter(is_worth_a_line)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            logger=logger,
            shutdown_timeout=HEALTH_GRACE_S,  # a scraper that reads nothing must not hold up the end for a minute
        )

    async def start(self, tls: Tls | None) -> int:
        """Bind and answer; returns the port.

        Raises:
            UsageError: the port cannot be bound.
        """
        host, port = self._config.host, self._config.port
        try:
            server_socket = listen(host, port)
        except OSError as error:
            raise bind_error(error, host, port, "--port", "HTTP") from error
        await self._runner.setup()
        await web.SockSite(self._runner, server_socket, ssl_context=tls.http_context() if tls else None).start()
        bound_port: int = server_socket.getsockname()[1]
        return bound_port

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _get_health(self, request: web.Request) -> web.Response:
        if self._state.is_serving:
            return web.Response()
        return web.json_response({"error": self._state.text}, status=503)

    async def _get_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.to_text(), headers={"Content-Type": METRICS_TYPE})


def is_worth_a_line(record: logging.LogRecord) -> bool:
    """Bytes that are no request are not: the library logs a traceback, and any stranger can send them in masses."""
    return not (record.exc_info and isinstance(record.exc_info[1], BadHttpMessage))
