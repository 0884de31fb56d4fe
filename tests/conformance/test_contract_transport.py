"""What surrounds the calls: message sizes, compression, metadata, reflection, health, HTTP, and the wire format."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from contract_api import DEADLINE_S, Api, Refusal, batch_request, exactly, parameters, refusal_of, row
from contract_metrics import fetch_text
from contract_servers import ONE_SERVER
from tgis_server.wire import generation_pb2 as pb

ASKED_OF = ONE_SERVER

MAX_BYTES = 4 * 1024 * 1024
METHODS = ("Generate", "GenerateStream", "Tokenize", "ModelInfo")


def info_request(num_bytes: int) -> pb.ModelInfoRequest:
    """A request whose encoding has exactly this many bytes."""
    request = pb.ModelInfoRequest(model_id="x" * (num_bytes - 5))
    assert request.ByteSize() == num_bytes
    return request


def send(api: Api, method: str, raw: bytes) -> bytes:
    """Send bytes to a method; return its only or first answer."""
    name = f"/fmaas.GenerationService/{method}"
    if method == "GenerateStream":
        return next(api.channel.unary_stream(name)(raw, timeout=DEADLINE_S))
    return api.channel.unary_unary(name)(raw, timeout=DEADLINE_S)


# Messages


@row("transport-largest-message")
def test_a_request_of_four_mebibytes_is_accepted(api: Api) -> None:
    assert api.stub.ModelInfo(info_request(MAX_BYTES), timeout=DEADLINE_S) == api.info


@pytest.mark.parametrize("method", [pytest.param(name, id=f"transport-message-too-large-{name}") for name in METHODS])
def test_a_larger_request_is_out_of_range(api: Api, method: str) -> None:
    raw = info_request(MAX_BYTES + 1).SerializeToString()  # every request begins with model_id

    expected = f"Error, message length too large: found {MAX_BYTES + 1} bytes, the limit is: {MAX_BYTES} bytes"
    assert refusal_of(lambda: send(api, method, raw)) == Refusal("OUT_OF_RANGE", expected)


@row("transport-connection-survives-a-large-message")
def test_other_calls_on_the_connection_continue(api: Api) -> None:
    refusal_of(lambda: api.stub.ModelInfo(info_request(MAX_BYTES + 1), timeout=DEADLINE_S))

    assert api.generate("Hello", **exactly(1))


@row("transport-large-response")
def test_an_answer_may_be_larger_than_a_request(api: Api) -> None:
    tokens = api.tokenize("a " * 300_000, return_tokens=True, return_offsets=True)

    assert pb.BatchedTokenizeResponse(responses=tokens).ByteSize() > MAX_BYTES


@pytest.mark.parametrize(
    "compression",
    [
        pytest.param(grpc.Compression.Gzip, id="transport-gzip"),
        pytest.param(grpc.Compression.Deflate, id="transport-deflate"),
    ],
)
def test_a_compressed_request_is_accepted(api: Api, compression: grpc.Compression) -> None:
    request = batch_request(["Hello " * 20], **exactly(1))

    response = api.stub.Generate(request, compression=compression, timeout=DEADLINE_S)

    assert list(response.responses) == api.generate("Hello " * 20, **exactly(1))


@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param([("x-correlation-id", "abc-123")], id="transport-correlation-id"),
        pytest.param([("x-correlation-id", "")], id="transport-correlation-id-empty"),
        pytest.param([("x-correlation-id", "a"), ("x-correlation-id", "b")], id="transport-correlation-id-twice"),
        pytest.param([("x-correlation-id-bin", b"\xff\x00")], id="transport-metadata-binary"),
        pytest.param([("mm-model-id", "some-model")], id="transport-metadata-of-routers"),
    ],
)
def test_metadata_changes_nothing(api: Api, metadata: list[tuple[str, Any]]) -> None:
    response = api.stub.Generate(batch_request(["Hello"], **exactly(1)), metadata=metadata, timeout=DEADLINE_S)

    assert list(response.responses) == api.generate("Hello", **exactly(1))


@row("transport-unknown-method")
def test_a_method_that_does_not_exist_is_unimplemented(api: Api) -> None:
    call = api.channel.unary_unary("/fmaas.GenerationService/Embed")

    assert refusal_of(lambda: call(b"", timeout=DEADLINE_S)).code == "UNIMPLEMENTED"


@pytest.mark.parametrize("method", [pytest.param(name, id=f"transport-undecodable-request-{name}") for name in METHODS])
def test_bytes_that_are_not_a_request_cause_an_internal_error_and_harm_nobody(api: Api, method: str) -> None:
    refusal = refusal_of(lambda: send(api, method, b"\xff\xff\xff"))

    assert refusal.code == "INTERNAL"
    assert refusal.text.startswith("failed to decode Protobuf message: ")
    assert api.generate("Hello", **exactly(1))


# The wire format, byte by byte: clients were generated from other copies of the proto


def field(number: int, value: bytes | int) -> bytes:
    """A length-delimited or varint field with a number below 16 and a length below 128."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


