"""The client's side of HTTP/2, with a scripted server: every kind of frame, in every order that a server may choose."""

from __future__ import annotations

import pytest

from h2_script import HEAD, Frame, Script, data, message
from tgis_cli.bench.http2.client import (
    CANCELLED,
    INTERNAL,
    OK,
    RESOURCE_EXHAUSTED,
    UNAUTHENTICATED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    UNKNOWN,
    ClientConnection,
)
from tgis_cli.bench.http2.connection import RENEW_CONNECTION_BYTES, RENEW_STREAM_BYTES
from tgis_cli.bench.http2.frames import (
    ACK,
    CANCEL,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    PADDED,
    PING,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    make_frame,
    make_reset,
    make_settings,
    make_window_update,
)


def body_sizes(frames: list[Frame]) -> list[int]:
    return [len(frame.payload) for frame in frames if frame.kind == DATA]


# Requests


def test_a_request_is_a_header_block_and_a_message_that_ends_the_stream():
    script = Script()

    call = script.call(b"question")
    head, body = script.take()

    assert script.read_headers(head) == {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/x.X/Y",
        ":authority": "localhost:1",
        "te": "trailers",
        "content-type": "application/grpc",
        "user-agent": "tgis-bench",
    }
    assert (head.flags, head.stream_id) == (END_HEADERS, 1)
    assert body == Frame(DATA, END_STREAM, 1, message(b"question"))
    assert call.sent == 1


def test_header_blocks_of_later_calls_are_the_same_and_valid():
    script = Script()
    script.call()
    first = script.read_headers(script.take()[0])

    script.call()
    head = script.take()[0]

    assert head.stream_id == 3
    assert script.read_headers(head) == first


def test_a_large_request_waits_for_the_window_of_the_connection():
    script = Script({INITIAL_WINDOW_SIZE: 1 << 20})

    call = script.call(bytes(100_000))
    assert sum(body_sizes(script.take())) == 65535

    script.receive(make_window_update(0, 10))
    assert body_sizes(script.take()) == [10]

    script.receive(make_window_update(0, 1 << 20))
    rest = script.take()
    assert sum(body_sizes(rest)) == 100_005 - 65545
    assert [bool(frame.flags & END_STREAM) for frame in rest] == [False] * (len(rest) - 1) + [True]
    assert call.end is None


def test_a_large_request_waits_for_the_window_of_its_stream():
    script = Script({INITIAL_WINDOW_SIZE: 100})
    call = script.call(bytes(1000))
    assert body_sizes(script.take()) == [100]

    script.receive(make_window_update(call.id, 905))

    assert body_sizes(script.take()) == [905]


def test_a_smaller_initial_window_takes_from_streams_that_are_open():
    script = Script({INITIAL_WINDOW_SIZE: 100})
    script.call(bytes(1000))
    script.receive(make_settings({INITIAL_WINDOW_SIZE: 50}))
    script.take()

    script.receive(make_window_update(1, 60))

    assert body_sizes(script.take()) == [10]


def test_large_requests_take_turns():
    script = Script({INITIAL_WINDOW_SIZE: 1 << 20})
    first, second = script.call(bytes(65535 - 5)), script.call(bytes(40_000))
    script.take()

    script.receive(make_window_update(0, 20_000))
    third = script.call(bytes(40_000))
    script.receive(make_window_update(0, 40_000))

    turns = [(frame.stream_id, len(frame.payload)) for frame in script.take() if frame.kind == DATA]
    assert first.unsent is None
    assert turns == [
        (second.id, 16384),
        (second.id, 20_000 - 16384),
        (second.id, 16384),
        (third.id, 16384),
        (second.id, 40_005 - 20_000 - 16384),  # its end
        (third.id, 40_000 - 16384 - 20_005),
    ]


def test_frames_are_as_long_as_the_server_allows():
    script = Script({MAX_FRAME_SIZE: 20_000})

    script.call(bytes(30_000))

    assert body_sizes(script.take()) == [20_000, 10_005]


def test_settings_and_pings_are_acknowledged():
    script = Script()

    script.receive(make_settings({}), make_frame(PING, 0, 0, b"12345678"), make_frame(PING, ACK, 0, b"ours-was"))

    assert script.take() == [Frame(SETTINGS, ACK, 0, b""), Frame(PING, ACK, 0, b"12345678")]


# Answers


