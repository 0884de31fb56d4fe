"""What is noted of calls while they are in flight."""

from __future__ import annotations

from array import array
from math import isnan

import pytest

from tgis_cli.bench.http2.client import INTERNAL, OK, UNAVAILABLE
from tgis_cli.bench.load.calls import Call
from tgis_cli.bench.load.columns import CUT
from tgis_cli.bench.load.recorder import RecordedCall, Recorder, StampedCall, StreamedCall, UnaryCall
from tgis_server.wire import generation_pb2 as pb


def make_recorder() -> Recorder:
    return Recorder(lambda at, is_refused: None)


def begin(recorder: Recorder, kind: type[RecordedCall] = StreamedCall, *, index: int = 7) -> RecordedCall:
    call = kind(b"", Call(b"body", kind is not UnaryCall, input_tokens=3, output_tokens=5), index, recorder)
    recorder.begin(call, due=1.0)
    call.on_sent(1.25)
    return call


def frame(**fields: int) -> bytes:
    return pb.GenerationResponse(**fields).SerializeToString()


def test_a_stream_is_recorded_with_every_gap():
    recorder = make_recorder()
    call = begin(recorder)

    call.on_message(frame(input_token_count=3), 2.0)
    call.on_message(frame(generated_token_count=1), 3.0)
    call.on_message(frame(generated_token_count=2), 3.5)
    call.on_message(frame(generated_token_count=5), 4.5)
    call.on_end(OK, "", 4.75)

    columns = recorder.columns
    assert [columns.index[0], columns.status[0], columns.input_tokens[0], columns.output_tokens[0]] == [7, OK, 3, 5]
    assert [columns.due_s[0], columns.sent_s[0], columns.first_s[0], columns.end_s[0]] == [1.0, 1.25, 3.0, 4.75]
    assert [columns.asked_input[0], columns.asked_output[0]] == [3, 5]
    assert columns.gap_s == array("f", [0.5, 1.0, 0.0, 0.0])
    assert columns.num_gaps[0] == 4
    assert (recorder.num_sent, recorder.num_tokens, recorder.num_completed, recorder.num_failed) == (1, 5, 1, 0)
    assert recorder.in_flight == {}


def test_a_first_message_with_several_tokens_has_gaps_of_zero():
    recorder = make_recorder()
    call = begin(recorder)

    call.on_message(frame(input_token_count=3, generated_token_count=3), 2.0)
    call.on_end(OK, "", 2.0)

    assert recorder.columns.first_s[0] == 2.0
    assert recorder.columns.gap_s == array("f", [0.0, 0.0])


def test_a_stream_without_tokens_has_no_first_one():
    recorder = make_recorder()

    begin(recorder).on_end(OK, "", 2.0)

    assert isnan(recorder.columns.first_s[0])
    assert recorder.columns.num_gaps[0] == 0


def test_the_first_explanation_of_each_status_is_kept():
    recorder = make_recorder()

    for index, text in enumerate(("full", "still full")):
        begin(recorder, index=index).on_end(UNAVAILABLE, text, 2.0)

    assert recorder.columns.texts == {UNAVAILABLE: "full"}
    assert recorder.num_failed == 2


def test_a_call_that_was_never_sent_has_no_time_of_sending():
    recorder = make_recorder()
    call = StreamedCall(b"", Call(b"", True, 0, 0), 0, recorder)
    recorder.begin(call, due=1.0)

    call.on_end(UNAVAILABLE, "no connection", 2.5)

    assert isnan(recorder.columns.sent_s[0])


@pytest.mark.parametrize(
    ("status", "end", "is_refused"),
    [(UNAVAILABLE, 1.251, True), (UNAVAILABLE, 1.35, False), (OK, 1.251, False), (CUT, 1.251, False)],
)
def test_a_failure_soon_after_the_sending_is_a_refusal(status: int, end: float, is_refused: bool):
    ends: list[tuple[float, bool]] = []
    recorder = Recorder(lambda at, is_refused: ends.append((at, is_refused)))

    begin(recorder).on_end(status, "", end)

    assert ends == [(end, is_refused)]


def test_the_oldest_call_in_flight_is_known():
    recorder = make_recorder()
    assert recorder.find_oldest(9.0) == 0.0

    begin(recorder)

    assert recorder.find_oldest(9.0) == 8.0


@pytest.mark.parametrize("kind", [StreamedCall, UnaryCall])
def test_an_answer_that_cannot_be_read_is_a_failure(kind):
    recorder = make_recorder()
    call = begin(recorder, kind)

    call.on_message(b"\xff\xff\xff", 2.0)
    call.on_end(OK, "", 2.0)

    assert recorder.columns.status[0] == INTERNAL
    assert "cannot be read" in recorder.columns.texts[INTERNAL]


def test_a_unary_answer_counts_the_tokens_of_all_inputs():
    recorder = make_recorder()
    call = begin(recorder, UnaryCall)
    responses = [pb.GenerationResponse(input_token_count=3, generated_token_count=count) for count in (5, 6)]

    call.on_message(pb.BatchedGenerationResponse(responses=responses).SerializeToString(), 2.0)
    call.on_end(OK, "", 2.0)

    columns = recorder.columns
    assert (columns.input_tokens[0], columns.output_tokens[0], columns.num_gaps[0]) == (6, 11, 0)
    assert isnan(columns.first_s[0])


def test_a_unary_call_without_an_answer_is_a_failure():
    recorder = make_recorder()

    begin(recorder, UnaryCall).on_end(OK, "", 2.0)

    assert recorder.columns.texts == {INTERNAL: "the server sent 0 answers"}


def test_stamps_are_compared_with_the_arrivals():
    recorder = make_recorder()
    call = begin(recorder, StampedCall)

    call.on_message(frame(input_token_count=3), 2.0)
    call.on_message(frame(generated_token_count=1, seed=2_500_000_000), 3.0)

    assert recorder.stamp_delay_s == array("d", [0.5])


def test_samples_are_those_since_the_last_ones():
    recorder = make_recorder()
    call = begin(recorder)
    call.on_message(frame(generated_token_count=1), 2.0)
    call.on_message(frame(generated_token_count=2), 2.5)

    assert recorder.take_samples() == (array("f", [0.75]), array("f", [0.5]))
    assert recorder.take_samples()[0] == array("f")
