"""One request inside the scheduler: its tokens, its KV blocks, and how far it is.

::

    token_ids        [ prompt ........ | generated ... ]        committed; grows in commit
    num_in_flight                                      [+1]     sampled by a launched step, not yet committed
    num_planned      [ computed by launched steps ..... ]       the next row computes from here
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from tgis_server.scheduler.blocks import cache_root, chain_keys
from tgis_server.wire.messages import Submit, TokenIds, pack_ids


class State(Enum):
    WAITING = "waiting"  # in the queue: new, or preempted
    PREFILLING = "prefilling"  # has a slot; known tokens are still to be computed
    RUNNING = "running"  # has a slot; one token per step
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """Mutable; owned by the scheduler alone."""

    submit: Submit
    arrival: int  # place in the order of arrival; never changes
    root_key: bytes
    max_blocks: int  # of its prompt and the longest output
    token_ids: TokenIds = field(default_factory=pack_ids)
    state: State = State.WAITING
    slot: int = -1
    blocks: list[int] = field(default_factory=list)
    num_sent_blocks: int = 0  # beginning of the block table that the runner knows already
    num_planned: int = 0
    num_in_flight: int = 0
    prefill_end: int = 0  # tokens known when it got its slot: before this, rows are prefill
    residence: int = 0  # counts its stays in a slot; a row of an earlier stay no longer speaks for its blocks
    keys: list[bytes] = field(default_factory=list)  # chain keys of its full blocks, as far as they were needed
    num_published: int = 0  # beginning of the block table that the prefix cache knows
    num_described: int = 0  # prompt tokens whose facts were reported; a recomputation gives them again
    has_started: bool = False
    is_rope_long: bool = False  # its keys are rotated with LongRoPE's long factors
    num_overtaken: int = 0  # started before it, though they came later

    def exceeds(self, rope_border: int | None) -> bool:
        """Whether it needs LongRoPE's long factors: it knows more tokens than the model's original length."""
        return rope_border is not None and self.num_known > rope_border

    def choose_rope(self, rope_border: int | None) -> None:
        """Before it gets a slot: other factors mean other keys and values, so other cached blocks."""
        if self.is_rope_long != self.exceeds(rope_border):
            self.is_rope_long = not self.is_rope_long
            self.root_key = cache_root(self.submit, is_rope_long=self.is_rope_long)
            self.keys.clear()

    def get_keys(self, num_blocks: int, block_size: int) -> list[bytes]:
        """Chain keys of the first ``num_blocks`` blocks, which are full; each is computed once."""
        first = len(self.keys)
        if first < num_blocks:
            parent = self.keys[-1] if self.keys else self.root_key
            self.keys += chain_keys(parent, self.token_ids[first * block_size : num_blocks * block_size], block_size)
        return self.keys[:num_blocks]

    @property
    def num_known(self) -> int:
        """Tokens that exist or will exist once launched steps are committed."""
        return len(self.token_ids) + self.num_in_flight

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - len(self.submit.prompt_ids)

    @property
    def num_to_compute(self) -> int:
        return self.num_known - self.num_planned

    @property
    def will_grow(self) -> bool:
        """Whether it may need another block."""
        return len(self.blocks) < self.max_blocks

    @property
    def remaining_tokens(self) -> int:
        """Tokens that may still be sampled by steps not yet launched."""
        return self.submit.max_new_tokens - self.num_generated - self.num_in_flight
