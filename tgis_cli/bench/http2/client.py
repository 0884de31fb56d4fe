"""The client's side of a connection: calls, and the gRPC status with which each ends.

Statuses follow gRPC's documents "gRPC over HTTP2" and "HTTP to gRPC Status Code Mapping".
"""

from __future__ import annotations

from time import monotonic
from typing import Protocol, cast
from urllib.parse import unquote_to_bytes

from tgis_cli.bench.http2.connection import Connection, Header, Stream
from tgis_cli.bench.http2.frames import (
    CANCEL,
    END_HEADERS,
    HEADERS,
    MAX_ID,
    NO_TABLE,
    PREFACE,
    REFUSED_STREAM,
    encode_headers,
    make_frame,
    make_message,
    name_error,
)

OK, CANCELLED, UNKNOWN = range(3)
PERMISSION_DENIED, RESOURCE_EXHAUSTED = 7, 8
UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 12, 13, 14
UNAUTHENTICATED = 16
NUM_STATUSES = 17

STATUS_OF_HTTP = {
    400: INTERNAL,
    401: UNAUTHENTICATED,
    403: PERMISSION_DENIED,
    404: UNIMPLEMENTED,
    429: UNAVAILABLE,
    502: UNAVAILABLE,
    503: UNAVAILABLE,
    504: UNAVAILABLE,
}
STATUS_OF_RESET = {REFUSED_STREAM: UNAVAILABLE, CANCEL: CANCELLED, 11: RESOURCE_EXHAUSTED, 12: PERMISSION_DENIED}


class ClientStream(Stream):
    """A call. Subclasses say what to do with what arrives."""

    __slots__ = ("block", "body", "connection", "http_status")

    def __init__(self, block: bytes, body: bytes) -> None:
        """
        Args:
            block: from ``make_block``.
            body: one message, serialized.
        """
        super().__init__()
        self.block = block
        self.body = make_message(body)
        self.http_status = 0  # as long as there is no answer
        self.connection: ClientConnection | None = None  # while it is in flight

    def on_sent(self, at: float) -> None:
        raise NotImplementedError

    def on_end(self, status: int, text: str, at: float) -> None:
        """
        Args:
            status: a gRPC code.
            text: the server's explanation, or ours.
        """
        raise NotImplementedError


class Owner(Protocol):
    """Who sends calls on connections."""

    def on_ready(self, connection: ClientConnection) -> None: ...

    def on_room(self) -> None:
        """Another call can be sent."""

    def on_lost(self, connection: ClientConnection, reason: str) -> None:
        """It is closed, and its calls have ended."""


class ClientConnection(Connection):
    preface = PREFACE

    def __init__(self, owner: Owner) -> None:
        super().__init__()
        self.has_answered = False  # a call, with anything
        self._owner = owner
        self._next_id = 1

    @property
    def can_send(self) -> bool:
        return self.has_settings and not self.is_closing

    @property
    def has_room(self) -> bool:
        return len(self.streams) < self.max_streams and not self.is_closing

    def start(self, call: ClientStream) -> None:
        """Send a call; there must be room."""
        block = call.block if self._next_id > 1 else NO_TABLE + call.block
        self.add(call, self._next_id)
        self._next_id += 2
        if self._next_id > MAX_ID:
            self.is_closing = True
        call.connection = self
        body, call.body = call.body, b""
        call.on_sent(monotonic())
        self.send(call, make_frame(HEADERS, END_HEADERS, call.id, block), body)

    def cancel(self, call: ClientStream) -> None:
        """Tell the server; the call gets no status."""
        self.reset(call, CANCEL)
        call.connection = None
        self._close_if_idle()

    # Events

    def on_settings(self) -> None:
        self._owner.on_ready(self)

    def on_headers(self, stream_id: int, headers: list[Header], *, is_last: bool, at: float) -> None:
        call = cast(ClientStream | None, self.streams.get(stream_id))
        if call is None:
            return
        facts = dict(headers)
        http_status = to_number(facts.get(b":status", b"")) or call.http_status
        if 100 <= http_status < 200:
            return  # only informs; the answer follows
        call.http_status = http_status
        if is_last or http_status != 200:
            status, text = read_status(facts, http_status)
            if not is_last:
                self.reset(call, CANCEL)
            self._end(call, status, text, at)

    def on_data_end(self, stream: Stream, at: float) -> None:
        self._end(stream, INTERNAL, "the server ended the answer without a status", at)

    def on_reset(self, stream: Stream, code: int, at: float) -> None:
        self._end(stream, STATUS_OF_RESET.get(code, INTERNAL), f"the server reset the request: {name_error(code)}", at)

    def on_bad_message(self, stream: Stream, reason: str, at: float) -> None:
        self._end(stream, INTERNAL, reason, at)

    def on_goaway(self, last_id: int, code: int, text: str, at: float) -> None:
        reason = f"the server closes the connection: {text or name_error(code)}"
        for stream in [each for each in self.streams.values() if each.id > last_id]:
            self._end(stream, UNAVAILABLE, reason, at)
        self._owner.on_room()  # on another connection
        self._close_if_idle()

    def connection_lost(self, error: Exception | None) -> None:
        at = monotonic()
        self.is_closing = True
        reason = str(self.broken or error or "the server closed it")
        for stream in list(self.streams.values()):
            self._end(stream, UNAVAILABLE, f"the connection broke: {reason}", at)
        self._owner.on_lost(self, reason)

    def _end(self, stream: Stream, status: int, text: str, at: float) -> None:
        call = cast(ClientStream, stream)
        self.has_answered = self.has_answered or call.http_status > 0
        self.forget(call.id)
        call.connection = None
        call.on_end(status, text, at)
        self._owner.on_room()
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self.is_closing and not self.streams:
            self.close()


def make_block(path: str, authority: str, *, is_tls: bool) -> bytes:
    """The header block of all calls of a method."""
    return encode_headers(
        (":method", "POST"),
        (":scheme", "https" if is_tls else "http"),
        (":path", path),
        (":authority", authority),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "tgis-bench"),
    )


def read_status(headers: dict[bytes, bytes], http_status: int) -> tuple[int, str]:
    """The gRPC code and text with which a call ends."""
    text = headers.get(b"grpc-status")
    if text is None:
        if http_status == 200:
            return INTERNAL, "the server ended the answer without a status"
        return STATUS_OF_HTTP.get(http_status, UNKNOWN), f"HTTP status {http_status}"
    status = to_number(text)
    message = unquote_to_bytes(headers.get(b"grpc-message", b"")).decode("utf-8", "replace")
    return (status if 0 <= status < NUM_STATUSES else UNKNOWN), message


def to_number(digits: bytes) -> int:
    """0 for an empty string, -1 for anything that is not a number."""
    return int(digits or b"0") if digits.isdigit() or not digits else -1
