"""HTTP/2 frames (RFC 9113, sections 4 and 6): their kinds, flags and numbers, and how they are written."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from hpack import Encoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES = 9
MAX_FRAME = 16384  # the default, which we accept and announce
MAX_WINDOW = 2**31 - 1
FIRST_WINDOW = 65535  # of the connection, and of streams until SETTINGS change it
MAX_ID = 2**31 - 1

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

NO_TABLE = b"\x20"  # before a connection's first header block: the encoder's dynamic table has size 0

ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 2, 3, 4, 5

ERROR_NAMES = (
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
)
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = range(4)
FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR = range(6, 10)

unpack_head = struct.Struct(">HBBBI").unpack_from  # length in two parts, kind, flags, stream
pack_head = struct.Struct(">HBBBI").pack


def make_frame(kind: int, flags: int, stream_id: int, payload: bytes | memoryview = b"") -> bytes:
    size = len(payload)
    return pack_head(size >> 8, size & 0xFF, kind, flags, stream_id) + payload


def make_settings(settings: dict[int, int]) -> bytes:
    return make_frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *each) for each in settings.items()))


def make_window_update(stream_id: int, num_bytes: int) -> bytes:
    return make_frame(WINDOW_UPDATE, 0, stream_id, num_bytes.to_bytes(4))


def make_reset(stream_id: int, error: int) -> bytes:
    return make_frame(RST_STREAM, 0, stream_id, error.to_bytes(4))


def encode_headers(*headers: tuple[str, str]) -> bytes:
    """A header block that is valid at any moment of any connection, because it does not use the dynamic table."""
    return Encoder().encode([(name, value, True) for name, value in headers])  # True: never in the table


def make_message(body: bytes) -> bytes:
    """A gRPC message, not compressed, as DATA frames carry it."""
    return b"\0" + len(body).to_bytes(4) + body


def read_settings(payload: bytes) -> Iterator[tuple[int, int]]:
    """
    Raises:
        struct.error: the length is not a multiple of a setting's.
    """
    return struct.iter_unpack(">HI", payload)


def name_error(code: int) -> str:
    return ERROR_NAMES[code] if code < len(ERROR_NAMES) else f"error {code}"