def test_a_stream_brings_its_messages_and_ends_with_the_status_of_its_trailers():
    script = Script()
    call = script.call()

    script.receive(script.headers(call), data(call, message(b"a")), data(call, message(b"")), data(call, message(b"b")))
    assert (call.messages, call.end) == ([b"a", b"", b"b"], None)

    script.receive(script.tail(call, ("grpc-status", "8"), ("grpc-message", "zu viel: %C3%A4")))
    assert call.end == (RESOURCE_EXHAUSTED, "zu viel: ä")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 13, 1000])
def test_answers_may_arrive_in_pieces_of_any_size(size):
    script = Script()
    call = script.call()
    received = script.headers(call) + data(call, message(b"first")) + data(call, message(bytes(50))) + script.tail(call)

    for start in range(0, len(received), size):
        script.receive(received[start : start + size])

    assert (call.messages, call.end) == ([b"first", bytes(50)], (OK, ""))


def test_a_frame_may_have_several_messages_and_a_message_several_frames():
    script = Script()
    call = script.call()
    payload = message(b"one") + message(b"two") + message(b"three") + message(b"four")

    script.receive(
        script.headers(call),
        data(call, payload[:12]),
        data(call, payload[12:18]),
        data(call, b""),
        data(call, payload[18:]),
    )

    assert call.messages == [b"one", b"two", b"three", b"four"]


def test_padding_and_priority_are_skipped():
    script = Script()
    call = script.call()
    block = script.encoder.encode(HEAD)

    script.receive(
        make_frame(HEADERS, END_HEADERS | PADDED | HAS_PRIORITY, call.id, b"\x03" + b"prior" + block + bytes(3)),
        data(call, b"\x04" + message(b"padded") + bytes(4), PADDED),
        script.tail(call),
    )

    assert (call.messages, call.end) == ([b"padded"], (OK, ""))


def test_header_blocks_may_continue_in_other_frames():
    script = Script()
    call = script.call()
    block = script.encoder.encode((*HEAD, ("x-long", "y" * 500)))

    script.receive(
        make_frame(HEADERS, 0, call.id, block[:5]),
        make_frame(CONTINUATION, 0, call.id, block[5:100]),
        make_frame(CONTINUATION, END_HEADERS, call.id, block[100:]),
        data(call, message(b"a")),
        script.tail(call),
    )

    assert (call.messages, call.end) == ([b"a"], (OK, ""))


def test_an_answer_may_be_only_trailers():
    script = Script()
    call = script.call()

    script.receive(script.tail(call, *HEAD, ("grpc-status", "12"), ("grpc-message", "no such method")))

    assert call.end == (UNIMPLEMENTED, "no such method")


def test_interim_headers_are_not_the_answer():
    script = Script()
    call = script.call()

    script.receive(script.headers(call, ((":status", "103"),)), script.headers(call), script.tail(call))

    assert call.end == (OK, "")


@pytest.mark.parametrize(
    ("status", "code"), [("401", UNAUTHENTICATED), ("404", UNIMPLEMENTED), ("503", UNAVAILABLE), ("302", UNKNOWN)]
)
def test_another_http_status_ends_the_call(status, code):
    script = Script()
    call = script.call()
    script.take()

    script.receive(script.headers(call, ((":status", status), ("content-type", "text/html"))), data(call, b"<html>"))

    assert call.end == (code, f"HTTP status {status}")
    assert script.take() == [Frame(RST_STREAM, 0, call.id, CANCEL.to_bytes(4))]


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (7, UNAVAILABLE, "the server reset the request: REFUSED_STREAM"),
        (8, CANCELLED, "the server reset the request: CANCEL"),
        (11, RESOURCE_EXHAUSTED, "the server reset the request: ENHANCE_YOUR_CALM"),
        (2, INTERNAL, "the server reset the request: INTERNAL_ERROR"),
        (99, INTERNAL, "the server reset the request: error 99"),
    ],
)
def test_a_reset_ends_the_call(error, status, text):
    script = Script()
    call = script.call()

    script.receive(make_reset(call.id, error), data(call, message(b"late")))

    assert (call.end, call.messages) == ((status, text), [])


def test_an_answer_without_a_status_is_an_error():
    script = Script()
    call, other = script.call(), script.call()

    script.receive(script.headers(call), data(call, message(b"a"), END_STREAM), script.tail(other, *HEAD))

    assert call.end == other.end == (INTERNAL, "the server ended the answer without a status")


@pytest.mark.parametrize("status", ["17", "-1", "many"])
def test_a_status_that_gRPC_does_not_have_is_unknown(status):  # noqa: N802
    script = Script()
    call = script.call()

    script.receive(script.tail(call, *HEAD, ("grpc-status", status)))

    assert call.end == (UNKNOWN, "")


