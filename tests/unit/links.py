"""An engine link for tests that play the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

from tgis_server.errors import PeerLost, Unavailable
from tgis_server.wire.link import EngineInfo
from tgis_server.wire.messages import FinishReason, StepResult, Submit


class FakeLink:
    """Records what was sent and yields what the test puts in; with ``answer`` it answers each request itself."""

    def __init__(self, answer: Callable[[Submit], Iterable[StepResult]] | None = None, **info: object) -> None:
        self.engine_info = EngineInfo(**{"max_sequence_length": 100, "vocab_size": 10_000, "num_blocks": 50, **info})
        self.submitted: list[Submit] = []
        self.cancelled: list[int] = []
        self.num_messages = 0
        self._answer = answer
        self._results: asyncio.Queue[StepResult | PeerLost] = asyncio.Queue()
        self._is_open = False

    async def info(self) -> EngineInfo:
        return self.engine_info

    def submit(self, requests: Iterable[Submit]) -> None:
        if not self._is_open:
            raise Unavailable("not connected")
        requests = list(requests)
        self.num_messages += 1
        self.submitted += requests
        if self._answer:
            for request in requests:
                for result in self._answer(request):
                    self._results.put_nowait(result)

    def cancel(self, request_id: int) -> None:
        self.cancelled.append(request_id)

    async def results(self) -> AsyncIterator[StepResult]:
        self._is_open = True
        try:
            while True:
                match await self._results.get():
                    case PeerLost() as error:
                        raise error
                    case result:
                        yield result
        finally:
            self._is_open = False

    def give(self, result: StepResult) -> None:
        self._results.put_nowait(result)

    def break_down(self) -> None:
        self._results.put_nowait(PeerLost("The engine closed its connection."))


def step(*columns: tuple[int, int, FinishReason], **values: object) -> StepResult:
    """The result of a step; each column consists of a request, its token and its finish reason."""
    return StepResult(
        request_ids=[column[0] for column in columns],
        token_ids=[column[1] for column in columns],
        finish_reasons=[column[2] for column in columns],
        **values,
    )


def count_up(submit: Submit) -> list[StepResult]:
    """An engine that counts on from the last token of the prompt to the limit, one token per step."""
    first, last = submit.prompt_ids[-1] + 1, submit.max_new_tokens - 1
    reasons = [FinishReason.NOT_FINISHED] * last + [FinishReason.MAX_TOKENS]
    return [step((submit.request_id, (first + i) % 100, reason)) for i, reason in enumerate(reasons)]
