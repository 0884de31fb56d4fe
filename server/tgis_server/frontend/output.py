"""Builds the answer to one input from the engine's tokens, in parts that every door renders. No other module decides
the contents of an answer.

The router pushes tokens into an ``Output``, and the handler of its call takes parts out. An ``Output`` does no I/O,
never waits and is independent of any API's messages. Text that a slow client has not fetched accumulates in one part;
if generated tokens were requested, each token stays in a separate part.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tgis_server.errors import GenerationFailed, OutOfMemory, RequestError, Unavailable, with_status
from tgis_server.frontend.text import Detokenizer, PieceDecoder, StopMatcher
from tgis_server.frontend.validation import GenerationParams
from tgis_server.wire.messages import NO_TOKEN, FinishReason, RequestFailure, Submit, TokenDetail

UNFINISHED = FinishReason.NOT_FINISHED


class TopToken(NamedTuple):
    """A candidate for the position of a token."""

    id: int
    piece: str
    logprob: float


class Token(NamedTuple):
    """A token as the client sees it: its vocabulary piece and the requested details."""

    id: int
    piece: str
    logprob: float = 0.0
    rank: int = 0
    top: Sequence[TopToken] = ()


@dataclass(slots=True)
class Part:
    """The contents of a stream's frame, or of a whole answer."""

    text: str = ""
    num_input: int = 0  # set in the first part and in the one with the input tokens
    num_generated: int = 0  # so far
    tokens: Sequence[Token] = ()
    input_tokens: Sequence[Token] = ()
    # Set in the last part; the seed is set in the first one too:
    end_reason: FinishReason = UNFINISHED
    stop_sequence: str = ""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TextSettings:
    """How this server turns tokens into text and pieces."""

    pieces: PieceDecoder
    get_piece: Callable[[int], str]


