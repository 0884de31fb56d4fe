"""One request in the scheduler: its tokens, KV blocks and progress.

::

    token_ids        [ prompt ........ | generated ... ]        committed; grows in commit
    num_in_flight                                      [+1]     sampled by a launched step, not yet committed
    num_planned      [ computed by launched steps ..... ]       the next row computes from here
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from tgis_server.scheduler.blocks import cache_root, chain_key, encoder_root
from tgis_server.wire.messages import NO_ADAPTER, NewSequence, Submit, TokenIds, pack_ids


class State(Enum):
    STAGING = "staging"  # its adapter is being read
    WAITING = "waiting"  # in the queue: new or preempted
    PREFILLING = "prefilling"  # has a slot; known tokens remain to be computed
    RUNNING = "running"  # has a slot; one token per step
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """Mutable; owned by the scheduler."""

    submit: Submit
    arrival: int  # position in the order of arrival; never changes
    token_ids: TokenIds  # shared with the request until the sequence gets a slot: thousands may wait
    max_tokens: int  # prompt and longest output
    root_key: bytes
    encoder_root: bytes
    num_encoder_tokens: int
    state: State = State.WAITING
    slot: int = -1
    adapter_place: int = NO_ADAPTER
    blocks: list[int] = field(default_factory=list)
    cross_blocks: list[int] = field(default_factory=list)
    num_sent_blocks: int = 0  # prefix of the block table that the runner has
    num_planned: int = 0
    num_in_flight: int = 0
    prefill_end: int = 0  # tokens known when it got its slot; rows before this are prefill
    residence: int = 0  # counts its stays in a slot; a row of an earlier stay says nothing about its blocks
    keys: list[bytes] = field(default_factory=list)  # chain keys of its full blocks, as far as needed so far
    num_published: int = 0  # prefix of the block table that is in the prefix cache
    num_described: int = 0  # prompt tokens whose details were reported; recomputation yields them again
    has_started: bool = False
    is_rope_long: bool = False  # keys use LongRoPE's long factors
    num_overtaken: int = 0  # later sequences that started before it

    @classmethod
    def of(cls, submit: Submit, arrival: int) -> Sequence:
        """A new sequence."""
        return cls(
            submit,
            arrival,
            token_ids=submit.prompt_ids,
            max_tokens=len(submit.prompt_ids) + submit.max_new_tokens,
            root_key=cache_root(submit, is_rope_long=False),
            encoder_root=encoder_root(submit) if submit.encoder_ids else b"",
            num_encoder_tokens=len(submit.encoder_ids),
        )

    def exceeds(self, rope_border: int | None) -> bool:
        """Whether the sequence is longer than the model's original length, and so needs LongRoPE's long factors."""
        return rope_border is not None and self.num_known > rope_border

    def choose_rope(self, rope_border: int | None) -> None:
        """Called before the sequence gets a slot: other factors mean other keys and values, so other cached blocks."""
        if self.is_rope_long != self.exceeds(rope_border):
            self.is_rope_long = not self.is_rope_long
            self.root_key = cache_root(self.submit, is_rope_long=self.is_rope_long)
            self.keys.clear()

    def key(self, index: int, block_size: int) -> bytes:
        """Chain key of one of its full blocks; computed once, on demand."""
        while len(self.keys) <= index:
            start = len(self.keys) * block_size
            parent = self.keys[-1] if self.keys else self.root_key
            self.keys.append(chain_key(parent, self.token_ids[start : start + block_size]))
        return self.keys[index]

    def own_tokens(self) -> None:
        """Copy the prompt, which the request shares. Called before the first token is added."""
        if self.token_ids is self.submit.prompt_ids:
            self.token_ids = self.submit.prompt_ids[:]

    def to_new(self, *, encodes: bool) -> NewSequence:
        """The sequence as it appears in a plan."""
        submit = self.submit
        return NewSequence(
            slot=self.slot,
            token_ids=self.token_ids[:] if self.num_generated else submit.prompt_ids,
            prompt_length=len(submit.prompt_ids),
            num_cached_tokens=self.num_planned,
            sampling=submit.sampling,
            wanted=submit.wanted,
            seed=submit.seed,
            end_ids=submit.end_ids,
            num_virtual=submit.num_virtual,
            encoder_ids=submit.encoder_ids if encodes else pack_ids(),
            num_encoder_virtual=submit.num_encoder_virtual,
            cross_blocks=self.cross_blocks,
            num_encoder_tokens=self.num_encoder_tokens,
            adapter_place=self.adapter_place,
            is_rope_long=self.is_rope_long,
        )

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