@row("wire-request")
def test_a_request_is_read_from_the_field_numbers_of_the_contract(recital: Api) -> None:
    stopping = field(1, 3) + field(2, 1) + field(4, b"zebra") + field(5, 1)
    params = field(3, stopping) + field(4, field(2, 1))
    request = field(1, b"model") + field(3, field(2, b"A")) + field(10, params)
    call = recital.channel.unary_unary("/fmaas.GenerationService/Generate")

    answer = call(request, timeout=DEADLINE_S)

    tokens = b"".join(field(8, field(2, text.encode())) for text in ("The", "Ġold", "Ġduck"))
    expected = field(2, 3) + field(4, b"The old duck") + field(6, 2) + field(7, 1) + tokens
    assert answer == field(1, expected)


@row("wire-old-client-temperature")
def test_a_client_without_presence_of_the_temperature_samples_with_one(api: Api) -> None:
    """Such a client never sends 0; if it leaves the temperature out, it means 1."""
    sampled = parameters(seed=3, **exactly(4))
    assert not sampled.sampling.HasField("temperature")

    assert api.answer("Hello", seed=3, **exactly(4)) == api.answer("Hello", seed=3, temperature=1.0, **exactly(4))


@row("wire-unknown-fields")
def test_fields_of_newer_clients_are_ignored(recital: Api) -> None:
    request = batch_request(["A"], max_new_tokens=2).SerializeToString() + field(15, b"new") + field(14, 1)
    call = recital.channel.unary_unary("/fmaas.GenerationService/Generate")

    answer = pb.BatchedGenerationResponse.FromString(call(request, timeout=DEADLINE_S))

    assert [response.text for response in answer.responses] == ["The old"]


# Reflection

FIELDS = {
    "BatchedGenerationRequest": "1 model_id, 2 prefix_id?, 4 adapter_id?, 3 requests*, 10 params",
    "SingleGenerationRequest": "1 model_id, 2 prefix_id?, 4 adapter_id?, 3 request, 10 params",
    "GenerationRequest": "2 text",
    "BatchedGenerationResponse": "1 responses*",
    "GenerationResponse": "6 input_token_count, 2 generated_token_count, 4 text, 7 stop_reason, 11 stop_sequence, "
    "10 seed, 8 tokens*, 9 input_tokens*",
    "Parameters": "1 method, 2 sampling, 3 stopping, 4 response, 5 decoding, 6 truncate_input_tokens",
    "SamplingParameters": "1 temperature?, 2 top_k, 3 top_p, 4 typical_p, 5 seed?",
    "StoppingCriteria": "1 max_new_tokens, 2 min_new_tokens, 3 time_limit_millis, 4 stop_sequences*, "
    "5 include_stop_sequence?",
    "ResponseOptions": "1 input_text, 2 generated_tokens, 3 input_tokens, 4 token_logprobs, 5 token_ranks, "
    "6 top_n_tokens",
    "DecodingParameters": "1 repetition_penalty, 2 length_penalty?, 3 format, 4 json_schema, 5 regex, 6 choice, "
    "7 grammar",
    "DecodingParameters.LengthPenalty": "1 start_index, 2 decay_factor",
    "DecodingParameters.StringChoices": "1 choices*",
    "TokenInfo": "2 text, 3 logprob, 4 rank, 5 top_tokens*",
    "TokenInfo.TopToken": "2 text, 3 logprob",
    "BatchedTokenizeRequest": "1 model_id, 2 requests*, 3 return_tokens, 4 return_offsets, 5 truncate_input_tokens, "
    "6 prefix_id?, 7 adapter_id?",
    "TokenizeRequest": "1 text",
    "BatchedTokenizeResponse": "1 responses*",
    "TokenizeResponse": "1 token_count, 2 tokens*, 3 offsets*",
    "TokenizeResponse.Offset": "1 start, 2 end",
    "ModelInfoRequest": "1 model_id",
    "ModelInfoResponse": "1 model_kind, 2 max_sequence_length, 3 max_new_tokens",
}
ENUMS = {
    "DecodingMethod": ["GREEDY", "SAMPLE"],
    "StopReason": [
        *("NOT_FINISHED", "MAX_TOKENS", "EOS_TOKEN", "CANCELLED"),
        *("TIME_LIMIT", "STOP_SEQUENCE", "TOKEN_LIMIT", "ERROR"),
    ],
}


def reflect(api: Api, **asked: str) -> reflection_pb2.ServerReflectionResponse:
    stub = reflection_pb2_grpc.ServerReflectionStub(api.channel)
    request = reflection_pb2.ServerReflectionRequest(**asked)
    return next(iter(stub.ServerReflectionInfo(iter([request]), timeout=DEADLINE_S)))


@pytest.fixture(scope="module")
def reflected(api: Api) -> descriptor_pb2.FileDescriptorProto:
    """The proto file as the server shows it."""
    response = reflect(api, file_containing_symbol="fmaas.GenerationService")
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(raw)
        for raw in response.file_descriptor_response.file_descriptor_proto
    ]
    return next(file for file in files if file.package == "fmaas")


