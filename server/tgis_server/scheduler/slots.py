"""Slots and everything that goes with one: memory for keys and values, and a place for the adapter."""

from __future__ import annotations

import heapq
from bisect import insort

from tgis_server.scheduler.adapters import Adapters
from tgis_server.scheduler.limits import SchedulerLimits
from tgis_server.scheduler.memory import Memory, Offer
from tgis_server.scheduler.paged import PagedMemory
from tgis_server.scheduler.rows import RowMemory
from tgis_server.scheduler.sequence import Sequence
from tgis_server.scheduler.waiting import by_arrival
from tgis_server.wire.messages import Activation


class Slots:
    """Takes and releases everything that a sequence with a slot holds, all at once."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.running: list[Sequence] = []  # by arrival
        self.memory: Memory = PagedMemory(limits)
        if limits.max_padded_tokens is not None:
            self.memory = RowMemory(limits.max_padded_tokens)
        self.adapters = Adapters(limits.max_adapters)
        self._rope_border = limits.rope_border
        self._free = list(range(limits.max_batch_size))
        self._freed: list[int] = []  # slots that the next plan frees

    @property
    def num_free(self) -> int:
        return len(self._free)

    def offer(self, sequence: Sequence) -> Offer | None:
        """What a waiting sequence would get with a free slot; ``None`` if it has to wait."""
        if not self.adapters.has_place(sequence.submit.adapter):
            return None
        sequence.choose_rope(self._rope_border)
        return self.memory.offer(sequence)

    def take(self, sequence: Sequence, offer: Offer) -> Activation | None:
        """Give a sequence a slot with what was offered; return the activation that its adapter needs."""
        self.memory.take(sequence, offer)
        sequence.own_tokens()
        sequence.num_planned = offer.num_cached_tokens
        sequence.prefill_end = sequence.num_known
        sequence.slot = heapq.heappop(self._free)
        insort(self.running, sequence, key=by_arrival)
        return self.adapters.take_place(sequence)

    def release(self, sequence: Sequence) -> None:
        """Release the slot of a sequence that has ended or is preempted."""
        self.running.remove(sequence)
        self.memory.release(sequence)
        self.adapters.leave_place(sequence)
        sequence.num_planned = 0
        sequence.residence += 1
        self._freed.append(sequence.slot)
        heapq.heappush(self._free, sequence.slot)
        sequence.slot = -1

    def take_freed(self) -> list[int]:
        """Slots that were released since the last plan."""
        freed, self._freed = self._freed, []
        return freed
