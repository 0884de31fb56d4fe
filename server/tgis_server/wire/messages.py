"""The plain data that flows between front-end, scheduler and engines.

Frozen dataclasses without protobuf, grpc or torch: the scheduler and its tests read nothing else. ``codec.py`` turns
them into bytes at process borders. Token positions count from the first prompt token; all lists are in batch order.
Token ids are packed arrays from the tokenizer to the rank: as lists of numbers, 512 waiting prompts of 128k tokens
would take gigabytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

TokenIds: TypeAlias = "array[int]"  # of type code "I": four bytes per id


def pack_ids(ids: Iterable[int] = ()) -> TokenIds:
    """Token ids as the messages of this module hold them."""
    return array("I", ids)


NO_TOKEN = -1
NO_ADAPTER = -1


class FinishReason(IntEnum):
    """Why a sequence ended; the numbers are those of ``fmaas.StopReason``."""

    NOT_FINISHED = 0
    MAX_TOKENS = 1
    EOS_TOKEN = 2
    CANCELLED = 3
    TIME_LIMIT = 4
    STOP_SEQUENCE = 5
    TOKEN_LIMIT = 6
    ERROR = 7


@dataclass(frozen=True, slots=True)
class LengthPenalty:
    """Raise the end-of-sequence logit by ``abs(logit) * (decay_factor ** t - 1)`` after ``start_index`` tokens."""

    start_index: int
    decay_factor: float


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. The defaults are greedy decoding without penalties."""

    temperature: float = 0.0  # 0 = greedy: top_k, top_p and typical_p are not looked at
    top_k: int = 0  # 0 = off
    top_p: float = 1.0  # 1 = off
    typical_p: float = 1.0  # 1 = off
    repetition_penalty: float = 1.0  # 1 = off
    length_penalty: LengthPenalty | None = None
    min_new_tokens: int = 0

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which facts about tokens the engine computes besides the tokens themselves."""

    logprobs: bool = False
    ranks: bool = False
    top_n: int = 0
    generated_tokens: bool = False  # the three above for generated tokens
    input_tokens: bool = False  # the three above for prompt tokens from the second on

    @property
    def any(self) -> bool:
        return self.logprobs or self.ranks or self.top_n > 0


@dataclass(frozen=True, slots=True)
class TokenDetail:
    """Facts about one token, computed on rank 0. What was not asked for is zero or empty."""

    logprob: float = 0.0
    rank: int = 0  # 1 + number of tokens with a strictly greater score
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Adapter:
    """Weights that are added to the model's for some requests."""

    id: str  # as clients name it
    kind: str  # one of those that ``RunnerCaps.adapters`` names
    digest: bytes  # of its content: what is cached and staged is found by this, never by the id
    path: str = ""  # where every rank reads it


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the generated text must match."""

    kind: str  # regex, json_schema, json, choice or lark
    text: str


@dataclass(frozen=True, slots=True)
class Submit:
    """One sequence to generate, fully validated: the engine may trust every field."""

    request_id: int
    prompt_ids: TokenIds  # at least one token, already truncated; virtual rows stand in it as pad ids
    max_new_tokens: int  # at least 1; with the prompt at most the engine's max_sequence_length
    sampling: SamplingParams = field(default_factory=SamplingParams)
    wanted: Wanted = field(default_factory=Wanted)
    seed: int = 0  # uint64; with the index of the generated token it defines the random draw
    end_ids: frozenset[int] = frozenset()  # end tokens of this request
    num_virtual: int = 0  # rows of a tuned prompt: the first ids of the prompt
    encoder_ids: TokenIds = field(default_factory=pack_ids)  # if not empty, the prompt is what the decoder begins with
    num_encoder_virtual: int = 0  # as num_virtual, of the encoder's ids
    adapter: Adapter | None = None
    grammar: Grammar | None = None
    cache_salt: bytes = b""  # requests with different ones share no cached blocks
    deadline: float | None = None  # host monotonic clock, set when validation starts


@dataclass(frozen=True, slots=True)
class Cancel:
    """The client of this request is gone or has what it needs. Unknown ids are ignored."""

    request_id: int


@dataclass(frozen=True, slots=True)
class Staged:
    """Every rank has read an adapter, or one of them could not."""

    digest: bytes
    error: str = ""  # for the clients that asked for it; empty where all went well


@dataclass(frozen=True, slots=True)
class NewSequence:
    """A sequence's first appearance in a plan, or its return after a preemption."""

    slot: int
    token_ids: TokenIds  # prompt; after a preemption prompt + generated
    prompt_length: int  # the border between the two never moves
    num_cached_tokens: int  # computed already: prefix-cache hit
    sampling: SamplingParams
    wanted: Wanted
    seed: int = 0
    end_ids: frozenset[int] = frozenset()
    num_virtual: int = 0
    encoder_ids: TokenIds = field(default_factory=pack_ids)  # empty where other slots' encoding is shared
    num_encoder_virtual: int = 0
    cross_blocks: list[int] = field(default_factory=list)  # keys and values of the encoder's output
    num_encoder_tokens: int = 0  # how many tokens these hold
    adapter_place: int = NO_ADAPTER  # see Activation
    is_rope_long: bool = False  # all its positions are rotated with LongRoPE's long factors


