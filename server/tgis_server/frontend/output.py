"""From the engine's tokens to the answer of one input, in parts that every door renders: the only place that decides
what an answer says.

An ``Output`` is told of tokens by the router and asked for parts by the handler of its call; it does no I/O, waits for
nobody and knows no messages of any API. Text that a slow client has not fetched grows as one part; where generated
tokens were asked for, each keeps a part of its own.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tgis_server.errors import GenerationFailed, OutOfMemory, RequestError, Unavailable, with_status
from tgis_server.frontend.text.detokenizer import Detokenizer, PieceDecoder
from tgis_server.frontend.text.stop import StopMatcher
from tgis_server.frontend.validation import GenerationParams
from tgis_server.wire.messages import NO_TOKEN, FinishReason, RequestFailure, Submit, TokenDetail

GO_ON = FinishReason.NOT_FINISHED


class TopToken(NamedTuple):
    """A candidate for a token's place."""

    id: int
    piece: str
    logprob: float


class Token(NamedTuple):
    """A token as the client sees it: its vocabulary piece, and of the engine's facts those that were asked for."""

    id: int
    piece: str
    logprob: float = 0.0
    rank: int = 0
    top: Sequence[TopToken] = ()


@dataclass(slots=True)
class Part:
    """What a frame of a stream says, or a whole answer."""

    text: str = ""
    num_input: int = 0  # in what begins an answer and in what holds the input tokens
    num_generated: int = 0  # so far
    tokens: Sequence[Token] = ()
    input_tokens: Sequence[Token] = ()
    # Known in the last part, the seed in the first one too:
    end_reason: FinishReason = GO_ON
    stop_sequence: str = ""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TextSettings:
    """How this server turns tokens into text and pieces."""

    pieces: PieceDecoder
    get_piece: Callable[[int], str]


class Output:
    """The answer to one input, as far as it is known. Owned by the event loop."""

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
            submit: what the engine gets.
            on_change: called after every step that concerned this output; must be quick.
            echo: the input as the client sent it, where it is sent back.
        """
        self.submit = submit
        self.error: RequestError | None = None
        self.stop_reason = GO_ON
        self.num_generated = 0
        self.submitted_at = 0.0  # host monotonic clock, as all times here
        self.started_at: float | None = None  # first step
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None
        self.finished_at: float | None = None
        self._params = params
        self._get_piece = settings.get_piece
        self._on_change = on_change
        self._echo = echo
        self._detokenizer = Detokenizer(settings.pieces)
        self._matcher = StopMatcher(params.stop, include=params.include_stop_sequence) if params.stop else None
        self._parts: deque[Part] = deque()  # not taken yet
        self._prompt_details: list[TokenDetail] = []
        self._wants_tokens = submit.wanted.generated_tokens

    @property
    def is_finished(self) -> bool:
        """No more will come: it ended or failed."""
        return self.stop_reason is not GO_ON or self.error is not None

    @property
    def num_input(self) -> int:
        return len(self.submit.prompt_ids)

    # Told by the router

    def on_started(self, at: float) -> None:
        self.started_at = at

    def on_prompt_details(self, details: Sequence[TokenDetail]) -> None:
        self._prompt_details.extend(details)

    def on_token(self, token_id: int, reason: FinishReason, detail: TokenDetail | None, now: float) -> None:
        """A token (or ``NO_TOKEN``), and whether the engine ends the sequence with it."""
        text = matched = ""
        if token_id != NO_TOKEN:
            self.num_generated += 1
            self.last_token_at = now
            if self.first_token_at is None:
                self.first_token_at = now
            if reason is not FinishReason.EOS_TOKEN:  # a final end-of-sequence token never shows in the text
                text = self._detokenizer.push(token_id)
            if self._matcher:
                # Too early a match is ignored, and a deadline beats a match.
                is_late = reason is FinishReason.TIME_LIMIT
                counts = self.num_generated >= self.submit.sampling.min_new_tokens and not is_late
                text, matched = self._matcher.push(text, can_match=counts)
        if matched:
            reason = FinishReason.STOP_SEQUENCE
        elif reason is not GO_ON and self._matcher:
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
        if reason is not GO_ON:
            self._end(reason, matched, now)
        self._on_change(self)

    def on_failure(self, failure: RequestFailure) -> None:
        """The engine could not go on with this sequence."""
        cause = failure.text
        if self.num_generated and failure.status not in (OutOfMemory.status, Unavailable.status):
            cause = f"Error after generating {self.num_generated} tokens: {cause}"
        self.fail(with_status(failure.status, f"Request failed during generation: {cause}"))

    def fail(self, error: RequestError) -> None:
        """End without an answer; what was generated so far stays fetchable by a stream."""
        if not self.is_finished:
            self.error = error
            self._on_change(self)

    def _end(self, reason: FinishReason, stop_sequence: str, now: float) -> None:
        if reason is FinishReason.MAX_TOKENS and self.submit.max_new_tokens < self._params.max_new_tokens:
            reason = FinishReason.TOKEN_LIMIT  # the context ended, not what the client allowed
        self.stop_reason, self.finished_at = reason, now
        if not self._parts:
            self._parts.append(Part(num_generated=self.num_generated))
        last = self._parts[-1]
        last.end_reason, last.stop_sequence, last.seed = reason, stop_sequence, self.submit.seed

    # Asked by the handler

    def first_part(self) -> Part:
        """What a stream begins with, before anything was generated."""
        return Part(self._echo, num_input=self.num_input, seed=self.submit.seed)

    @property
    def wants_input_part(self) -> bool:
        return self.submit.wanted.input_tokens

    @property
    def is_input_part_due(self) -> bool:
        """The part with the input tokens can be made."""
        return self.wants_input_part and self.first_token_at is not None

    def input_part(self) -> Part:
        """A stream's part with the input tokens. Long prompts take a while; any thread may do it."""
        return Part(num_input=self.num_input, input_tokens=self._describe_input())

    def take_part(self) -> Part | None:
        """The next part of a stream, if one is due. After the one with the end reason none comes."""
        return self._parts.popleft() if self._parts else None

    def whole(self) -> Part:
        """The answer of a unary call, once finished. Facts about long inputs take a while; any thread may do it."""
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
        """Facts about the prompt. Nothing predicts its first token, so that has the logprob NaN."""
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
        """The contract: most likely first if logprobs are shown, otherwise in the order of the vocabulary."""
        tops, get_piece = zip(detail.top_ids, detail.top_logprobs, strict=True), self._get_piece
        if not has_logprobs:
            return [TopToken(token_id, get_piece(token_id), 0.0) for token_id, _ in sorted(tops)]
        return [TopToken(i, get_piece(i), logprob) for i, logprob in sorted(tops, key=most_likely_first)]


def most_likely_first(top: tuple[int, float]) -> tuple[float, int]:
    token_id, logprob = top
    return -logprob, token_id


def detokenizing_failed(cause: Exception) -> RequestError:
    error = GenerationFailed(f"Request failed during detokenization: {cause}")
    error.__cause__ = cause  # the line that the log gets for the input has its traceback
    return error
