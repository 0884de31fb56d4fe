"""What happened since the front-end was last told."""

from __future__ import annotations

from dataclasses import replace

from tgis_server.scheduler.sequence import Sequence
from tgis_server.scheduler.steps import Row
from tgis_server.wire.messages import FinishReason, RequestFailure, StepResult, StepStats, TokenDetail


class Report:
    """Gathers a ``StepResult``."""

    def __init__(self) -> None:
        self._result = StepResult()
        self._has_changed = False  # somebody left: gauges are no longer true

    @property
    def has_news(self) -> bool:
        """Whether there is something to tell beside the tokens of a step."""
        return self._has_changed or bool(self._result.failures)

    def clear(self) -> None:
        """Nobody wants to know what happened so far."""
        self._result = StepResult()

    def take(self, stats: StepStats) -> StepResult:
        """Everything since the last call."""
        result = replace(self._result, stats=stats)
        self._result = StepResult()
        self._has_changed = False
        return result

    def start(self, sequence: Sequence, now: float) -> None:
        """Its first step begins."""
        self._result.started.append((sequence.submit.request_id, now))

    def token(self, sequence: Sequence, token_id: int, reason: FinishReason, detail: TokenDetail | None = None) -> None:
        """It has one token more, or ended without one."""
        result = self._result
        if detail is not None:
            result.details[len(result.request_ids)] = detail
        result.request_ids.append(sequence.submit.request_id)
        result.token_ids.append(token_id)
        result.finish_reasons.append(reason)

    def prompt(self, row: Row, details: list[TokenDetail]) -> None:
        """Facts about prompt tokens; those that an earlier stay in a slot has reported are dropped."""
        sequence = row.sequence
        new = details[max(0, sequence.num_described - row.start) :]
        if new:
            sequence.num_described += len(new)
            self._result.prompt_details.append((sequence.submit.request_id, new))

    def fail(self, request_id: int, status: str, text: str) -> None:
        """It ended without an answer."""
        self._result.failures.append(RequestFailure(request_id, status, text))

    def leave(self) -> None:
        """Somebody is gone."""
        self._has_changed = True
