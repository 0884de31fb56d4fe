"""Memory of engines with KV blocks: one pool, with a prefix cache and shared encodings."""

from __future__ import annotations

from tgis_server.scheduler.blocks import BlockPool
from tgis_server.scheduler.encoders import Encodings
from tgis_server.scheduler.limits import SchedulerLimits
from tgis_server.scheduler.memory import Offer
from tgis_server.scheduler.sequence import Sequence
from tgis_server.wire.messages import Submit


class PagedMemory:
    """A new sequence gets the blocks for all its known tokens and its encoder at once; decoding adds blocks later."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.pool = BlockPool(limits.num_blocks, limits.block_size, keeps_free=limits.prefix_cache)
        self._has_prefix_cache = limits.prefix_cache
        self._encodings = Encodings(self.pool)
        self._growing: set[Sequence] = set()  # have a slot and may need another block

    @property
    def num_used(self) -> int:
        return self.pool.num_used

    @property
    def num_cached(self) -> int:
        return self.pool.num_cached

    def refusal(self, submit: Submit) -> str | None:
        num_input, num_new = len(submit.encoder_ids) + len(submit.prompt_ids), submit.max_new_tokens
        needed = self._max_blocks(len(submit.prompt_ids) + num_new) + self.pool.blocks_for(len(submit.encoder_ids))
        if needed <= self.pool.num_blocks:
            return None
        return (
            f"{num_input} input and {num_new} new tokens need {needed} KV blocks, "
            f"but the server has {self.pool.num_blocks}"
        )

    def offer(self, sequence: Sequence) -> Offer | None:
        cross = []
        num_to_encode = sequence.num_encoder_tokens
        if num_to_encode:
            if self._encodings.is_encoding(sequence):
                return None
            cross = self._encodings.find(sequence)
            if cross:
                num_to_encode = 0
        cached = self._find_cached(sequence)
        num_new = self.pool.blocks_for(sequence.num_known) - len(cached)
        num_new_cross = self.pool.blocks_for(num_to_encode)
        # Without a block in reserve for each growing sequence, a new sequence would be preempted in the next step.
        if num_new + num_new_cross + len(self._growing) > self.pool.num_obtainable([*cached, *cross]):
            return None
        return Offer(len(cached) * self.pool.block_size, num_to_encode, cached, num_new, cross, num_new_cross)

    def take(self, sequence: Sequence, offer: Offer) -> None:
        self.pool.acquire(offer.cached)
        self.pool.acquire(offer.cross)
        sequence.blocks = offer.cached + self.pool.allocate(offer.num_new)
        sequence.cross_blocks = offer.cross + self.pool.allocate(offer.num_new_cross)
        sequence.num_published = len(offer.cached)
        if offer.num_to_encode:
            self._encodings.begin(sequence)
        if len(sequence.blocks) < self._max_blocks(sequence.max_tokens):
            self._growing.add(sequence)

    def grow(self, sequence: Sequence) -> bool:
        if sequence.num_known <= len(sequence.blocks) * self.pool.block_size:
            return True
        missing = self.pool.blocks_for(sequence.num_known) - len(sequence.blocks)
        if missing > self.pool.num_free:
            return False
        sequence.blocks += self.pool.allocate(missing)
        if len(sequence.blocks) == self._max_blocks(sequence.max_tokens):
            self._growing.discard(sequence)
        return True

    def commit(self, sequence: Sequence, num_computed: int, *, encoded: bool) -> None:
        if encoded:
            self._encodings.commit(sequence)
        size = self.pool.block_size
        num_full = num_computed // size
        if not self._has_prefix_cache or num_full <= sequence.num_published:
            return
        for i in range(sequence.num_published, num_full):
            self.pool.publish(sequence.blocks[i], sequence.key(i, size))
        sequence.num_published = num_full

    def release(self, sequence: Sequence) -> None:
        self._encodings.release(sequence)
        self._growing.discard(sequence)
        self.pool.release(sequence.blocks)
        self.pool.release(sequence.cross_blocks)
        sequence.blocks = []
        sequence.cross_blocks = []
        sequence.num_sent_blocks = 0

    def _max_blocks(self, max_tokens: int) -> int:
        """Blocks that a sequence has at its end. The last generated token is never computed and needs no space."""
        return self.pool.blocks_for(max_tokens - 1)

    def _find_cached(self, sequence: Sequence) -> list[int]:
        """Cached blocks of a sequence's prefix; the last token always remains to be computed."""
        wanted = sequence.submit.wanted
        if not self._has_prefix_cache or (wanted.input_tokens and wanted.any):  # details need all positions computed
            return []
        size = self.pool.block_size
        num_blocks = (len(sequence.token_ids) - 1) // size
        return self.pool.find_cached(sequence.key(i, size) for i in range(num_blocks))
