"""Clients that speak HTTP/2 and HTTP/1.1 frame by frame, in ways that no library would."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
ACK = END_STREAM = 1
END_HEADERS = 4
CANCEL = struct.pack(">I", 8)
INITIAL_WINDOW_SIZE = 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def headers(method: str) -> bytes:
    """The header block of a call, without compression."""

    def literal(name: bytes, value: bytes) -> bytes:
        return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value

    fields = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": method.encode(),
        b":authority": b"attacker",
        b"content-type": b"application/grpc",
        b"te": b"trailers",
    }
    return b"".join(literal(*field) for field in fields.items())


def message(body: bytes) -> bytes:
    """A gRPC message, preceded by its length."""
    return b"\0" + struct.pack(">I", len(body)) + body


def call(stream: int, method: str, body: bytes) -> bytes:
    """A whole call in frames of the smallest size that every server takes."""
    data = message(body)
    parts = [data[at : at + (16 << 10)] for at in range(0, len(data), 16 << 10)]
    frames = [frame(DATA, END_STREAM * (part is parts[-1]), stream, part) for part in parts]
    return frame(HEADERS, END_HEADERS, stream, headers(method)) + b"".join(frames)


def opened_and_reset(stream: int, block: bytes) -> bytes:
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, block) + frame(RST_STREAM, 0, stream, CANCEL)


class Attacker:
    """A connection whose incoming bytes are read and dropped, or not read at all."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.said = b""  # the last bytes that the server sent
        self.is_closed = False
        self._listening: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def connect(cls, port: int, *, window: int | None = None, greets: bool = True) -> AsyncIterator[Attacker]:
        """
        Args:
            window: the number of bytes of each answer that the server may send before it is granted more.
            greets: whether to begin with the preface and SETTINGS, as HTTP/2 clients do.
        """
        attacker = cls(*await asyncio.open_connection("127.0.0.1", port))
        if greets:
            size = b"" if window is None else struct.pack(">HI", INITIAL_WINDOW_SIZE, window)
            await attacker.send(PREFACE + frame(SETTINGS, 0, 0, size))
        try:
            yield attacker
        finally:
            attacker.close()

    def listen(self) -> None:
        """Read everything that arrives from now on."""
        self._listening = asyncio.create_task(self._listen())

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def flood(self, data: bytes, seconds: float) -> int:
        """Send the same bytes until the time is over or the server hangs up; returns how often."""
        num_sent, clock = 0, asyncio.get_running_loop().time
        until = clock() + seconds
        with contextlib.suppress(OSError):
            while clock() < until and not self.is_closed:
                await self.send(data)
                num_sent += 1
                await asyncio.sleep(0.001)
        return num_sent

    async def reset_calls(self, method: str, seconds: float) -> int:
        """Open calls without bodies and reset them at once; returns how many."""
        block, number, clock = headers(method), 1, asyncio.get_running_loop().time
        until = clock() + seconds
        with contextlib.suppress(OSError):
            while clock() < until and not self.is_closed:
                streams = range(number, number + 100, 2)
                opened = (frame(HEADERS, END_HEADERS | END_STREAM, one, block) for one in streams)
                await self.send(
                    b"".join(
                        part + frame(RST_STREAM, 0, one, CANCEL) for part, one in zip(opened, streams, strict=True)
                    )
                )
                number += 100
                await asyncio.sleep(0.001)
        return number // 2

    async def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while data := await self._reader.read(1 << 16):
                self.said = (self.said + data)[-4096:]
        self.is_closed = True

    def close(self) -> None:
        if self._listening:
            self._listening.cancel()
        self._writer.transport.abort()
