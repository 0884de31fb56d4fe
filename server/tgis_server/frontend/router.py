"""Hands each step's results to the outputs they belong to: one reader for all requests, which never waits for a client.

It owns the map from request ids to outputs and the knowledge whether the engine is connected. Unary and streaming
handlers register here and are woken through their outputs.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import cast

from tgis_server import failures
from tgis_server.errors import RequestError, Unavailable
from tgis_server.frontend.output import Output, detokenizing_failed
from tgis_server.metrics import Metrics
from tgis_server.wire.link import EngineLink
from tgis_server.wire.messages import NO_TOKEN, FinishReason, StepResult


@dataclass(slots=True)
class _Entry:
    output: Output
    submitted_at: float
    last_token_at: float | None = None


class Router:
    """Requests in, results out, for one engine."""

    def __init__(self, link: EngineLink, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._link = link
        self._metrics = metrics
        self._clock = clock
        self._entries: dict[int, _Entry] = {}  # submitted and not finished
        self._ids = itertools.count(1)
        self._is_lost = False  # no result will come
        self._refusal: RequestError | None = None  # set once: what every request from then on ends with

    @property
    def num_running(self) -> int:
        return len(self._entries)

    def next_id(self) -> int:
        return next(self._ids)

    async def run(self) -> None:
        """Read results until the engine is gone. Its requests then wait to be told: :meth:`lose_engine`.

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
        """Run these requests, as one unit, inside the ``with`` block; what is unfinished at its end is cancelled.

        Raises:
            Unavailable: the engine is gone.
        """
        if self._refusal:
            raise self._refusal
        now = self._clock()
        if not self._is_lost:  # else they wait with the others for the cause
            self._link.submit([output.source.to_submit() for output in outputs])
        for output in outputs:
            self._entries[output.source.request_id] = _Entry(output, now)
        try:
            yield
        finally:
            for output in outputs:
                if self._entries.pop(output.source.request_id, None):
                    self._link.cancel(output.source.request_id)

    def lose_engine(self, cause: str) -> None:
        """The engine is dead, however that was noticed: end every open request, and every later one."""
        if self._entries:
            self._metrics.count_lost_connection()
        text = f"Could not connect to Text Generation server: {cause}"
        self.refuse(Unavailable(f"Request failed during generation: {text}"))

    def refuse(self, error: RequestError) -> None:
        """End every open request with this error, and every later one."""
        self._refusal = self._refusal or error
        entries, self._entries = self._entries, {}
        for request_id, entry in entries.items():
            self._link.cancel(request_id)
            entry.output.fail(error)

    def _dispatch(self, result: StepResult) -> None:
        now = self._clock()
        for request_id, started_at in result.started:
            if entry := self._entries.get(request_id):
                entry.output.on_started(started_at)
                self._metrics.observe_queued(started_at - entry.submitted_at)
        for request_id, details in result.prompt_details:
            if entry := self._entries.get(request_id):
                entry.output.on_prompt_details(details)
        columns = zip(result.request_ids, result.token_ids, result.finish_reasons, strict=True)
        for column, (request_id, token_id, reason) in enumerate(columns):
            if entry := self._entries.get(request_id):
                self._push_token(entry, token_id, reason, result, column, now)
        for failure in result.failures:
            if entry := self._entries.pop(failure.request_id, None):
                entry.output.on_failure(failure)
        self._metrics.observe_step(result.stats, processing_s=self._clock() - now)

    def _push_token(
        self, entry: _Entry, token_id: int, reason: FinishReason, result: StepResult, column: int, now: float
    ) -> None:
        output = entry.output
        if token_id != NO_TOKEN:
            self._metrics.observe_token(now, entry.submitted_at, entry.last_token_at)
            entry.last_token_at = now
        try:
            output.on_token(token_id, reason, result.details.get(column), now)
        except Exception as error:  # noqa: BLE001  the reader of all requests survives the failure of one
            output.fail(detokenizing_failed(error))
        if output.is_finished:
            del self._entries[output.source.request_id]
            if reason is FinishReason.NOT_FINISHED:  # a stop sequence: the engine does not know yet
                self._link.cancel(output.source.request_id)
