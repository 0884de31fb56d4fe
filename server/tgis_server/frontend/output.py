"""From the engine's tokens to the answer of one input. Unary and streaming calls share it.

An ``Output`` is told of tokens by the router and asked for messages by the handler of its call; it does no I/O and
waits for nobody. Text that a slow client has not fetched grows as one piece; where generated tokens were asked for,
each keeps a frame of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tgis_server.errors import GenerationFailed, OutOfMemory, RequestError, Unavailable, with_status
from tgis_server.frontend.detokenizer import Detokenizer, PieceDecoder
from tgis_server.frontend.stop import StopMatcher, StopSequences
from tgis_server.frontend.validation import GenerationParams
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.messages import NO_TOKEN, Failure, FinishReason, Submit, TokenDetail, TokenIds, Wanted


@dataclass(frozen=True, slots=True)
class GenerationInput:
    """One input of a call, ready to be generated from."""

    request_id: int
    text: str  # as the client sent it; empty unless it is sent back
    token_ids: TokenIds  # truncated
    params: GenerationParams
    seed: int  # 0 when greedy
    max_new_tokens: int  # what may be generated; less than params.max_new_tokens if the context is too short for that
    deadline: float | None
    end_ids: frozenset[int]
    stop: StopSequences | None  # params.stop_sequences, compiled; None where there are none

    def to_submit(self) -> Submit:
        """What the engine needs to know of it."""
        return Submit(
            request_id=self.request_id,
            prompt_ids=self.token_ids,
            max_new_tokens=self.max_new_tokens,
            sampling=self.params.sampling,
            seed=self.seed,
            end_ids=self.end_ids,
            wanted=self.params.wanted,
            deadline=self.deadline,
        )


@dataclass(frozen=True, slots=True)
class TextSettings:
    """How this server turns tokens into text and pieces."""

    pieces: PieceDecoder
    get_piece: Callable[[int], str]


@dataclass(slots=True)
class _Part:
    """What one frame of a stream says."""

    text: str
    num_generated: int
    tokens: list[pb.TokenInfo]


class Output:
    """The answer to one input, as far as it is known. Owned by the event loop."""

    def __init__(self, source: GenerationInput, settings: TextSettings, on_change: Callable[[Output], None]) -> None:
        """``on_change`` is called after every step that concerned this output; it must be quick."""
        self.source = source
        self.error: RequestError | None = None
        self.stop_reason = FinishReason.NOT_FINISHED
        self.stop_sequence = ""
        self.num_generated = 0
        self.started_at: float | None = None  # first step, host monotonic clock
        self.first_token_at: float | None = None
        self.finished_at: float | None = None
        self._settings = settings
        self._on_change = on_change
        self._detokenizer = Detokenizer(settings.pieces)
        include = source.params.include_stop_sequence
        self._matcher = StopMatcher(source.stop, include=include) if source.stop else None
        self._parts: list[_Part] = []  # not fetched yet
        self._prompt_details: list[TokenDetail] = []
        self._is_prompt_done = False
        self._wants_input_frame = source.params.wanted.input_tokens

    @property
    def is_finished(self) -> bool:
        """No more will come: it ended or failed."""
        return self.stop_reason is not FinishReason.NOT_FINISHED or self.error is not None

    # Told by the router

    def on_started(self, at: float) -> None:
        self.started_at = at

    def on_prompt_details(self, details: Sequence[TokenDetail]) -> None:
        self._prompt_details.extend(details)

    def on_token(self, token_id: int, reason: FinishReason, detail: TokenDetail | None, now: float) -> None:
        """A token (or ``NO_TOKEN``), and whether the engine ends the sequence with it."""
        params = self.source.params
        text, matched = "", ""
        tokens: list[pb.TokenInfo] = []
        if token_id != NO_TOKEN:
            self._is_prompt_done = True
            self.num_generated += 1
            self.first_token_at = self.first_token_at or now
            if reason is not FinishReason.EOS_TOKEN:  # a final end-of-sequence token never shows in the text
                text = self._detokenizer.push(token_id)
            if self._matcher:
                # Too early a match is ignored, and a deadline beats a match.
                counts = self.num_generated >= params.sampling.min_new_tokens and reason is not FinishReason.TIME_LIMIT
                text, matched = self._matcher.push(text, can_match=counts)
            if params.wanted.generated_tokens:
                tokens = [token_info(self._settings.get_piece, params.wanted, token_id, detail)]
        if matched:
            reason, self.stop_sequence = FinishReason.STOP_SEQUENCE, matched
        elif reason is not FinishReason.NOT_FINISHED and self._matcher:
            text += self._matcher.flush()
        if reason is FinishReason.MAX_TOKENS and self.source.max_new_tokens < params.max_new_tokens:
            reason = FinishReason.TOKEN_LIMIT  # the context ended, not what the client allowed
        self._add_part(text, tokens)
        self.stop_reason = reason
        if self.is_finished:
            self.finished_at = now
        self._on_change(self)

    def on_failure(self, failure: Failure) -> None:
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

    def _add_part(self, text: str, tokens: list[pb.TokenInfo]) -> None:
        has_own_frame = self.source.params.wanted.generated_tokens
        if self._parts and not has_own_frame:
            last = self._parts[-1]
            last.text += text
            last.num_generated = self.num_generated
        elif text or tokens:
            self._parts.append(_Part(text, self.num_generated, tokens))

    # Asked by the handler

    def first_frame(self) -> pb.GenerationResponse:
        """What a stream begins with, before anything was generated."""
        return pb.GenerationResponse(
            input_token_count=len(self.source.token_ids),
            seed=self.source.seed,
            text=self.source.text if self.source.params.input_text else "",
        )

    @property
    def is_input_frame_due(self) -> bool:
        """A stream's frame of input tokens can be made and was not taken yet."""
        return self._wants_input_frame and self._is_prompt_done

    def take_input_frame(self) -> pb.GenerationResponse:
        """The frame of input tokens. Long prompts take a while; any thread may do it, once."""
        self._wants_input_frame = False
        infos = self._input_tokens()
        return pb.GenerationResponse(input_token_count=len(infos), input_tokens=infos)

    def take_frames(self) -> list[pb.GenerationResponse]:
        """The other frames of a stream that are due and were not taken yet."""
        parts, self._parts = self._parts, []
        is_over = self.stop_reason is not FinishReason.NOT_FINISHED
        if is_over and not parts:
            parts = [_Part("", self.num_generated, [])]
        return [self._to_frame(part, is_last=is_over and part is parts[-1]) for part in parts]

    def _to_frame(self, part: _Part, *, is_last: bool) -> pb.GenerationResponse:
        return pb.GenerationResponse(
            text=part.text,
            generated_token_count=part.num_generated,
            tokens=part.tokens,
            stop_reason=self.stop_reason.name if is_last else None,
            stop_sequence=self.stop_sequence if is_last else "",
            seed=self.source.seed if is_last else 0,
        )

    def to_response(self) -> pb.GenerationResponse:
        """The answer of a unary call, once finished; the parts of a stream must not have been taken."""
        params = self.source.params
        text = "".join(part.text for part in self._parts)
        return pb.GenerationResponse(
            input_token_count=len(self.source.token_ids),
            generated_token_count=self.num_generated,
            text=self.source.text + text if params.input_text else text,
            stop_reason=self.stop_reason.name,
            stop_sequence=self.stop_sequence,
            seed=self.source.seed,
            tokens=[token for part in self._parts for token in part.tokens],
            input_tokens=self._input_tokens() if params.wanted.input_tokens and self._is_prompt_done else [],
        )

    def _input_tokens(self) -> list[pb.TokenInfo]:
        """Facts about the prompt. Nothing predicts its first token, so that has the logprob NaN."""
        wanted, get_piece = self.source.params.wanted, self._settings.get_piece
        first, *others = self.source.token_ids
        details = [*self._prompt_details, *[None] * len(others)]
        infos = [pb.TokenInfo(text=get_piece(first), logprob=math.nan if wanted.logprobs else 0.0)]
        infos += [
            token_info(get_piece, wanted, token_id, detail) for token_id, detail in zip(others, details, strict=False)
        ]
        return infos


def token_info(
    get_piece: Callable[[int], str], wanted: Wanted, token_id: int, detail: TokenDetail | None
) -> pb.TokenInfo:
    """A token as the client sees it: its piece, and of the engine's facts those that were asked for."""
    info = pb.TokenInfo(text=get_piece(token_id))
    if detail is None:
        return info
    if wanted.logprobs:
        info.logprob = detail.logprob
    if wanted.ranks:
        info.rank = detail.rank
    if wanted.top_n:
        tops = zip(detail.top_ids, detail.top_logprobs, strict=True)
        # The contract: most likely first if logprobs are shown, otherwise in the order of the vocabulary.
        for top_id, logprob in sorted(tops, key=lambda top: (-top[1], top[0]) if wanted.logprobs else top):
            info.top_tokens.add(text=get_piece(top_id), logprob=logprob if wanted.logprobs else 0.0)
    return info


def detokenizing_failed(cause: Exception) -> RequestError:
    error = GenerationFailed(f"Request failed during detokenization: {cause}")
    error.__cause__ = cause  # the line that the log gets for the input has its traceback
    return error
