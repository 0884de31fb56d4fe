"""Calls to one server over one connection, which is replaced when it goes away.

Calls that find no connection, or no room on it, wait here: this is the client's own queue.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from tgis_cli.bench.http2.client import UNAVAILABLE, ClientConnection, ClientStream, make_block
from tgis_cli.clients.tls_files import TlsFiles
from tgis_server.words.addresses import bracket

CONNECT_S = 5.0
FIRST_PAUSE_S, MAX_PAUSE_S = 0.1, 1.0  # between attempts to connect
MAX_FAILURES = 5  # in a row: about three seconds


class NotConnectedError(Exception):
    """Why there is no connection."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to connect. It can be pickled once its files are read."""

    host: str
    port: int
    files: TlsFiles | None  # None: no TLS

    @property
    def authority(self) -> str:
        return (self.files and self.files.name) or f"{bracket(self.host)}:{self.port}"

    def make_block(self, path: str) -> bytes:
        return make_block(path, self.authority, is_tls=self.files is not None)


class Channel:
    """It gives up after several failures in a row. A connection that breaks before it has answered anything counts."""

    def __init__(self, endpoint: Endpoint, on_give_up: Callable[[str], None]) -> None:
        self.num_queued = 0  # calls that found as many in flight as the server allows
        self._endpoint = endpoint
        self._on_give_up = on_give_up
        self._connection: ClientConnection | None = None
        self._waiting: deque[ClientStream] = deque()
        self._opening: ClientConnection | None = None
        self._ready: asyncio.Future[None] | None = None  # of the one that opens
        self._connecting: asyncio.Task[None] | None = None
        self._num_failures = 0
        self._context: ssl.SSLContext | None = None

    async def connect(self) -> None:
        """
        Raises:
            NotConnectedError: it fails; this is not tried again.
        """
        connection = self._opening = ClientConnection(self)
        ready = self._ready = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._open(connection)
                await ready
            if not connection.can_send:
                raise NotConnectedError("the server closed it at once")
        except TimeoutError:
            connection.close()
            raise NotConnectedError(f"no answer within {CONNECT_S:g} s") from None
        except (OSError, UnicodeError) as error:
            raise NotConnectedError(describe(error)) from None
        finally:
            self._ready = self._opening = None
            ready.cancel()
            if not ready.cancelled():
                ready.exception()  # otherwise asyncio complains that nobody has asked for it
        self._connection = connection
        self._send_waiting()

    async def _open(self, connection: ClientConnection) -> None:
        host, files = self._endpoint.host, self._endpoint.files
        if files is not None and self._context is None:
            self._context = files.make_context()
            self._context.set_alpn_protocols(["h2"])
        transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: connection,
            host,
            self._endpoint.port,
            ssl=self._context,
            server_hostname=(files.name or host) if files is not None else None,
        )
        secured = transport.get_extra_info("ssl_object")
        if secured is not None and secured.selected_alpn_protocol() != "h2":
            connection.close()
            raise NotConnectedError("the server does not offer HTTP/2 (ALPN)")

    def start(self, call: ClientStream) -> None:
        """Send the call now, or as soon as a connection has room for it.

        The call ends with UNAVAILABLE if the next attempt to connect fails.
        """
        connection = self._connection
        if connection is not None and connection.can_send:
            if connection.has_room and not self._waiting:
                connection.start(call)
                return
            self.num_queued += 1
        self._waiting.append(call)
        self._send_waiting()

    def cancel(self, call: ClientStream) -> None:
        """Forget the call, which gets no status."""
        if call.id == 0:
            self._waiting.remove(call)
        elif call.connection is not None:
            call.connection.cancel(call)

    def close(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.close()

    # Of the connection

    def on_ready(self, connection: ClientConnection) -> None:
        if connection is self._opening and self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    def on_room(self) -> None:
        if self._waiting:
            self._send_waiting()

    def on_lost(self, connection: ClientConnection, reason: str) -> None:
        if connection is self._opening:  # the one before may end meanwhile
            if self._ready is not None and not self._ready.done():
                self._ready.set_exception(NotConnectedError(reason))
            return
        if connection is not self._connection:
            return
        self._connection = None
        if connection.has_answered:
            self._num_failures = 0
        else:
            self._note_failure(reason)
        self.on_room()

    def _send_waiting(self) -> None:
        connection = self._connection
        if connection is None or not connection.can_send:
            if self._waiting and self._connecting is None:
                self._connecting = asyncio.get_running_loop().create_task(self._reconnect(), name="reconnect")
            return
        while self._waiting and connection.has_room:
            connection.start(self._waiting.popleft())

    async def _reconnect(self) -> None:
        try:
            while self._waiting:
                if self._num_failures:
                    await asyncio.sleep(min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** (self._num_failures - 1)))
                try:
                    await self.connect()
                    return
                except NotConnectedError as error:
                    self._fail_waiting(str(error))
                    self._note_failure(str(error))
        finally:
            self._connecting = None

    def _fail_waiting(self, reason: str) -> None:
        at, failed = monotonic(), self._waiting
        self._waiting = deque()  # callbacks may add others
        for call in failed:
            call.on_end(UNAVAILABLE, f"no connection: {reason}", at)

    def _note_failure(self, reason: str) -> None:
        self._num_failures += 1
        if self._num_failures >= MAX_FAILURES:
            self._on_give_up(reason)


def describe(error: OSError | UnicodeError) -> str:
    """``Connection refused``, which asyncio hides behind "Connect call failed"."""
    if found := re.search(r"\[Errno (\d+)\] Connect call failed", str(error)):
        return os.strerror(int(found[1]))
    return getattr(error, "strerror", None) or str(error)