def described(message: descriptor_pb2.DescriptorProto) -> str:
    """A message's fields as ``FIELDS`` writes them: ? marks a field with presence, and * a repeated one."""
    return ", ".join(f"{one.number} {one.name}{mark(one)}" for one in message.field)


def mark(one: descriptor_pb2.FieldDescriptorProto) -> str:
    if one.proto3_optional:
        return "?"
    return "*" if one.label == one.LABEL_REPEATED else ""


@row("reflection-services")
def test_reflection_lists_the_services(api: Api) -> None:
    names = {service.name for service in reflect(api, list_services="").list_services_response.service}

    assert {"fmaas.GenerationService", "grpc.health.v1.Health"} <= names


@row("reflection-methods")
def test_reflection_shows_the_methods(reflected: descriptor_pb2.FileDescriptorProto) -> None:
    [service] = reflected.service

    assert [(method.name, method.client_streaming, method.server_streaming) for method in service.method] == [
        ("Generate", False, False),
        ("GenerateStream", False, True),
        ("Tokenize", False, False),
        ("ModelInfo", False, False),
    ]


@pytest.mark.parametrize(
    ("name", "expected"), [pytest.param(*item, id=f"reflection-fields-{item[0]}") for item in FIELDS.items()]
)
def test_messages_have_the_fields_of_the_contract(
    reflected: descriptor_pb2.FileDescriptorProto, name: str, expected: str
) -> None:
    messages = {message.name: message for message in reflected.message_type}
    messages |= {f"{outer.name}.{inner.name}": inner for outer in reflected.message_type for inner in outer.nested_type}

    assert sorted(described(messages[name]).split(", ")) == sorted(expected.split(", "))


@pytest.mark.parametrize(
    ("name", "expected"), [pytest.param(*item, id=f"reflection-enum-{item[0]}") for item in ENUMS.items()]
)
def test_enums_have_the_values_of_the_contract(
    reflected: descriptor_pb2.FileDescriptorProto, name: str, expected: list[str]
) -> None:
    [found] = [enum for enum in reflected.enum_type if enum.name == name]

    assert [(value.name, value.number) for value in found.value] == [(value, i) for i, value in enumerate(expected)]


# Health


@pytest.mark.parametrize(
    "service", [pytest.param("", id="health-server"), pytest.param("fmaas.GenerationService", id="health-service")]
)
def test_the_health_service_says_serving(api: Api, service: str) -> None:
    stub = health_pb2_grpc.HealthStub(api.channel)

    response = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE_S)

    assert response.status == health_pb2.HealthCheckResponse.SERVING


@row("health-watch")
def test_health_can_be_watched(api: Api) -> None:
    stub = health_pb2_grpc.HealthStub(api.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=""), timeout=DEADLINE_S)

    first = next(watch)
    watch.cancel()

    assert first.status == health_pb2.HealthCheckResponse.SERVING


@row("health-unknown-service")
def test_the_health_of_an_unknown_service_is_not_found(api: Api) -> None:
    stub = health_pb2_grpc.HealthStub(api.channel)

    refusal = refusal_of(lambda: stub.Check(health_pb2.HealthCheckRequest(service="fmaas.Other"), timeout=DEADLINE_S))

    assert refusal.code == "NOT_FOUND"


@row("health-while-busy")
def test_probes_are_answered_while_the_server_is_busy(slow: Api) -> None:
    stub = health_pb2_grpc.HealthStub(slow.channel)
    with slow.running("Hello", **exactly(200)) as frames:
        next(frames)
        status = stub.Check(health_pb2.HealthCheckRequest(service=""), timeout=2).status
        http_status, _ = get(slow, "/health")

    assert (status, http_status) == (health_pb2.HealthCheckResponse.SERVING, 200)


# HTTP


def get(api: Api, path: str) -> tuple[int, bytes]:
    if api.http is None:
        pytest.skip("needs --http")
    try:
        with urllib.request.urlopen(api.http + path, timeout=10) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@row("http-health")
def test_http_health_is_200_without_a_body(api: Api) -> None:
    assert get(api, "/health") == (200, b"")


@row("http-metrics-parseable")
def test_metrics_are_prometheus_text(api: Api) -> None:
    status, body = get(api, "/metrics")

    families = list(text_string_to_metric_families(body.decode()))
    assert status == 200
    assert any(family.name.startswith("tgi_request") for family in families)


@row("http-metrics-content-type")
def test_metrics_say_that_they_are_plain_text(api: Api) -> None:
    get(api, "/metrics")
    with urllib.request.urlopen(f"{api.http}/metrics", timeout=10) as response:
        assert response.headers["Content-Type"].startswith("text/plain")


@row("http-unknown-path")
def test_an_unknown_path_is_not_found(api: Api) -> None:
    assert get(api, "/nothing")[0] == 404


@row("http-metrics-hold-no-prompts")
def test_metrics_contain_nothing_from_prompts(api: Api) -> None:
    api.generate("zanzibar-secret", **exactly(1))
    get(api, "/metrics")

    assert "zanzibar" not in fetch_text(api.http or "")
