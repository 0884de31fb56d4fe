"""The plain messages between front-end, scheduler and engines.

Frozen dataclasses without protobuf, grpc or torch; they are all that the scheduler and its tests need. ``codec.py``
converts them to bytes for other processes. Token positions count from 0 at the first prompt token; all lists are in
batch order. Token ids stay packed arrays from the tokenizer to the rank: as lists of numbers, 512 waiting prompts of
128k tokens would take gigabytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

TokenIds: TypeAlias = "array[int]"  # an array of type code "I": four bytes per id


def pack_ids(ids: Iterable[int] = ()) -> TokenIds:
    """Pack token ids as the messages of this module store them."""
    return array("I", ids)


NO_TOKEN = -1
NO_ADAPTER = -1


class FinishReason(IntEnum):
    """Why a sequence ended, numbered as in ``fmaas.StopReason``."""

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
    """How the next token is chosen. The defaults mean greedy decoding without penalties."""

    temperature: float = 0.0  # 0 = greedy: top_k, top_p and typical_p are ignored
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
    """Which facts about tokens the engine computes in addition to the tokens."""

    logprobs: bool = False
    ranks: bool = False
    top_n: int = 0
    generated_tokens: bool = False  # the three above for generated tokens
    input_tokens: bool = False  # the same for prompt tokens, starting with the second

    @property
    def any(self) -> bool:
        return self.logprobs or self.ranks or self.top_n > 0


@dataclass(frozen=True, slots=True)
class TokenDetail:
    """Facts about one token, computed on rank 0; zero or empty unless requested."""

    logprob: float = 0.0
    rank: int = 0  # 1 + number of tokens with a strictly greater score
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Adapter:
    """Weights that are added to the model's for some requests."""

    id: str  # as clients name it
    kind: str  # one of the engine's ``Engine.adapters``
    digest: bytes  # of the content; caching and staging use this as the key, never the id
    path: str = ""  # where every rank reads it


@dataclass(frozen=True, slots=True)
class Grammar:
    """A constraint that the generated text must match."""

    kind: str  # regex, json_schema, json, choice or lark
    text: str


@dataclass(frozen=True, slots=True)
class Submit:
    """One sequence to generate, fully validated: the engine may trust every field."""

    request_id: int
    prompt_ids: TokenIds  # at least one token, already truncated; pad ids stand for virtual rows
    max_new_tokens: int  # at least 1; together with the prompt, at most the engine's max_sequence_length
    sampling: SamplingParams = field(default_factory=SamplingParams)
    wanted: Wanted = field(default_factory=Wanted)
    seed: int = 0  # uint64; together with the index of the generated token, determines the random draw
    end_ids: frozenset[int] = frozenset()  # end tokens of this request
    num_virtual: int = 0  # rows of a tuned prompt: the first ids of the prompt
    encoder_ids: TokenIds = field(default_factory=pack_ids)  # if not empty, prompt_ids are the decoder's start
    num_encoder_virtual: int = 0  # like num_virtual, for encoder_ids
    adapter: Adapter | None = None
    grammar: Grammar | None = None
    cache_salt: bytes = b""  # requests with different salts share no cached blocks
    deadline: float | None = None  # host monotonic clock, set when validation starts


@dataclass(frozen=True, slots=True)
class Cancel:
    """The client of this request has disconnected or wants no more. Unknown ids are ignored."""

    request_id: int


@dataclass(frozen=True, slots=True)
class Staged:
    """All ranks have read an adapter, or one of them failed to."""

    digest: bytes
    error: str = ""  # for the clients that asked for the adapter; empty on success


@dataclass(frozen=True, slots=True)
class NewSequence:
    """A sequence's first appearance in a plan, or its return after a preemption."""

    slot: int
    token_ids: TokenIds  # the prompt; after a preemption, the generated tokens too
    prompt_length: int  # the border between prompt and output never moves
    num_cached_tokens: int  # already computed: a prefix-cache hit
    sampling: SamplingParams
    wanted: Wanted
    seed: int = 0
    end_ids: frozenset[int] = frozenset()
    num_virtual: int = 0
    encoder_ids: TokenIds = field(default_factory=pack_ids)  # empty if another slot's encoding is shared
    num_encoder_virtual: int = 0
    cross_blocks: list[int] = field(default_factory=list)  # keys and values of the encoder's output
    num_encoder_tokens: int = 0  # tokens in these blocks
    adapter_place: int = NO_ADAPTER  # see Activation
    is_rope_long: bool = False  # rotate all positions with LongRoPE's long factors


