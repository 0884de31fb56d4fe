"""What has happened since the last result that the front-end got."""

from __future__ import annotations

from dataclasses import replace

from tgis_server.scheduler.sequence import Sequence
from tgis_server.scheduler.steps import Row
from tgis_server.wire.messages import FinishReason, RequestFailure, StepResult, StepStats, TokenDetail


class StepReport:
    """Gathers a ``StepResult``."""

    def __init__(self) -> None:
        self._result = StepResult()
        self._has_changed = False  # a sequence ended: gauges are out of date

    @property
    def has_news(self) -> bool:
        """Whether there is something to report besides the tokens of a step."""
        return self._has_changed or bool(self._result.failures)

    def clear(self) -> None:
        """Drop everything reported so far."""
        self._result = StepResult()

    def take(self, stats: StepStats) -> StepResult:
        """Everything since the last call."""
        result = replace(self._result, stats=stats)
        self._result = StepResult()
        self._has_changed = False
        return result

    def add_start(self, sequence: Sequence, now: float) -> None:
        """Report that a sequence's first step begins."""
        self._result.started.append((sequence.submit.request_id, now))

    def add_token(
        self, sequence: Sequence, token_id: int, reason: FinishReason, detail: TokenDetail | None = None
    ) -> None:
        """Report a new token, or an end without one."""
        result = self._result
        if detail is not None:
            result.details[len(result.request_ids)] = detail
        result.request_ids.append(sequence.submit.request_id)
        result.token_ids.append(token_id)
        result.finish_reasons.append(reason)

    def add_prompt_details(self, row: Row, details: list[TokenDetail]) -> None:
        """Report details of prompt tokens, except those reported before a preemption."""
        sequence = row.sequence
        new = details[max(0, sequence.num_described - row.start) :]
        if new:
            sequence.num_described += len(new)
            self._result.prompt_details.append((sequence.submit.request_id, new))

    def add_failure(self, request_id: int, status: str, text: str) -> None:
        """Report a request that ended without an answer."""
        self._result.failures.append(RequestFailure(request_id, status, text))

    def note_end(self) -> None:
        """Note that a sequence ended, which changes gauges."""
        self._has_changed = True
