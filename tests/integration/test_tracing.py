"""Spans reach an OpenTelemetry collector, played by the test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest as Export
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from frontends import batch, run, serving, single, tokens
from links import FakeLink, step
from tgis_server.errors import UsageError
from tgis_server.frontend.tracing import Tracing
from tgis_server.wire.messages import FinishReason, StepResult, Submit

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = ("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01")


class Collector(TraceServiceServicer):
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.exports: list[Export] = []
        self.metadata: list[tuple[str, str]] = []  # metadata of the last export

    def Export(self, request: Export, context: grpc.ServicerContext) -> ExportTraceServiceResponse:  # noqa: N802  the name of the RPC
        self.exports.append(request)
        self.metadata = list(context.invocation_metadata())
        return ExportTraceServiceResponse()

    @property
    def spans(self) -> dict[str, list[Span]]:
        found: dict[str, list[Span]] = {}
        for export in self.exports:
            for resource in export.resource_spans:
                for span in (one for scope in resource.scope_spans for one in scope.spans):
                    found.setdefault(span.name, []).append(span)
        return found


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    """A collector and its address."""
    found = Collector()
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        add_TraceServiceServicer_to_server(found, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield found, f"http://127.0.0.1:{port}"
        server.stop(None).wait()


def two_tokens(submit: Submit) -> list[StepResult]:
    """An engine that starts every input and gives it two tokens."""
    number = submit.request_id
    return [
        step((number, 1, FinishReason.NOT_FINISHED), started=[(number, 0.0)]),
        step((number, 2, FinishReason.MAX_TOKENS)),
    ]


def test_a_call_has_a_span_in_the_clients_trace_that_contains_a_prefill_of_each_input(collector):
    found, endpoint = collector

    async def test():
        async with serving(FakeLink(two_tokens), otlp_endpoint=endpoint, otlp_service_name="mine") as server:
            metadata = [TRACEPARENT, ("x-correlation-id", "call-7")]
            await server.stub.Generate(batch("t1 t2", "t3", **tokens(2)), metadata=metadata)

    run(test)
    [span] = found.spans["Generate"]
    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.kind) == (TRACE_ID, PARENT_ID, Span.SPAN_KIND_SERVER)
    assert attributes(span) == {"correlation_id": "call-7", "kind": "batch", "inputs": 2}
    assert span.start_time_unix_nano < span.end_time_unix_nano
    prefills = found.spans["prefill"]
    assert [one.parent_span_id for one in prefills] == [span.span_id] * 2
    assert [attributes(one)["input_tokens"] for one in prefills] == [2, 1]
    assert [attributes(one)["generated_tokens"] for one in prefills] == [2, 2]
    [resource] = {one.resource.SerializeToString() for export in found.exports for one in export.resource_spans}
    assert b"mine" in resource


def test_a_stream_whose_client_sends_no_trace_begins_a_new_one(collector):
    found, endpoint = collector

    async def test():
        async with serving(FakeLink(two_tokens), otlp_endpoint=endpoint) as server:
            assert [frame async for frame in server.stub.GenerateStream(single("t1", **tokens(2)))]

    run(test)
    [span] = found.spans["GenerateStream"]
    assert span.trace_id != bytes(16)
    assert not span.parent_span_id


def test_user_and_password_of_the_endpoint_become_its_authorization(collector):
    found, endpoint = collector

    async def test():
        async with serving(FakeLink(two_tokens), otlp_endpoint=endpoint.replace("://", "://me:w%40rd@")) as server:
            assert (await server.generate("t1", **tokens(2))).responses

    run(test)
    assert ("authorization", "Basic bWU6d0ByZA==") in found.metadata  # base64 of me:w@rd


def test_a_refused_call_has_a_span_that_says_why(collector):
    found, endpoint = collector

    async def test():
        async with serving(otlp_endpoint=endpoint) as server:
            with pytest.raises(grpc.aio.AioRpcError):
                await server.generate("t1", **tokens(99_999))

    run(test)
    [span] = found.spans["Generate"]
    assert (span.status.code, span.status.message) == (Status.STATUS_CODE_ERROR, "max_new_tokens must be <= 99")
    assert "prefill" not in found.spans


def test_a_collector_that_is_gone_holds_nobody_up(collector):
    async def test():
        async with serving(FakeLink(two_tokens), otlp_endpoint="http://127.0.0.1:9") as server:
            assert (await server.generate("t1", **tokens(2))).responses

    run(test)  # fails at its deadline


def test_missing_libraries_are_named_with_the_way_to_get_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)

    with pytest.raises(UsageError, match=r"--otlp-endpoint needs .* pip install 'tgis\[tracing\]'"):
        Tracing("http://127.0.0.1:9", "mine")


def attributes(span: Span) -> dict[str, object]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}
