"""One HTTP/2 connection, as both sides have it: reading frames, flow control, header blocks.

The client's and the null server's connections derive from it. What arrives is handed over by calling methods, not
through coroutines, because those would cost more than all of the parsing.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from time import monotonic
from typing import cast

from hpack import Decoder
from hpack.exceptions import HPACKError

from tgis_cli.bench.http2.frames import (
    ACK,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    FIRST_WINDOW,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HAS_PRIORITY,
    HEAD_BYTES,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    INTERNAL_ERROR,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME,
    MAX_FRAME_SIZE,
    MAX_ID,
    MAX_WINDOW,
    PADDED,
    PING,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    make_frame,
    make_reset,
    make_settings,
    make_window_update,
    read_settings,
    unpack_head,
)

RENEW_CONNECTION_BYTES = 1 << 20  # received since the last grant; far below the window, so that it never runs out
RENEW_STREAM_BYTES = 1 << 30
MAX_BLOCK_BYTES = 1 << 18  # of a header block in parts
GIVE_UP_MS = 20_000  # for the peer to acknowledge what was sent: a vanished machine sends no reset

Header = tuple[bytes, bytes]


class BrokenPeerError(Exception):
    """The peer breaks the protocol: the connection ends."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Stream:
    """One call on a connection."""

    __slots__ = ("consumed", "id", "partial", "send_window", "tail", "unsent")

    def __init__(self) -> None:
        self.id = 0  # as long as it has not begun
        self.partial: bytearray | None = None  # the beginning of a message whose rest is still to come
        self.consumed = 0  # bytes received since the last grant
        self.send_window = 0
        self.unsent: memoryview | None = None  # of the body, for want of a window
        self.tail = b""  # frames to send after the body; empty: the body's last frame ends the stream

    def on_message(self, message: bytes, at: float) -> None:
        """
        Args:
            at: when its last bytes were read from the socket, by the monotonic clock.
        """
        raise NotImplementedError


