"""A scripted HTTP/2 peer without sockets: what a connection wrote, as frames, and bytes for it to read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hpack import Decoder, Encoder

from tgis_cli.bench.http2.client import ClientConnection, ClientStream, make_block
from tgis_cli.bench.http2.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PREFACE,
    make_frame,
    make_settings,
    unpack_head,
)

BLOCK = make_block("/x.X/Y", "localhost:1", is_tls=False)
HEAD = ((":status", "200"), ("content-type", "application/grpc"))
TAIL = (("grpc-status", "0"),)


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream_id: int
    payload: bytes


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.is_closed = True


class Call(ClientStream):
    """Keeps what happens to it."""

    __slots__ = ("end", "messages", "sent")

    def __init__(self, body: bytes = b"question") -> None:
        super().__init__(BLOCK, body)
        self.messages: list[bytes] = []
        self.end: tuple[int, str] | None = None
        self.sent = 0

    def on_sent(self, at: float) -> None:
        self.sent += 1

    def on_message(self, message: bytes, at: float) -> None:
        self.messages.append(message)

    def on_end(self, status: int, text: str, at: float) -> None:
        assert self.end is None, "it has ended twice"
        self.end = (status, text)


class Owner:
    def __init__(self) -> None:
        self.lost: list[str] = []

    def on_ready(self, connection: ClientConnection) -> None:
        pass

    def on_room(self) -> None:
        pass

    def on_lost(self, connection: ClientConnection, reason: str) -> None:
        self.lost.append(reason)


class Script:
    """A client's connection, and the server's side of it."""

    def __init__(self, settings: dict[int, int] | None = None) -> None:
        self.owner, self.wire = Owner(), Wire()
        self.connection = ClientConnection(self.owner)
        self.connection.connection_made(self.wire)
        self.encoder, self._decoder = Encoder(), Decoder()
        assert self.wire.written.startswith(PREFACE)
        self.wire.written = self.wire.written.removeprefix(PREFACE)
        self.take()
        self.receive(make_settings(settings or {}))
        self.take()

    def call(self, body: bytes = b"question") -> Call:
        call = Call(body)
        self.connection.start(call)
        return call

    def receive(self, *frames: bytes) -> None:
        self.connection.data_received(b"".join(frames))

    def take(self) -> list[Frame]:
        """What was written since the last time."""
        frames = list(read_frames(self.wire.written))
        self.wire.written = b""
        return frames

    def headers(self, call: Call, headers: tuple[tuple[str, str], ...] = HEAD, *, is_last: bool = False) -> bytes:
        flags = END_HEADERS | (END_STREAM if is_last else 0)
        return make_frame(HEADERS, flags, call.id, self.encoder.encode(headers))

    def tail(self, call: Call, *headers: tuple[str, str]) -> bytes:
        return self.headers(call, headers or TAIL, is_last=True)

    def goaway(self, last_id: int) -> bytes:
        return make_frame(GOAWAY, 0, 0, last_id.to_bytes(4) + (0).to_bytes(4) + b"enough")

    def read_headers(self, frame: Frame) -> dict[str, str]:
        return dict(self._decoder.decode(frame.payload))


def read_frames(data: bytes) -> Iterator[Frame]:
    while data:
        high, low, kind, flags, stream_id = unpack_head(data, 0)
        stop = 9 + (high << 8 | low)
        yield Frame(kind, flags, stream_id, data[9:stop])
        data = data[stop:]


def message(body: bytes) -> bytes:
    return b"\0" + len(body).to_bytes(4) + body


def data(call: Call, payload: bytes, flags: int = 0) -> bytes:
    return make_frame(DATA, flags, call.id, payload)
