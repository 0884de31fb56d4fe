"""Submits requests to the engine, passes results to their outputs, and cancels what is unfinished when a call ends.

One reader serves all requests and never waits for a client.

The router owns the map from request ids to outputs and tracks whether the engine is connected. Unary and streaming
handlers register here and are woken through their outputs.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import cast

from tgis_server import failures
from tgis_server.errors import RequestError, Unavailable
from tgis_server.frontend.metrics import Metrics
from tgis_server.frontend.output import Output, detokenizing_failed
from tgis_server.wire.link import EngineLink
from tgis_server.wire.messages import NO_TOKEN, FinishReason, StepResult


class Router:
    """Requests in, results out, for one engine."""

    def __init__(self, link: EngineLink, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._link = link
        self._metrics = metrics
        self._clock = clock
        self._outputs: dict[int, Output] = {}  # by request id; submitted and not finished
        self._ids = itertools.count(1)
        self._is_lost = False  # no more results will come
        self._refusal: RequestError | None = None  # once set, it ends every later request

    @property
    def num_running(self) -> int:
        return len(self._outputs)

    def next_id(self) -> int:
        return next(self._ids)

    async def run(self) -> None:
        """Read results until the engine is lost. Open requests then wait for :meth:`lose_engine`.

        Raises:
            PeerLost: always, unless cancelled.
        """
        try:
            async with aclosing(cast(AsyncGenerator[StepResult, None], self._link.results())) as results:
                async for result in results:
                    self._dispatch(result)
            raise failures.ENGINE_CLOSED.error()
        finally:
            self._is_lost = True

    @contextmanager
    def running(self, outputs: Sequence[Output]) -> Iterator[None]:
        """Run these requests, as one unit, inside the ``with`` block; unfinished ones are cancelled at its end.

        Raises:
            RequestError: requests are refused, because the engine is lost or the server is shutting down.
        """
        if self._refusal:
            raise self._refusal
        now = self._clock()
        if not self._is_lost:  # otherwise these wait for the cause, as all open requests do
            self._link.submit([output.submit for output in outputs])
        for output in outputs:
            output.submitted_at = now
            self._outputs[output.submit.request_id] = output
        try:
            yield
        finally:
            for output in outputs:
                if self._outputs.pop(output.submit.request_id, None):
                    self._link.cancel(output.submit.request_id)

    def lose_engine(self, cause: str) -> None:
        """The engine is dead: end every open request, and every later one."""
        if self._outputs:
            self._metrics.count_lost_connection()
        text = f"Could not connect to Text Generation server: {cause}"
        self.refuse(Unavailable(f"Request failed during generation: {text}"))

    def refuse(self, error: RequestError) -> None:
        """End every open request with this error, and every later one."""
        self._refusal = self._refusal or error
        outputs, self._outputs = self._outputs, {}
        for request_id, output in outputs.items():
            self._link.cancel(request_id)
            output.fail(error)

    def _dispatch(self, result: StepResult) -> None:
        now = self._clock()
        outputs = self._outputs
        for request_id, started_at in result.started:
            if output := outputs.get(request_id):
                output.on_started(started_at)
                self._metrics.observe_queued(started_at - output.submitted_at)
        for request_id, details in result.prompt_details:
            if output := outputs.get(request_id):
                output.on_prompt_details(details)
        self._push_tokens(result, now)
        for failure in result.failures:
            if output := outputs.pop(failure.request_id, None):
                output.on_failure(failure)
        self._metrics.observe_step(result.stats, processing_s=self._clock() - now)

    def _push_tokens(self, result: StepResult, now: float) -> None:
        outputs, get_detail = self._outputs, result.details.get
        last_at: list[float] = []  # previous token times of the outputs that got another token
        columns = zip(result.request_ids, result.token_ids, result.finish_reasons, strict=True)
        for column, (request_id, token_id, reason) in enumerate(columns):
            if not (output := outputs.get(request_id)):
                continue
            if token_id != NO_TOKEN:
                if output.last_token_at is None:
                    self._metrics.observe_first_token(now - output.submitted_at)
                else:
                    last_at.append(output.last_token_at)
            try:
                output.on_token(token_id, reason, get_detail(column), now)
            except Exception as error:  # noqa: BLE001  one failing request must not stop the reader, which serves all
                output.fail(detokenizing_failed(error))
            if output.is_finished:
                del outputs[request_id]
                if reason is FinishReason.NOT_FINISHED:  # a stop sequence, which the engine cannot see
                    self._link.cancel(request_id)
        # Most outputs got their previous token in the same step.
        for at, number in Counter(last_at).items():
            self._metrics.observe_further_tokens(now - at, number)
