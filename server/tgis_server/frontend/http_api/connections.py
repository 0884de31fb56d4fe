"""Limits on the HTTP port's connections: their number, idle time, request rate and unread answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from tgis_server.frontend.http_api.request_rate import RequestRate, connection_bucket
from tgis_server.frontend.metrics import Metrics
from tgis_server.frontend.transport.patience import Patience

IDLE_TIMEOUT_S = 75.0  # between requests, as in other servers; scrapers return sooner
HEADER_TIMEOUT_S = 10.0  # time for a header, from the connection's start or, for later requests, from the first byte
LINGER_S = 1.0  # time for reading an unwanted body


class HttpConnections:
    """All open connections. A new connection always gets in: the longest silent one is closed to make room.

    Connections still in their TLS handshake are missing here; floods.py, which checks only periodically, counts them.
    """

    def __init__(self, patience: Patience, metrics: Metrics, max_connections: int) -> None:
        self.patience = patience
        self.count_abort = metrics.count_abort
        self.rate = RequestRate()
        self._max_connections = max_connections
        self._open: dict[HttpConnection, None] = {}  # the one silent longest comes first

    def add(self, connection: HttpConnection) -> None:
        if len(self._open) >= self._max_connections:
            next(iter(self._open)).give_up("connections")
        self._open[connection] = None

    def note_activity(self, connection: HttpConnection) -> None:
        if connection in self._open:
            del self._open[connection]
            self._open[connection] = None

    def remove(self, connection: HttpConnection) -> None:
        self._open.pop(connection, None)


class HttpConnection(web.RequestHandler):
    """aiohttp's protocol with time limits for headers, requests and writes; aiohttp limits only idle time."""

    def __init__(self, server: web.Server, connections: HttpConnections, logger: logging.Logger) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # allowed, despite the annotation
            logger=logger,
            keepalive_timeout=IDLE_TIMEOUT_S,
            lingering_time=LINGER_S,
        )
        self._connections = connections
        self._bucket = connection_bucket()
        self._is_new = True  # no request has arrived yet
        self._turn: asyncio.Task[None] | None = None  # set while a request waits to be handled
        self._header_timer: asyncio.TimerHandle | None = None
        self._stop_sending: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connections.add(self)
        self._expect_header()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._connections.remove(self)
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._connections.note_activity(self)
        waiter = self._waiter  # for the next request; data that arrives during a request may be its body
        super().data_received(data)
        if self._messages:
            self._cancel_header_timer()
        elif waiter and not waiter.done() and not self._header_timer:
            self._expect_header()

    def pause_writing(self) -> None:
        """More is waiting for the client than fits in the buffer."""
        super().pause_writing()
        self._watch_sending()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching()

    def force_close(self) -> None:
        """Unsent data must not keep the connection open forever."""
        transport = self.transport
        # Before closing: a TLS transport has no buffer after a second close, which happens if its client has left.
        is_sending = isinstance(transport, asyncio.WriteTransport) and transport.get_write_buffer_size() > 0
        super().force_close()
        if transport and is_sending:
            asyncio.get_running_loop().call_later(self._connections.patience.send_timeout_s, transport.abort)

    def give_up(self, reason: str) -> None:
        """Close at once, even with a request in flight."""
        self._connections.count_abort(reason)
        self._connections.remove(self)
        self._abort()

    async def _handle_request(
        self,
        request: web.BaseRequest,
        start_time: float | None,
        request_handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        """aiohttp calls this for every request, even an invalid one.

        It handles the next request of the connection only after this method has returned.
        """
        if self._is_new:
            # The first request never waits, because each probe opens a connection: among many new connections, a
            # probe's cannot be told apart, and it might be closed while it waits, to make room for the next.
            # Connecting costs more than one request anyway.
            self._is_new = False
            self._bucket.tokens -= 1
        elif not self._connections.rate.take_turn(self._bucket):
            self._turn = asyncio.create_task(self._connections.rate.wait_turn(self._bucket))
            await self._turn  # cancelled with the connection
        return await super()._handle_request(request, start_time, request_handler)

    def _expect_header(self) -> None:
        loop = asyncio.get_running_loop()
        self._header_timer = loop.call_later(HEADER_TIMEOUT_S, self.give_up, "header_timeout")

    def _cancel_header_timer(self) -> None:
        if self._header_timer:
            self._header_timer.cancel()
        self._header_timer = None

    def _watch_sending(self) -> None:
        if isinstance(self.transport, asyncio.WriteTransport) and not self._stop_sending:
            num_bytes = self.transport.get_write_buffer_size()
            self._stop_sending = self._connections.patience.start_sending(self._end, num_bytes)

    def _stop_watching(self) -> None:
        if self._stop_sending:
            self._stop_sending()
        self._stop_sending = None

    def _end(self, status: str, text: str) -> None:
        self._abort()

    def _abort(self) -> None:
        if isinstance(self.transport, asyncio.WriteTransport):
            self.transport.abort()

    def _stop_waiting(self) -> None:
        self._cancel_header_timer()
        self._stop_watching()
        if self._turn:
            self._turn.cancel()
