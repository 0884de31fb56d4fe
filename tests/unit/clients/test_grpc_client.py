"""How the client handles answers and errors that no server should send, and gRPC's own messages."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from tgis_cli.clients.answer import Answer
from tgis_cli.clients.connection import Connection
from tgis_cli.clients.grpc_client import Client, to_request_error
from tgis_server.errors import InvalidRequest, RequestError, Unavailable
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.generation_pb2_grpc import GenerationServiceServicer, add_GenerationServiceServicer_to_server


class OddServer(GenerationServiceServicer):
    """Sends as many answers as the text says."""

    def Generate(self, request: pb.BatchedGenerationRequest, context: object) -> pb.BatchedGenerationResponse:  # noqa: N802
        num_answers = int(request.requests[0].text)
        return pb.BatchedGenerationResponse(responses=[pb.GenerationResponse(text="a")] * num_answers)


@pytest.fixture
def client() -> Iterator[Client]:
    server = grpc.server(ThreadPoolExecutor(1))
    add_GenerationServiceServicer_to_server(OddServer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with Client.connect(Connection(f"127.0.0.1:{port}")) as client:
        yield client
    server.stop(None).wait()


@pytest.mark.parametrize("num_answers", [0, 1, 2])
def test_a_call_always_ends_however_many_answers_come(client: Client, num_answers: int):
    results: queue.SimpleQueue[Answer | RequestError] = queue.SimpleQueue()
    request = pb.SingleGenerationRequest(request=pb.GenerationRequest(text=str(num_answers)))

    client.start_answer(request, results.put)

    result = results.get(timeout=10)
    if num_answers == 1:
        assert isinstance(result, Answer)
    else:
        assert str(result) == f"The server at {client.address.target} sent {num_answers} answers to a text."


def test_a_text_above_the_limit_of_the_transport_is_called_too_long():
    error = to_request_error(
        "RESOURCE_EXHAUSTED", "SERVER: Received message larger than max (31000020 vs. 4194304)", "h:1"
    )

    assert isinstance(error, InvalidRequest)
    assert str(error) == "The text is too long: the request has 31.0 MB, but the server at h:1 accepts at most 4.2 MB."


@pytest.mark.parametrize(
    ("status", "details"), [("UNAVAILABLE", "Socket closed"), ("UNKNOWN", "Stream removed (Socket closed)")]
)
def test_a_server_that_dies_during_a_call_is_unavailable(status: str, details: str):
    error = to_request_error(status, details, "h:1")

    assert isinstance(error, Unavailable)
    assert str(error).endswith("is unavailable: the connection broke before the answer was complete")


def test_a_lost_shard_is_told_without_the_words_that_only_say_that_a_call_has_failed():
    details = "Request failed during generation: Could not connect to Text Generation server: shard-1 was killed."

    error = to_request_error("UNAVAILABLE", details, "h:1")

    assert str(error) == "The server at h:1 is unavailable: shard-1 was killed."
