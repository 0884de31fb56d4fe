"""What is measured: one ``Work`` for each line of the result, and what it costs at least."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tgis_cli.bench.lists import read_list
from tgis_server.engines.api import Capacity
from tgis_server.engines.door import StepWork
from tgis_server.wire.messages import SamplingParams, Wanted
from tgis_server.words.sizes import format_count

GREEDY = "greedy"
MAX_STEPS = 64  # decode steps of one round, so that the context hardly grows
# name -> how tokens are chosen, and which facts about them are computed
VARIANTS: Mapping[str, tuple[SamplingParams, Wanted]] = {
    GREEDY: (SamplingParams(), Wanted()),
    "sampled": (SamplingParams(temperature=0.8, top_k=50, top_p=0.95), Wanted()),
    "details": (SamplingParams(), Wanted(logprobs=True, ranks=True, top_n=5, generated_tokens=True)),
}


@dataclass(frozen=True, slots=True)
class Work:
    """One configuration."""

    kind: Literal["decode", "prefill"]
    rows: int
    tokens: int  # decode: already in the cache of each row; prefill: of the prompt
    variant: str = GREEDY

    @property
    def title(self) -> str:
        if self.kind == "prefill":
            return f"prefill, {format_count(self.tokens, 'token')}"
        how = "" if self.variant == GREEDY else f", {self.variant}"
        return f"decode, {format_count(self.rows, 'row')} at {self.tokens:,}{how}"

    @property
    def length(self) -> int:
        """The length of its longest sequence, in tokens."""
        return self.tokens + (MAX_STEPS if self.kind == "decode" else 0) + 1

    def num_blocks(self, block_size: int) -> int:
        return self.rows * -(-self.length // block_size)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how often."""

    works: tuple[Work, ...]
    rounds: int  # each measures every work once, so that a disturbance does not affect only one of them

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Plan:
        return cls(tuple(Work(**work) for work in facts["works"]), facts["rounds"])


def read_sizes(text: str, flag: str) -> tuple[int, ...]:
    """Whole numbers; none for an empty text.

    Raises:
        UsageError: it is not a list of different numbers above 0.
    """
    return read_list(text, flag, int, "whole numbers above 0, such as 1,8,32") if text.strip() else ()


def list_works(rows: Sequence[int], contexts: Sequence[int], prefills: Iterable[int]) -> Iterator[Work]:
    """Prefills, decode steps at each size, and the other ways to sample at the shortest context."""
    yield from (Work("prefill", 1, length) for length in prefills)
    yield from (Work("decode", count, context) for context in contexts for count in rows)
    if contexts:
        others = [name for name in VARIANTS if name != GREEDY]
        yield from (Work("decode", count, min(contexts), name) for name in others for count in rows)


def why_left_out(work: Work, capacity: Capacity) -> str | None:
    """A sentence, if the loaded engine has no room for a work."""
    if work.length > capacity.max_sequence_length:
        return (
            f"{work.title} is left out: it needs sequences of {work.length:,} tokens, but this model allows at most "
            f"{capacity.max_sequence_length:,} (--max-sequence-length)."
        )
    if capacity.num_blocks and work.num_blocks(capacity.block_size) > capacity.num_blocks:
        need, room = work.num_blocks(capacity.block_size) * capacity.block_size, capacity.num_blocks
        return (
            f"{work.title} is left out: it needs room for the keys and values of {need:,} tokens, but the cache "
            f"holds {room * capacity.block_size:,} (--kv-cache-memory)."
        )
    return None


@dataclass(frozen=True, slots=True)
class Cost:
    """What one repetition of a work reads and computes at least: a decode step, or a whole prefill."""

    read_bytes: float
    flops: float


@dataclass(frozen=True, slots=True)
class Measured:
    """The times of one work."""

    work: Work
    steps: int = 0  # in each round
    seconds: list[float] = field(default_factory=list)  # of one step or one prefill, the median of each round


def cost_of(work: Work, step: StepWork, *, num_steps: int, chunk_tokens: int) -> Cost:
    """
    Args:
        step: what the steps of one device cost.
        num_steps: decode steps in a round, in which the context grows.
        chunk_tokens: the most tokens of one step of a prefill.
    """
    if work.kind == "decode":
        keys = work.tokens + (num_steps + 1) / 2
        return Cost(
            step.read_bytes(work.rows) + work.rows * kv_bytes(step, keys),
            work.rows * (step.token_flops + step.head_flops + pair_flops(step, 1, keys)),
        )
    total = Cost(0, step.head_flops)
    for start in range(0, work.tokens, chunk_tokens):
        count = min(chunk_tokens, work.tokens - start)
        total = Cost(
            total.read_bytes + step.read_bytes(count) + kv_bytes(step, start + count),
            total.flops + count * step.token_flops + pair_flops(step, count, start + (count + 1) / 2),
        )
    return total


def kv_bytes(step: StepWork, keys: float) -> float:
    return step.layer_kv_bytes * sum(seen_keys(step, keys))


def pair_flops(step: StepWork, tokens: int, keys: float) -> float:
    """Attention of some tokens, each of which sees this many keys."""
    return tokens * step.layer_pair_flops * sum(seen_keys(step, keys))


def seen_keys(step: StepWork, keys: float) -> Iterator[float]:
    """The keys that a token sees in each layer."""
    return (min(keys, window or keys) for window in step.windows)


def add_up(ranks: Sequence[StepWork]) -> StepWork:
    """The work of ranks that share a machine's memory and cores."""
    return StepWork(
        weight_bytes=sum(rank.weight_bytes for rank in ranks),
        token_flops=sum(rank.token_flops for rank in ranks),
        head_flops=sum(rank.head_flops for rank in ranks),
        layer_kv_bytes=sum(rank.layer_kv_bytes for rank in ranks),
        layer_pair_flops=sum(rank.layer_pair_flops for rank in ranks),
        windows=ranks[0].windows,
        expert_bytes=sum(rank.expert_bytes for rank in ranks),
        expert_share=ranks[0].expert_share,
    )