@dataclass(frozen=True, slots=True)
class Activation:
    """An adapter that every rank has staged gets a place, whose former adapter no sequence uses any more."""

    place: int  # 0 ... Capacity.max_adapters - 1
    digest: bytes


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step computes, as differences to the steps before. Row order is batch order.

    A runner keeps, per slot: the token ids, the block table and how many tokens are computed. A row computes the next
    ``num_tokens`` tokens of its slot. Every rank applies a plan in this order: ``free``, ``activate``, ``new``,
    ``new_blocks``, ``encode``, rows.
    """

    step: int
    new: list[NewSequence] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)  # one per row
    num_tokens: list[int] = field(
        default_factory=list
    )  # computed for that row: 1 in a decode row, more in most prefill chunks
    new_blocks: list[list[int]] = field(default_factory=list)  # blocks appended to that row's table
    sample: list[bool] = field(default_factory=list)  # False for a prefill chunk that is not the last
    free: list[int] = field(default_factory=list)  # slots to forget before running
    activate: list[Activation] = field(default_factory=list)  # cannot fail
    encode: list[int] = field(default_factory=list)  # slots whose encoder runs before the rows; each of them has one
    allowance_s: float = 0.0  # what the leader predicts for this step, times a margin; 0 = no prediction

    @property
    def num_rows(self) -> int:
        return len(self.slots)

    @property
    def total_tokens(self) -> int:
        return sum(self.num_tokens)


# Which tokens may follow, by row of a plan: bit i % 8 of byte i // 8 is token i. Rows that are not in it are free.
Masks: TypeAlias = Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class StepTokens:
    """Rank 0's answer to a plan."""

    token_ids: list[list[int]]  # per row: no token for an unfinished prefill, one, or several when speculating
    details: dict[int, list[TokenDetail]] = field(default_factory=dict)  # row -> one per token of token_ids[row]
    prompt_details: dict[int, list[TokenDetail]] = field(default_factory=dict)
    # row -> for each computed prompt position p of this chunk with p + 1 < prompt_length: facts about token p + 1
    forward_s: float = 0.0  # time of the model forward and the sampling
    not_finite: list[int] = field(default_factory=list)  # rows in which NaN or infinity was computed


@dataclass(frozen=True, slots=True)
class StepStats:
    """The only source of the engine's metrics; gauges hold after the step, counts are of this step."""

    decode_rows: int = 0
    prefill_rows: int = 0
    prefill_tokens: int = 0
    num_running: int = 0
    num_waiting: int = 0
    running_tokens: int = 0  # tokens held by running sequences
    remaining_tokens: int = 0  # most tokens that any running sequence may still generate
    used_blocks: int = 0
    num_started: int = 0  # sequences that got their first slot in this step
    preemptions: int = 0
    cached_tokens: int = 0  # prefix-cache hits of sequences that started in this step
    plan_s: float = 0.0
    step_s: float = 0.0
    forward_s: float = 0.0
    out_of_memory: bool = False


@dataclass(frozen=True, slots=True)
class RequestFailure:
    """One request ended without an answer; ``status`` is a gRPC status name."""

    request_id: int
    status: str
    text: str


@dataclass(frozen=True, slots=True)
class StepResult:
    """To the front-end: columns, one entry per produced token or end of a sequence."""

    request_ids: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)  # -1: the sequence ended without a further token
    finish_reasons: list[FinishReason] = field(default_factory=list)
    details: dict[int, TokenDetail] = field(default_factory=dict)  # column -> facts
    prompt_details: list[tuple[int, list[TokenDetail]]] = field(default_factory=list)  # request, consecutive positions
    started: list[tuple[int, float]] = field(default_factory=list)  # request, host monotonic clock of its first step
    failures: list[RequestFailure] = field(default_factory=list)
    stats: StepStats = field(default_factory=StepStats)