class Connection(asyncio.Protocol):
    """What both sides share. Subclasses define what the events below mean."""

    preface = b""  # before the first frame

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self.max_streams = MAX_ID  # that the peer accepts at a time
        self.is_closing = False  # no new streams
        self.broken: BrokenPeerError | None = None
        self.has_settings = False  # of the peer
        self.send_window = FIRST_WINDOW
        self._transport: asyncio.Transport | None = None
        self._rest = b""  # the beginning of a frame
        self._consumed = 0
        self._decoder = Decoder()
        self._block: tuple[int, int, bytearray] | None = None  # stream, flags, and the parts so far
        self._peer_window = FIRST_WINDOW  # of a new stream
        self._peer_max_frame = MAX_FRAME
        self._blocked: dict[int, Stream] = {}  # with something unsent, in turn

    # Events

    def on_settings(self) -> None:
        """The peer's first SETTINGS have arrived."""

    def on_headers(self, stream_id: int, headers: list[Header], *, is_last: bool, at: float) -> None:
        raise NotImplementedError

    def on_data_end(self, stream: Stream, at: float) -> None:
        """The peer has ended the stream after its data."""
        raise NotImplementedError

    def on_reset(self, stream: Stream, code: int, at: float) -> None:
        """The peer has reset the stream, which is already removed."""
        raise NotImplementedError

    def on_bad_message(self, stream: Stream, reason: str, at: float) -> None:
        """A message cannot be read; the stream is reset and removed."""
        raise NotImplementedError

    def on_goaway(self, last_id: int, code: int, text: str, at: float) -> None:
        raise NotImplementedError

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        set_patience(transport.get_extra_info("socket"))
        settings = make_settings({ENABLE_PUSH: 0, INITIAL_WINDOW_SIZE: MAX_WINDOW})
        self.write(self.preface + settings + make_window_update(0, MAX_WINDOW - FIRST_WINDOW))

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        self.is_closing = True
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        at = monotonic()  # before anything else: all that this read brought arrived then
        if self._rest:
            data = self._rest + data
        try:
            self._rest = data[self._take_frames(data, at) :]
        except BrokenPeerError as broken:
            self._end_broken(broken)
        if self._consumed >= RENEW_CONNECTION_BYTES:
            self.write(make_window_update(0, self._consumed))
            self._consumed = 0

    def _end_broken(self, broken: BrokenPeerError) -> None:
        self._rest = b""
        self.broken = broken
        self.write(make_frame(GOAWAY, 0, 0, (0).to_bytes(4) + broken.code.to_bytes(4) + str(broken).encode()))
        self.close()

    def _take_frames(self, data: bytes, at: float) -> int:
        """Handle all whole frames. Returns where the rest begins.

        Nearly all frames are a message of a stream, so their way is short.
        """
        begin, end, streams, from_bytes = 0, len(data), self.streams, int.from_bytes
        while end - begin >= HEAD_BYTES:
            high, low, kind, flags, stream_id = unpack_head(data, begin)
            length = high << 8 | low
            start = begin + HEAD_BYTES
            stop = start + length
            if length > MAX_FRAME or not self.has_settings:
                self._check_head(length, kind)
            if stop > end:
                break
            begin = stop
            if kind != DATA or flags & PADDED or self._block is not None:
                self._take_frame(kind, flags, stream_id & MAX_ID, data[start:stop], at)
                continue
            self._consumed += length
            stream = streams.get(stream_id & MAX_ID)
            if stream is None:
                continue  # it was cancelled
            stream.consumed += length
            if not stream.partial and length >= 5 and from_bytes(data[start : start + 5]) == length - 5:
                stream.on_message(data[start + 5 : stop], at)
            elif length:
                self._take_part(stream, data[start:stop], at)
            if flags & END_STREAM or stream.consumed >= RENEW_STREAM_BYTES:
                self._finish_data(stream, flags, at)
        return begin

    def _check_head(self, length: int, kind: int) -> None:
        if not self.has_settings and kind != SETTINGS:
            raise BrokenPeerError(PROTOCOL_ERROR, "it does not speak HTTP/2")
        if length > MAX_FRAME:
            raise BrokenPeerError(FRAME_SIZE_ERROR, f"a frame of {length} bytes, of which {MAX_FRAME} are allowed")

    def _take_part(self, stream: Stream, part: bytes, at: float) -> None:
        """Messages that are not alone in their frame."""
        if stream.partial is None:
            stream.partial = bytearray()
        partial = stream.partial
        partial += part
        while len(partial) >= 5:
            stop = 5 + int.from_bytes(partial[1:5])
            if partial[0]:
                self.reset(stream, INTERNAL_ERROR)
                self.on_bad_message(stream, "a message is compressed, although that was not allowed", at)
                return
            if len(partial) < stop:
                return
            message = bytes(partial[5:stop])
            del partial[:stop]
            stream.on_message(message, at)

    def _finish_data(self, stream: Stream, flags: int, at: float) -> None:
        if stream.id not in self.streams:
            return
        if flags & END_STREAM:
            self.on_data_end(stream, at)
        else:
            self.write(make_window_update(stream.id, stream.consumed))
            stream.consumed = 0

    def _take_frame(self, kind: int, flags: int, stream_id: int, payload: bytes, at: float) -> None:
        if self._block is not None and (kind != CONTINUATION or stream_id != self._block[0]):
            raise BrokenPeerError(PROTOCOL_ERROR, "a header block was interrupted")
        handle = HANDLERS.get(kind)
        if handle is not None:  # PRIORITY means nothing to us, and unknown kinds have to be ignored
            handle(self, flags, stream_id, payload, at)

    def _take_padded_data(self, flags: int, stream_id: int, payload: bytes, at: float) -> None:
        self._consumed += len(payload)
        stream = self.streams.get(stream_id)
        if stream is not None:
            stream.consumed += len(payload)
            self._take_part(stream, strip(flags, payload), at)
            self._finish_data(stream, flags, at)

    def _take_headers(self, flags: int, stream_id: int, payload: bytes, at: float) -> None:
        block = strip(flags, payload)
        if flags & END_HEADERS:
            self._end_block(flags, stream_id, block, at)
        else:
            self._block = (stream_id, flags, bytearray(block))

    def _take_continuation(self, flags: int, stream_id: int, payload: bytes, at: float) -> None:
        if self._block is None:
            raise BrokenPeerError(PROTOCOL_ERROR, "a continuation of no header block")
        _, first_flags, block = self._block
        block += payload
        if len(block) > MAX_BLOCK_BYTES:
            raise BrokenPeerError(PROTOCOL_ERROR, f"a header block of more than {MAX_BLOCK_BYTES} bytes")
        if flags & END_HEADERS:
            self._block = None
            self._end_block(first_flags, stream_id, bytes(block), at)

    def _end_block(self, flags: int, stream_id: int, block: bytes, at: float) -> None:
        try:
            headers = cast(
                list[Header], self._decoder.decode(block, raw=True)
            )  # of cancelled calls too: it has a state
        except HPACKError as error:
            raise BrokenPeerError(COMPRESSION_ERROR, f"a header block cannot be read: {error}") from None
        self.on_headers(stream_id, headers, is_last=bool(flags & END_STREAM), at=at)

    def _take_reset(self, flags: int, stream_id: int, payload: bytes, at: float) -> None:
        stream = self.forget(stream_id)
        if stream is not None:
            self.on_reset(stream, int.from_bytes(payload[:4]), at)

    def _take_settings(self, flags: int, stream_id: int, payload: bytes, at: float) -> None:
        if flags & ACK:
            return
        if len(payload) % 6:
            raise BrokenPeerError(FRAME_SIZE_ERROR, "broken SETTINGS")
        settings = dict(read_settings(payload))
        self.max_streams = settings.get(MAX_CONCURRENT_STREAMS, self.max_streams)
        self._peer_max_frame = settings.get(MAX_FRAME_SIZE, self._peer_max_frame)
        if (window := settings.get(INITIAL_WINDOW_SIZE)) is not None:
            for stream in self.streams.values():
                stream.send_window += window - self._peer_window
            self._peer_window = window
        self.write(make_frame(SETTINGS, ACK, 0))
        is_first, self.has_settings = not self.has_settings, True
        if is_first:
            self.on_settings()
        self._send_blocked()

    def _take_ping(self, flags: int, stream_id: int, payload: bytes, at: float) -> None:
        if not flags & ACK:
            self.write(make_frame(PING, ACK, 0, payload))

    def _take_goaway(self, flags: int, stream_id: int, payload: bytes, at: float) -> None:
        self.is_closing = True
        last_id, code = int.from_bytes(payload[:4]) & MAX_ID, int.from_bytes(payload[4:8])
        self.on_goaway(last_id, code, payload[8:].decode("utf-8", "replace"), at)

    def _take_window_update(self, flags: int, stream_id: int, payload: bytes, at: float) -> None:
        num_bytes = int.from_bytes(payload) & MAX_ID
        if stream_id == 0:
            self.send_window += num_bytes
            if self.send_window > MAX_WINDOW:
                raise BrokenPeerError(FLOW_CONTROL_ERROR, "it grants more than the largest window")
        elif (stream := self.streams.get(stream_id)) is not None:
            stream.send_window += num_bytes
        if self._blocked:
            self._send_blocked()

    def _take_push(self, flags: int, stream_id: int, payload: bytes, at: float) -> None:
        raise BrokenPeerError(PROTOCOL_ERROR, "it pushes, although that is turned off")

    # Sending

    def add(self, stream: Stream, stream_id: int) -> None:
        stream.id, stream.send_window = stream_id, self._peer_window
        self.streams[stream_id] = stream

    def forget(self, stream_id: int) -> Stream | None:
        self._blocked.pop(stream_id, None)
        return self.streams.pop(stream_id, None)

    def reset(self, stream: Stream, error: int) -> None:
        if self.forget(stream.id) is not None:
            self.write(make_reset(stream.id, error))

    def send(self, stream: Stream, head: bytes, body: bytes, tail: bytes = b"") -> None:
        """Send frames, then the body as DATA as soon as the peer's windows allow, then other frames.

        Args:
            body: not empty.
            tail: empty: the body ends our side of the stream; otherwise this ends all of it.
        """
        size = len(body)
        if size <= self._peer_max_frame and size <= self.send_window and size <= stream.send_window:
            self.send_window -= size
            stream.send_window -= size
            self.write(head + make_frame(DATA, 0 if tail else END_STREAM, stream.id, body) + tail)
            if tail:
                self.forget(stream.id)
            return
        self.write(head)
        stream.unsent, stream.tail = memoryview(body), tail
        self._blocked[stream.id] = stream
        self._send_blocked()

    def _send_blocked(self) -> None:
        """Send what the windows allow, a frame of each stream in turn."""
        waiting = list(self._blocked.values())
        while waiting and self.send_window > 0:
            waiting = [stream for stream in waiting if self._send_part(stream)]

    def _send_part(self, stream: Stream) -> bool:
        """Returns whether there may be more to send at once."""
        unsent = stream.unsent
        assert unsent is not None, "a stream without a body is blocked"
        size = min(len(unsent), self._peer_max_frame, self.send_window, stream.send_window)
        if size <= 0:
            return False
        self.send_window -= size
        stream.send_window -= size
        stream.unsent = rest = unsent[size:]
        is_whole = not rest
        self.write(make_frame(DATA, END_STREAM if is_whole and not stream.tail else 0, stream.id, unsent[:size]))
        if is_whole:
            self._blocked.pop(stream.id, None)
            stream.unsent = None
            if stream.tail:
                self.write(stream.tail)
                self.forget(stream.id)
        return not is_whole


