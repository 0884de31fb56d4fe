"""``fmaas.GenerationService``: turns RPCs into calls and errors into statuses. ``generation.py`` does the rest."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import grpc
from grpc.aio import ServicerContext

from tgis_server.errors import InvalidRequest, Overloaded, RequestError, TgisError, Unavailable
from tgis_server.frontend.generation import Call, GenerationService
from tgis_server.frontend.grpc_api.end_call import Writer
from tgis_server.frontend.grpc_api.messages import parse_adapter, parse_request, render_parts
from tgis_server.frontend.grpc_api.stream_frames import write_frames
from tgis_server.frontend.grpc_api.tokenize_reply import join_replies, reply_parts
from tgis_server.frontend.metrics import Metrics
from tgis_server.frontend.output import Output
from tgis_server.frontend.permits import Admission
from tgis_server.frontend.request import Parameters
from tgis_server.frontend.request_log import CORRELATION_ID, get_correlation_id, log_outputs
from tgis_server.frontend.state import ServerState
from tgis_server.frontend.text import Tokenizer
from tgis_server.frontend.tracing import Tracing
from tgis_server.frontend.transport.patience import Patience
from tgis_server.frontend.validation import reject_adapter
from tgis_server.options import Fault
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.generation_pb2_grpc import GenerationServiceServicer

logger = logging.getLogger(__name__)


# If trailers exceed 8 KiB, clients refuse them and report a different status. A character takes up to twelve bytes.
MAX_STATUS_CHARACTERS = 500


class GenerationServicer(GenerationServiceServicer):
    """The public RPCs. They are registered before the engine is loaded: until it is, calls get UNAVAILABLE."""

    def __init__(
        self,
        state: ServerState,
        admission: Admission,
        metrics: Metrics,
        patience: Patience,
        tracing: Tracing | None = None,
        fault: Fault | None = None,
    ) -> None:
        self.generation: GenerationService | None = None
        self._state = state
        self._admission = admission
        self._metrics = metrics
        self._patience = patience
        self._tracing = tracing
        self._fault = fault

    async def Generate(
        self, request: pb.BatchedGenerationRequest, context: ServicerContext
    ) -> pb.BatchedGenerationResponse:
        num_inputs = len(request.requests)
        call = Call("single" if num_inputs == 1 else "batch", num_inputs)
        self._metrics.count_call(call.kind, num_inputs)
        async with self._answering(context, call) as generation:
            if not num_inputs:
                return pb.BatchedGenerationResponse()
            with self._admission.hold(num_inputs):
                parsed = parse_request(request, [one.text for one in request.requests])
                del request
                await generation.prepare(parsed, call)
                self._release_request(context, parsed.parameters)
                del parsed
                with generation.router.running(call.outputs):
                    await call.wait_for_all()
                answer = await build_answer(call.outputs, generation.tokenizer)
                for output in call.outputs:
                    generation.count_answer(output, call)
                return answer

    async def GenerateStream(self, request: pb.SingleGenerationRequest, context: ServicerContext) -> None:
        # Writes instead of yielding: a generator's `finally` may run long after its client has left.
        call = Call("stream", 1)
        self._metrics.count_call(call.kind, 1)
        async with self._answering(context, call) as generation:
            with self._admission.hold(1) as call.permits:
                if not request.HasField("request"):
                    raise MissingRequest("missing request")
                parsed = parse_request(request, [request.request.text])
                del request
                await generation.prepare(parsed, call)
                self._release_request(context, parsed.parameters)
                del parsed
                [output] = call.outputs
                writer = Writer(context, self._patience, output.submit.deadline)
                try:
                    with generation.router.running(call.outputs):
                        await write_frames(context.write, writer, call, output, generation.tokenizer)
                finally:  # an answer counts even if its client left before the end
                    if output.is_finished and not output.error:
                        generation.count_answer(output, call)
                if output.error:
                    raise output.error

    async def Tokenize(self, request: pb.BatchedTokenizeRequest, context: ServicerContext) -> bytes:
        started_at = time.monotonic()
        self._metrics.count_tokenize(len(request.requests))
        async with self._answering(context) as generation:
            reject_adapter(parse_adapter(request))
            texts = [one.text for one in request.requests]
            replies = await generation.tokenizer.tokenize(
                texts,
                partial(reply_parts, request, generation.tokenizer.get_piece),
                want_offsets=request.return_offsets,
            )
            num_tokens = sum(part.num_tokens for parts in replies for part in parts)
            self._metrics.observe_tokenized(num_tokens, time.monotonic() - started_at)
            return join_replies(replies)

    async def ModelInfo(self, request: pb.ModelInfoRequest, context: ServicerContext) -> pb.ModelInfoResponse:
        async with self._answering(context) as generation:
            return pb.ModelInfoResponse(
                model_kind=pb.ModelInfoResponse.DECODER_ONLY,  # the only kind that is served
                max_sequence_length=generation.limits.max_sequence_length,
                max_new_tokens=generation.limits.max_new_tokens,
            )

    def get_refusal(self) -> RequestError | None:
        """The error with which calls are refused at present; None while they are accepted."""
        return None if self._state.is_accepting else Unavailable(self._state.text)

    def _release_request(self, context: ServicerContext, parameters: Parameters) -> None:
        """Stop counting a request's bytes when its inputs have been tokenized, unless their text is to be sent back."""
        if not parameters.input_text:
            self._patience.release_request(context)

    async def refuse(self, context: ServicerContext, error: RequestError) -> None:
        """End a call that has no valid request. Metrics do not count it."""
        async with self._answering(context):
            raise error

    @asynccontextmanager
    async def _answering(self, context: ServicerContext, call: Call | None = None) -> AsyncIterator[GenerationService]:
        """Count a call as in flight, refuse it if the server accepts no calls, and turn its error into its status.

        Generation calls (those with a ``call``) are also logged and traced, and their failures are counted.
        """
        if call and self._fault:
            self._fault.reach("call")
        metadata = context.invocation_metadata() or ()
        correlation_id = get_correlation_id(metadata)
        context.set_trailing_metadata(((CORRELATION_ID, correlation_id),))
        failure = None
        with self._state.call():
            try:
                self._state.require_accepting()
                assert self.generation is not None, "accepting calls before the engine is known"
                yield self.generation
            except asyncio.CancelledError:
                if call and not call.is_answered:
                    self._metrics.count_failure("cancelled", call.num_unfinished)
                failure = "cancelled"
                raise
            except Exception as error:  # noqa: BLE001  the boundary: every failure of a call becomes its status
                extra = {"correlation_id": correlation_id}
                status, failure = to_status(error, extra)
                if call and not call.is_answered and not isinstance(error, MissingRequest):
                    self._metrics.count_failure(failure_label(error, call))
                    for one in call.outputs:
                        if one.error and one.started_at is not None:
                            self._metrics.observe_inference(time.monotonic() - one.started_at, one.num_generated)
                logger.debug("call failed: %s %s", status.name, failure, extra=extra)
                with Writer(context, self._patience).writing():
                    await context.abort(status, failure[:MAX_STATUS_CHARACTERS])
            finally:
                if call:
                    log_outputs(call, correlation_id)
                    if self._tracing:
                        self._tracing.record(call, correlation_id, metadata, failure)


class MissingRequest(InvalidRequest):
    """A stream's request has no input. Metrics do not count this as a failure."""


def to_status(error: Exception, extra: dict[str, str]) -> tuple[grpc.StatusCode, str]:
    """The status of a failed call; unexpected errors are logged."""
    match error:
        case TgisError():
            return grpc.StatusCode[error.status], str(error)
        case _:
            logger.error("A call failed unexpectedly.", exc_info=error, extra=extra)
            return grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"


def failure_label(error: Exception, call: Call) -> str:
    """The ``err`` label under which a failed generation call is counted."""
    match error:
        case Overloaded():
            return "conc_limit"
        case InvalidRequest():
            return "validation"
        case _:
            return "generate" if call.outputs else "unknown"


async def build_answer(outputs: Sequence[Output], tokenizer: Tokenizer) -> pb.BatchedGenerationResponse:
    """Build the answer of a unary call, off the event loop if it has details of the input, which may be long."""

    def build() -> pb.BatchedGenerationResponse:
        return render_parts(output.whole() for output in outputs)

    return await tokenizer.run(build) if outputs[0].submit.wanted.input_tokens else build()
