"""One generation call, from its request to running outputs; each door is a thin layer over it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tgis_server.errors import InvalidRequest
from tgis_server.frontend.metrics import Metrics
from tgis_server.frontend.output import Output, TextSettings
from tgis_server.frontend.permits import Permits
from tgis_server.frontend.request import GenerationRequest
from tgis_server.frontend.router import Router
from tgis_server.frontend.text import EncodedInput, Tokenizer, TokenizerFailed
from tgis_server.frontend.validation import GenerationParams, RequestLimits, validate, validate_length
from tgis_server.wire.messages import FinishReason, Submit

MAX_DRAWN_SEED = 2**32  # compatible with the original server; clients may send 64-bit seeds


class Call:
    """The outputs of one call, its times, and how its handler is woken."""

    def __init__(self, kind: str, num_inputs: int) -> None:
        """``kind`` is the label in metrics: ``single``, ``batch`` or ``stream``."""
        self.kind = kind
        self.num_inputs = num_inputs  # known before there are outputs
        self.is_answered = False  # set when an input is counted as answered
        self.started_at = time.monotonic()
        self.validated_at = self.started_at  # updated once the inputs are validated
        self.outputs: list[Output] = []
        self.permits: Permits | None = None  # only for a stream; released before the client has read everything
        self._news = asyncio.Event()
        self.wake: Callable[[], object] = self._news.set  # must be quick; a handler may replace it

    @property
    def num_unfinished(self) -> int:
        """Inputs left unfinished by a call that ends without an answer; all its inputs if every one has finished."""
        return self.num_inputs - sum(output.is_finished for output in self.outputs) or self.num_inputs

    def on_change(self, output: Output) -> None:
        """Wake the handler if it can proceed: a unary call waits for outputs to end, and a stream for tokens."""
        if self.kind == "stream" or output.is_finished:
            self.wake()
        if self.permits and output.is_finished:
            self.permits.release()

    async def wait_for_news(self) -> None:
        await self._news.wait()
        self._news.clear()

    async def wait_for_all(self) -> None:
        """Wait until every output has ended.

        Raises:
            RequestError: the first failure, as soon as it happens.
        """
        unfinished = list(self.outputs)
        while unfinished:
            await self.wait_for_news()
            for output in unfinished:
                if output.error:
                    raise output.error
            unfinished = [output for output in unfinished if not output.is_finished]


@dataclass(frozen=True, slots=True)
class GenerationService:
    """What a generation call needs from the server once the engine is loaded."""

    limits: RequestLimits
    vocab_size: int  # the model's: a tokenizer may have more tokens
    end_ids: frozenset[int]  # the model's end tokens
    default_include_stop: bool
    tokenizer: Tokenizer
    text_settings: TextSettings
    router: Router
    metrics: Metrics

    async def prepare(self, request: GenerationRequest, call: Call) -> None:
        """Validate, tokenize and check all inputs, then fill ``call.outputs``. Nothing reaches the engine.

        Raises:
            InvalidRequest: the first failed check, for the first input that fails it; one bad input fails the call.
        """
        validation_started_at = time.monotonic()
        params = validate(request, self.limits, default_include_stop=self.default_include_stop)
        encoded = await self._encode_all(request.inputs, params.truncate_input_tokens)
        num_allowed = [validate_length(len(one.token_ids), params, self.limits) for one in encoded]
        for text, one, max_new_tokens in zip(request.inputs, encoded, num_allowed, strict=True):
            submit = Submit(
                request_id=self.router.next_id(),
                prompt_ids=one.token_ids,
                max_new_tokens=max_new_tokens,
                sampling=params.sampling,
                wanted=params.wanted,
                seed=choose_seed(params),
                end_ids=self.end_ids,
                deadline=validation_started_at + params.time_limit_s if params.time_limit_s else None,
            )
            echo = text if params.input_text else ""
            call.outputs.append(Output(submit, params, self.text_settings, call.on_change, echo=echo))
        call.validated_at = time.monotonic()
        lengths = [len(one.token_ids) for one in encoded]
        self.metrics.observe_validated(lengths, params.max_new_tokens, call.validated_at - call.started_at)

    def count_answer(self, output: Output, call: Call) -> None:
        """Count an input as answered: from now on its call cannot count as a failure."""
        call.is_answered = True
        if output.stop_reason is FinishReason.TIME_LIMIT and output.num_generated == 0:
            self.metrics.count_failure("timeout")
        inference_s = None
        if output.started_at is not None and output.finished_at is not None:
            inference_s = output.finished_at - output.started_at
        self.metrics.observe_answer(
            kind=call.kind,
            stop_reason=output.stop_reason.name,
            num_input=output.num_input,
            num_generated=output.num_generated,
            total_s=time.monotonic() - call.started_at,
            inference_s=inference_s,
        )

    async def _encode_all(self, texts: Sequence[str], truncate_to: int) -> list[EncodedInput]:
        results = await self.tokenizer.encode_inputs(texts, truncate_to)
        encoded = []
        for result in results:  # in order: the first input that failed is reported
            if isinstance(result, TokenizerFailed):
                raise InvalidRequest(f"tokenizer error {result}") from result
            self.metrics.observe_raw_input(result.num_tokens_before_truncation)
            encoded.append(result)
        for one in encoded:
            if not one.token_ids:
                raise InvalidRequest("tokenizer error the input is empty")
            if one.highest_id >= self.vocab_size:
                piece = self.tokenizer.get_piece(one.highest_id)
                raise InvalidRequest(f"tokenizer error the model has no token {piece!r} (id {one.highest_id})")
        return encoded


def choose_seed(params: GenerationParams) -> int:
    """The seed of one input: the client's or a random one; 0 for greedy decoding."""
    if params.sampling.is_greedy:
        return 0
    return random.SystemRandom().randrange(MAX_DRAWN_SEED) if params.seed is None else params.seed
