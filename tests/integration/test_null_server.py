"""The null server, as the clients of the gRPC library see it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import grpc
import pytest

from tgis_cli.bench.null_server import run_null_server
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.generation_pb2_grpc import GenerationServiceStub

BURST = 4


@pytest.fixture(scope="module")
def channel() -> Iterator[grpc.Channel]:
    with run_null_server(0.001, BURST) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel) -> GenerationServiceStub:
    return GenerationServiceStub(channel)


def params(num_tokens: int, truncate: int = 0) -> pb.Parameters:
    stopping = pb.StoppingCriteria(max_new_tokens=num_tokens)
    return pb.Parameters(stopping=stopping, truncate_input_tokens=truncate)


def stream_request(text: str, num_tokens: int) -> pb.SingleGenerationRequest:
    return pb.SingleGenerationRequest(request=pb.GenerationRequest(text=text), params=params(num_tokens))


def test_a_stream_has_as_many_tokens_as_asked_for_in_frames_of_one_burst(stub):
    first, *frames = stub.GenerateStream(stream_request("one two three", 2 * BURST + 1))

    assert (first.input_token_count, first.generated_token_count) == (3, 0)
    assert [frame.generated_token_count for frame in frames] == [BURST, 2 * BURST, 2 * BURST + 1]
    assert [frame.stop_reason for frame in frames] == [pb.NOT_FINISHED, pb.NOT_FINISHED, pb.MAX_TOKENS]
    assert {frame.text for frame in frames} == {" word"}


def test_frames_are_stamped_with_the_moment_of_their_sending(stub):
    before = time.monotonic_ns()
    stamps = [frame.seed for frame in stub.GenerateStream(stream_request("word", 5 * BURST))][1:]

    assert stamps == sorted(stamps)
    assert before < stamps[0]
    assert stamps[-1] < time.monotonic_ns()


def test_many_long_streams_pass_the_windows_of_a_client(stub):
    streams = [stub.GenerateStream(stream_request("word", 2000 * BURST)) for _ in range(8)]

    for stream in streams:
        assert [frame.generated_token_count for frame in stream][-1] == 2000 * BURST


def test_a_cancelled_stream_does_not_harm_the_others(stub):
    cancelled = stub.GenerateStream(stream_request("word", 1000 * BURST))
    other = stub.GenerateStream(stream_request("word", 100 * BURST))
    next(cancelled)

    cancelled.cancel()

    assert [frame.generated_token_count for frame in other][-1] == 100 * BURST


def test_a_batch_is_answered_at_once_when_its_tokens_are_due(stub):
    texts = ("one", "one two", "one two three four")
    requests = [pb.GenerationRequest(text=text) for text in texts]

    answer = stub.Generate(pb.BatchedGenerationRequest(requests=requests, params=params(7, truncate=3)))

    counts = [(each.input_token_count, each.generated_token_count) for each in answer.responses]
    assert counts == [(1, 7), (2, 7), (3, 7)]


def test_words_are_tokens(stub):
    request = pb.BatchedTokenizeRequest(
        requests=[pb.TokenizeRequest(text=" größer  als"), pb.TokenizeRequest()],
        return_tokens=True,
        return_offsets=True,
    )

    first, second = stub.Tokenize(request).responses

    assert (first.token_count, list(first.tokens)) == (2, ["größer", "als"])
    assert [(each.start, each.end) for each in first.offsets] == [(1, 9), (11, 14)]
    assert second.token_count == 0


def test_limits_are_far_away(stub):
    info = stub.ModelInfo(pb.ModelInfoRequest())

    assert (info.model_kind, info.max_sequence_length, info.max_new_tokens) == (0, 1 << 20, 1 << 19)


def test_other_methods_are_not_implemented(channel):
    with pytest.raises(grpc.RpcError) as error:
        channel.unary_unary("/grpc.health.v1.Health/Check")(b"")

    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