def test_a_compressed_message_ends_its_call_only():
    script = Script()
    call, other = script.call(), script.call()
    script.take()

    script.receive(script.headers(call), data(call, b"\1" + message(b"zipped")[1:]), script.headers(other))
    script.receive(script.tail(other))

    assert call.end == (INTERNAL, "a message is compressed, although that was not allowed")
    assert other.end == (OK, "")
    assert [frame.kind for frame in script.take()] == [RST_STREAM]


def test_a_cancelled_call_hears_nothing_more_and_the_connection_goes_on():
    script = Script()
    call, other = script.call(), script.call()
    script.take()

    script.connection.cancel(call)
    assert script.take() == [Frame(RST_STREAM, 0, call.id, CANCEL.to_bytes(4))]

    script.receive(
        script.headers(call, (*HEAD, ("x-new", "in the table"))),
        data(call, message(b"late")),
        script.tail(call),
        script.headers(other, (*HEAD, ("x-new", "in the table"))),
        script.tail(other),
    )
    assert (call.messages, call.end, other.end) == ([], None, (OK, ""))


# Windows that we grant


def test_the_connections_window_is_renewed_also_for_calls_that_are_gone():
    script = Script()
    call = script.call()
    script.connection.cancel(call)
    script.take()

    for _ in range(RENEW_CONNECTION_BYTES // 16_000 + 1):
        script.receive(data(call, bytes(16_000)))

    grants = [int.from_bytes(frame.payload) for frame in script.take() if frame.kind == WINDOW_UPDATE]
    assert grants == [(RENEW_CONNECTION_BYTES // 16_000 + 1) * 16_000]


def test_a_streams_window_is_renewed_before_it_ends():
    script = Script()
    call = script.call()
    script.receive(script.headers(call))
    call.consumed = RENEW_STREAM_BYTES - 10
    script.take()

    script.receive(data(call, message(b"12345")))

    assert script.take() == [Frame(WINDOW_UPDATE, 0, call.id, RENEW_STREAM_BYTES.to_bytes(4))]


# Connections that end


def test_calls_that_a_leaving_server_has_not_seen_fail_and_the_others_are_finished():
    script = Script()
    seen, unseen = script.call(), script.call()

    script.receive(script.goaway(seen.id))
    assert (seen.end, unseen.end) == (None, (UNAVAILABLE, "the server closes the connection: enough"))
    assert not script.connection.can_send
    assert not script.wire.is_closed

    script.receive(script.headers(seen), script.tail(seen))
    assert seen.end == (OK, "")
    assert script.wire.is_closed


def test_a_lost_connection_ends_all_calls():
    script = Script()
    call = script.call()

    script.connection.connection_lost(ConnectionResetError("reset by peer"))

    assert call.end == (UNAVAILABLE, "the connection broke: reset by peer")
    assert script.owner.lost == ["reset by peer"]


@pytest.mark.parametrize(
    ("received", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "a frame of 4740180 bytes, of which 16384 are allowed"),
        (make_frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4)), "it pushes, although that is turned off"),
        (make_frame(CONTINUATION, END_HEADERS, 1), "a continuation of no header block"),
        (make_frame(HEADERS, 0, 1) + make_frame(DATA, 0, 1), "a header block was interrupted"),
        (make_frame(HEADERS, END_HEADERS, 1, b"\xff\xff"), "a header block cannot be read: "),
        (make_frame(HEADERS, END_HEADERS | PADDED, 1, b"\x09abc"), "padding that is longer than its frame"),
        (make_frame(SETTINGS, 0, 0, bytes(7)), "broken SETTINGS"),
        (make_window_update(0, 2**31 - 1), "it grants more than the largest window"),
    ],
)
def test_a_server_that_breaks_the_protocol_is_told_and_left(received, reason):
    script = Script()
    call = script.call()
    script.take()

    script.receive(received)
    script.connection.connection_lost(None)

    assert [frame.kind for frame in script.take()] == [GOAWAY]
    assert script.wire.is_closed
    assert call.end is not None
    assert call.end[0] == UNAVAILABLE
    assert call.end[1].startswith(f"the connection broke: {reason}")


def test_what_does_not_begin_with_settings_is_no_http2():
    script = Script(settings=None)
    fresh = ClientConnection(script.owner)
    fresh.connection_made(script.wire)

    fresh.data_received(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    fresh.connection_lost(None)

    assert script.owner.lost == ["it does not speak HTTP/2"]


def test_unknown_frames_and_priorities_mean_nothing():
    script = Script()
    call = script.call()
    script.take()

    script.receive(make_frame(2, 0, call.id, bytes(5)), make_frame(77, 255, 0, b"grease"))

    assert script.take() == []
    assert call.end is None
