"""Spans of generation calls for an OpenTelemetry collector, recorded after each call has ended: no call waits for them.

Needs the extra ``tgis[tracing]``. A call's span is a child of the client's span if the client sent W3C ``traceparent``
metadata, and has a ``prefill`` child span for each input that ran. Spans contain no prompts or outputs.
"""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections.abc import Iterable
from urllib.parse import unquote

from tgis_server import failures
from tgis_server.frontend.generation import Call
from tgis_server.frontend.request_log import describe_output
from tgis_server.wire.grpc_channels import proxy_options
from tgis_server.words.url_credentials import split_credentials

logger = logging.getLogger(__name__)

LAST_SPANS_S = 2.0  # time to send the remaining spans when the server shuts down


class Tracing:
    """Sends spans to one collector, from a separate thread."""

    def __init__(self, endpoint: str, service_name: str) -> None:
        """
        Args:
            endpoint: the collector's, for OTLP over gRPC; plaintext unless it begins with ``https://``.
                ``user:password@`` in it becomes HTTP Basic authorization.
            service_name: the resource's ``service.name``.

        Raises:
            UsageError: the OpenTelemetry libraries are not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ALWAYS_ON
        except ImportError as error:
            raise failures.TRACING_NOT_INSTALLED.error(package=error.name) from error
        resource = Resource.create({SERVICE_NAME: service_name})
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
        address, credentials = split_credentials(endpoint)  # the exporter logs its endpoint when it cannot send
        basic = base64.b64encode(unquote(credentials).encode()).decode()
        exporter = OTLPSpanExporter(
            endpoint=address,
            insecure=not address.startswith("https://"),
            headers=(("authorization", f"Basic {basic}"),) if credentials else None,
            channel_options=proxy_options(address),  # type: ignore[arg-type]  # numbers are fine too
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tgis")

    def record(
        self, call: Call, correlation_id: str, metadata: Iterable[tuple[str, str | bytes]] | None, failure: str | None
    ) -> None:
        """Record a call that has ended. ``failure`` is the text of its status, or None if it is OK. Never raises."""
        try:
            self._record(call, correlation_id, metadata, failure)
        except Exception:  # a failure to trace must not cost the client its answer
            logger.exception("A span could not be recorded.")

    def _record(
        self, call: Call, correlation_id: str, metadata: Iterable[tuple[str, str | bytes]] | None, failure: str | None
    ) -> None:
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        now = time.monotonic()
        epoch_ns = time.time_ns() - time.monotonic_ns()

        def clock(at: float) -> int:
            return epoch_ns + int(at * 1e9)

        headers = {key: value for key, value in metadata or () if isinstance(value, str)}
        span = self._tracer.start_span(
            "GenerateStream" if call.kind == "stream" else "Generate",
            TraceContextTextMapPropagator().extract(headers),
            SpanKind.SERVER,
            {"correlation_id": correlation_id, "kind": call.kind, "inputs": len(call.outputs)},
            start_time=clock(call.started_at),
        )
        for output in call.outputs:
            if output.started_at is None:
                continue
            facts = {name: value for name, value in describe_output(output, call, now).items() if value is not None}
            prefill = self._tracer.start_span(
                "prefill", set_span_in_context(span), attributes=facts, start_time=clock(output.started_at)
            )
            prefill.end(clock(output.first_token_at or output.finished_at or now))
        if failure is not None:
            span.set_status(StatusCode.ERROR, failure)
        span.end(clock(now))

    def close(self) -> None:
        """Send the remaining spans, within a time limit: the collector may be unreachable."""
        sender = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        sender.start()
        sender.join(LAST_SPANS_S)