class Output:
    """The answer to one input, as far as it has been generated. Owned by the event loop."""

    def __init__(
        self,
        submit: Submit,
        params: GenerationParams,
        settings: TextSettings,
        on_change: Callable[[Output], None],
        *,
        echo: str = "",
    ) -> None:
        """
        Args:
            submit: the request to the engine.
            on_change: called after every step that changed this output; must be quick.
            echo: the input as the client sent it, if it is to be sent back.
        """
        self.submit = submit
        self.error: RequestError | None = None
        self.stop_reason = UNFINISHED
        self.num_generated = 0
        self.submitted_at = 0.0  # host monotonic clock, like all times here
        self.started_at: float | None = None  # when its first step began
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None
        self.finished_at: float | None = None
        self._params = params
        self._get_piece = settings.get_piece
        self._on_change = on_change
        self._echo = echo
        self._detokenizer = Detokenizer(settings.pieces)
        self._matcher = StopMatcher(params.stop, include=params.include_stop_sequence) if params.stop else None
        self._parts: deque[Part] = deque()  # parts that have not been taken yet
        self._prompt_details: list[TokenDetail] = []
        self._wants_tokens = submit.wanted.generated_tokens

    @property
    def is_finished(self) -> bool:
        """Whether the output has ended or failed: nothing more will come."""
        return self.stop_reason is not UNFINISHED or self.error is not None

    @property
    def num_input(self) -> int:
        return len(self.submit.prompt_ids)

    # Called by the router

    def on_started(self, at: float) -> None:
        self.started_at = at

    def on_prompt_details(self, details: Sequence[TokenDetail]) -> None:
        self._prompt_details.extend(details)

    def on_token(self, token_id: int, reason: FinishReason, detail: TokenDetail | None, now: float) -> None:
        """Add a token (or ``NO_TOKEN``); ``reason`` says whether the engine ends the sequence with it."""
        text = matched = ""
        if token_id != NO_TOKEN:
            self.num_generated += 1
            self.last_token_at = now
            if self.first_token_at is None:
                self.first_token_at = now
            if reason is not FinishReason.EOS_TOKEN:  # a final end-of-sequence token never appears in the text
                text = self._detokenizer.push(token_id)
            if self._matcher:
                # A match before min_new_tokens is ignored, and a deadline takes precedence over a match.
                is_late = reason is FinishReason.TIME_LIMIT
                counts = self.num_generated >= self.submit.sampling.min_new_tokens and not is_late
                text, matched = self._matcher.push(text, can_match=counts)
        if matched:
            reason = FinishReason.STOP_SEQUENCE
        elif reason is not UNFINISHED and self._matcher:
            text += self._matcher.flush()
        if self._wants_tokens:
            tokens = [] if token_id == NO_TOKEN else [self._describe(token_id, detail)]
            if text or tokens:
                self._parts.append(Part(text, num_generated=self.num_generated, tokens=tokens))
        elif self._parts:
            last = self._parts[-1]
            last.text += text
            last.num_generated = self.num_generated
        elif text:
            self._parts.append(Part(text, num_generated=self.num_generated))
        if reason is not UNFINISHED:
            self._end(reason, matched, now)
        self._on_change(self)

    def on_failure(self, failure: RequestFailure) -> None:
        """The engine could not continue this sequence."""
        cause = failure.text
        if self.num_generated and failure.status not in (OutOfMemory.status, Unavailable.status):
            cause = f"Error after generating {self.num_generated} tokens: {cause}"
        self.fail(with_status(failure.status, f"Request failed during generation: {cause}"))

    def fail(self, error: RequestError) -> None:
        """End without an answer; a stream can still fetch what was generated."""
        if not self.is_finished:
            self.error = error
            self._on_change(self)

    def _end(self, reason: FinishReason, stop_sequence: str, now: float) -> None:
        if reason is FinishReason.MAX_TOKENS and self.submit.max_new_tokens < self._params.max_new_tokens:
            reason = FinishReason.TOKEN_LIMIT  # the limit was the context's, not the client's
        self.stop_reason, self.finished_at = reason, now
        if not self._parts:
            self._parts.append(Part(num_generated=self.num_generated))
        last = self._parts[-1]
        last.end_reason, last.stop_sequence, last.seed = reason, stop_sequence, self.submit.seed

    # Called by the handler

    def first_part(self) -> Part:
        """The first part of a stream, before anything is generated."""
        return Part(self._echo, num_input=self.num_input, seed=self.submit.seed)

    @property
    def wants_input_part(self) -> bool:
        return self.submit.wanted.input_tokens

    @property
    def is_input_part_due(self) -> bool:
        """Whether the part with the input tokens can be built."""
        return self.wants_input_part and self.first_token_at is not None

    def input_part(self) -> Part:
        """A stream's part with the input tokens. Slow for long prompts; callable from any thread."""
        return Part(num_input=self.num_input, input_tokens=self._describe_input())

    def take_part(self) -> Part | None:
        """The next part of a stream, if one is due. The part with the end reason is the last."""
        return self._parts.popleft() if self._parts else None

    def whole(self) -> Part:
        """The answer of a unary call, once finished. Slow if it has a long input's tokens; callable from any thread."""
        parts = self._parts
        return Part(
            text=self._echo + "".join([part.text for part in parts]),
            num_input=self.num_input,
            num_generated=self.num_generated,
            tokens=[token for part in parts for token in part.tokens],
            input_tokens=self._describe_input() if self.is_input_part_due else (),
            end_reason=self.stop_reason,
            stop_sequence=parts[-1].stop_sequence,
            seed=self.submit.seed,
        )

    def _describe_input(self) -> list[Token]:
        """Details of the prompt's tokens. Nothing predicts the first one, so its logprob is NaN."""
        first, *others = self.submit.prompt_ids
        details = [*self._prompt_details, *[None] * len(others)]
        logprob = math.nan if self.submit.wanted.logprobs else 0.0
        return [Token(first, self._get_piece(first), logprob), *map(self._describe, others, details)]

    def _describe(self, token_id: int, detail: TokenDetail | None) -> Token:
        piece, wanted = self._get_piece(token_id), self.submit.wanted
        if detail is None:
            return Token(token_id, piece)
        has_logprobs = wanted.logprobs
        logprob = detail.logprob if has_logprobs else 0.0
        top = self._describe_top(detail, has_logprobs=has_logprobs) if wanted.top_n else ()
        return Token(token_id, piece, logprob, detail.rank if wanted.ranks else 0, top)

    def _describe_top(self, detail: TokenDetail, *, has_logprobs: bool) -> list[TopToken]:
        """The top tokens in the contract's order: most likely first if logprobs are shown, otherwise by token id."""
        tops, get_piece = zip(detail.top_ids, detail.top_logprobs, strict=True), self._get_piece
        if not has_logprobs:
            return [TopToken(token_id, get_piece(token_id), 0.0) for token_id, _ in sorted(tops)]
        return [TopToken(i, get_piece(i), logprob) for i, logprob in sorted(tops, key=most_likely_first)]


def most_likely_first(top: tuple[int, float]) -> tuple[float, int]:
    token_id, logprob = top
    return -logprob, token_id


def detokenizing_failed(cause: Exception) -> RequestError:
    error = GenerationFailed(f"Request failed during detokenization: {cause}")
    error.__cause__ = cause  # logged with the line of this input
    return error
