"""Messages and bytes that no sane client sends: strategies for requests, mutations of them, and greetings for ports."""

from __future__ import annotations

import math
import random
import ssl
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import strategies as st

from tgis_server.wire import generation_pb2 as pb

GENERATE = "/fmaas.GenerationService/Generate"
GENERATE_STREAM = "/fmaas.GenerationService/GenerateStream"
TOKENIZE = "/fmaas.GenerationService/Tokenize"
MODEL_INFO = "/fmaas.GenerationService/ModelInfo"
CHECK = "/grpc.health.v1.Health/Check"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
METHODS: dict[str, type[Message]] = {
    GENERATE: pb.BatchedGenerationRequest,
    GENERATE_STREAM: pb.SingleGenerationRequest,
    TOKENIZE: pb.BatchedTokenizeRequest,
    MODEL_INFO: pb.ModelInfoRequest,
    CHECK: health_pb2.HealthCheckRequest,
    REFLECT: reflection_pb2.ServerReflectionRequest,
}

FLOATS = [0.0, -0.0, 1.0, -1.0, 1e-45, 3.4e38, -3.4e38, math.nan, math.inf, -math.inf]
UINT32S = [0, 1, 2, 20, 2**31 - 1, 2**31, 2**32 - 1]
INT32S = [0, 1, 2, -1, 2**31 - 1, -(2**31)]
TEXTS = [
    *("", "\0", "Once upon a time", "</s><s>", "\ufffd\ufeff\u202e", "\U0010ffff", "e" + "\u0301" * 30),
    *("\0" * 300, " " * 4000, "👩\u200d👩\u200d👧" * 40, "x" * 20_000),
]
# Allowed extremes: most values must be allowed, or nearly every message would be refused.
ALLOWED: dict[str, list[Any]] = {
    "method": [1],
    "temperature": [0.05, 1.0, 3.4e38],
    "top_k": [0, 5, 2**31 - 1],
    "top_p": [1e-45, 0.5, 1.0],
    "typical_p": [-3.4e38, 1e-45, 0.5],
    "repetition_penalty": [1e-45, 0.5, 3.4e38],
    "decay_factor": [1.0, 10.0],
    "max_new_tokens": [0, 1, 16],
    "min_new_tokens": [0, 1],
    "top_n_tokens": [0, 1, 10],
    "truncate_input_tokens": [1, 8],
    "generated_tokens": [True],
    "stop_sequences": ["a", "\0"],
    "format": [0],
    "adapter_id": [""],
}
NUM_ALLOWED = 150  # entries per field that are allowed values
REFUSED = {"prefix_id", "json_schema", "regex", "choice", "grammar"}  # refused whatever their value is


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Values of a field: allowed ones, the limits of its type, or (for texts) any."""
    match field.cpp_type:
        case field.CPPTYPE_MESSAGE:
            value: st.SearchStrategy[Any] = messages(GetMessageClass(field.message_type))
        case field.CPPTYPE_BOOL:
            value = sampled(field, [False, True])
        case field.CPPTYPE_ENUM | field.CPPTYPE_INT32:
            value = sampled(field, INT32S)
        case field.CPPTYPE_FLOAT:
            value = sampled(field, FLOATS)
        case field.CPPTYPE_STRING:
            value = sampled(field, TEXTS) | st.text(max_size=30) if field.name == "text" else sampled(field, TEXTS)
        case _:
            value = sampled(field, UINT32S)
    return st.lists(value, max_size=3) if field.is_repeated else value


def sampled(field: FieldDescriptor, borders: list[Any]) -> st.SearchStrategy[Any]:
    """The limits of a field's type, among many allowed values."""
    allowed = ALLOWED.get(field.name, [])
    return st.sampled_from(allowed * (NUM_ALLOWED // len(allowed)) + borders if allowed else borders)


def messages(cls: type[Message]) -> st.SearchStrategy[Message]:
    """Messages with every field that a server may accept, or with any fields."""
    every = {field.name: values(field) for field in cls.DESCRIPTOR.fields}
    serious = {name: value for name, value in every.items() if name not in REFUSED}
    fields = st.fixed_dictionaries(serious) | st.fixed_dictionaries({}, optional=every)
    return fields.map(lambda chosen: cls(**chosen))


def calls(*methods: str) -> st.SearchStrategy[tuple[str, bytes]]:
    """A method and the bytes of a request for it."""

    def call(method: str) -> st.SearchStrategy[tuple[str, bytes]]:
        return messages(METHODS[method]).map(lambda message: (method, message.SerializeToString()))

    return st.sampled_from(methods).flatmap(call)


def mutant(source: random.Random, body: bytes) -> bytes:
    """The same bytes, damaged: truncated, with something inserted or overwritten, reversed or replaced."""
    at, noise = source.randrange(len(body) + 1), source.randbytes(source.randrange(1, 9))
    return source.choice(
        [
            body[:at],
            body[:at] + noise + body[at:],
            body[:at] + noise + body[at + len(noise) :],
            body[at:] + body[:at],
            source.randbytes(source.randrange(200)),
            body + b"\xfa\x01\x03new" + b"\xf8\x01\x01",  # two unknown fields, both with number 31
        ]
    )


HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame."""
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def client_hello() -> bytes:
    """The first bytes of a TLS client."""
    sent = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost")
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return sent.read()
    raise AssertionError("nobody answered")


def greetings(source: random.Random) -> Iterator[bytes]:
    """An endless series of the bytes that strangers send to a port."""
    fixed = [
        b"",
        HTTP2[:11],
        HTTP2,
        HTTP2 + SETTINGS + frame(1, 4, 1, b"\x00\x7f" + b"a" * 16_000),  # endless headers
        HTTP2 + SETTINGS + frame(0, 0, 1, b"data before headers"),
        HTTP2 + SETTINGS + b"\xff\xff\xff\0\0\0\0\0\1" + b"a frame of 16 MiB",
        client_hello(),
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /fmaas.GenerationService/Generate HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n\0\0\0\0\0",
        b"POST /metrics HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\n: nameless\r\n\0\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nExpect: the unexpected\r\n\r\n",
    ]
    while True:
        yield from fixed
        yield from (source.randbytes(source.randrange(1, 2000)) for _ in fixed)
        yield from (mutant(source, one) for one in fixed)