HANDLERS: dict[int, Callable[[Connection, int, int, bytes, float], None]] = {
    DATA: Connection._take_padded_data,
    HEADERS: Connection._take_headers,
    CONTINUATION: Connection._take_continuation,
    RST_STREAM: Connection._take_reset,
    SETTINGS: Connection._take_settings,
    PING: Connection._take_ping,
    GOAWAY: Connection._take_goaway,
    WINDOW_UPDATE: Connection._take_window_update,
    PUSH_PROMISE: Connection._take_push,
}


def strip(flags: int, payload: bytes) -> bytes:
    """A payload without padding and priority.

    Raises:
        BrokenPeerError: the padding is longer than the payload.
    """
    start, stop = 0, len(payload)
    if flags & PADDED:
        start, stop = 1, stop - (payload[0] if payload else 0)
    if flags & HAS_PRIORITY:  # in HEADERS only; DATA has no such flag
        start += 5
    if start > stop:
        raise BrokenPeerError(PROTOCOL_ERROR, "padding that is longer than its frame")
    return payload[start:stop]


def set_patience(connected: socket.socket | None) -> None:
    """Let the kernel end a connection whose other machine has vanished: it sends no reset."""
    if connected is None or connected.family == socket.AF_UNIX:
        return
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
        connected.setsockopt(socket.IPPROTO_TCP, option, seconds)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GIVE_UP_MS)