@dataclass(frozen=True, slots=True)
class Activation:
    """Give a staged adapter a place whose previous adapter is no longer used by any sequence."""

    place: int  # 0 ... Capacity.max_adapters - 1
    digest: bytes


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step computes, as changes to the state left by the previous steps. Row order is batch order.

    For each slot, a runner keeps the token ids, the block table and the number of computed tokens. A row computes the
    next ``num_tokens`` tokens of its slot. Every rank applies a plan in this order: ``free``, ``activate``, ``new``,
    ``new_blocks``, ``encode``, rows.
    """

    step: int
    new: list[NewSequence] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)  # one per row
    num_tokens: list[int] = field(default_factory=list)  # per row: 1 for decode, usually more for a prefill chunk
    new_blocks: list[list[int]] = field(default_factory=list)  # per row: blocks appended to its table
    sample: list[bool] = field(default_factory=list)  # per row: False for a prefill chunk that is not the last
    free: list[int] = field(default_factory=list)  # slots to forget before running
    activate: list[Activation] = field(default_factory=list)  # cannot fail
    encode: list[int] = field(default_factory=list)  # slots whose encoder runs before the rows; each of them has a row
    allowance_s: float = 0.0  # the leader's prediction for this step, times a margin; 0 = no prediction

    @property
    def num_rows(self) -> int:
        return len(self.slots)

    @property
    def total_tokens(self) -> int:
        return sum(self.num_tokens)


# The allowed next tokens, by row of a plan: bit i % 8 of byte i // 8 stands for token i. Other rows are unconstrained.
Masks: TypeAlias = Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class StepTokens:
    """Rank 0's result for a plan."""

    token_ids: list[list[int]]  # per row: none for an unfinished prefill, otherwise one, or several when speculating
    details: dict[int, list[TokenDetail]] = field(default_factory=dict)  # row -> one per token of token_ids[row]
    # Row -> facts about token p + 1 for each prompt position p that this chunk computed, if p + 1 < prompt_length.
    prompt_details: dict[int, list[TokenDetail]] = field(default_factory=dict)
    forward_s: float = 0.0  # time of the forward pass and the sampling
    not_finite: list[int] = field(default_factory=list)  # rows with NaN or infinity


@dataclass(frozen=True, slots=True)
class StepStats:
    """The only source of the engine's metrics: gauges as of the end of the step, counts of this step."""

    decode_rows: int = 0
    prefill_rows: int = 0
    prefill_tokens: int = 0
    num_running: int = 0
    num_waiting: int = 0
    running_tokens: int = 0  # tokens held by running sequences
    remaining_tokens: int = 0  # the most tokens that any running sequence may still generate
    used_blocks: int = 0
    cached_blocks: int = 0  # in the prefix cache, whether or not they are used
    num_started: int = 0  # sequences that got their first slot in this step
    preemptions: int = 0
    cached_tokens: int = 0  # prefix-cache hits of sequences that started in this step
    plan_s: float = 0.0
    step_s: float = 0.0
    forward_s: float = 0.0
    out_of_memory: bool = False


@dataclass(frozen=True, slots=True)
class RequestFailure:
    """The end of one request with an error; ``status`` is the name of a gRPC status."""

    request_id: int
    status: str
    text: str


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step's output for the front-end: columns with one entry per generated token or end of a sequence."""

    request_ids: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)  # -1: the sequence ended without another token
    finish_reasons: list[FinishReason] = field(default_factory=list)
    details: dict[int, TokenDetail] = field(default_factory=dict)  # column -> facts
    prompt_details: list[tuple[int, list[TokenDetail]]] = field(default_factory=list)  # request, consecutive positions
    started: list[tuple[int, float]] = field(default_factory=list)  # request, start of its first step (monotonic clock)
    failures: list[RequestFailure] = field(default_factory=list)
    stats: StepStats = field(default_factory=StepStats)
