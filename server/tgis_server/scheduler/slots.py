"""Who has a slot, and all that goes with one: memory for keys and values, and a place for the adapter."""

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
    """What a sequence holds while it has a slot is taken and given back here, all at once."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.running: list[Sequence] = []  # by arrival
        self.memory: Memory = PagedMemory(limits)
        if limits.max_padded_tokens is not None:
            self.memory = RowMemory(limits.max_padded_tokens)
        self.adapters = Adapters(limits.max_adapters)
        self._rope_border = limits.rope_border
        self._free = list(range(limits.max_batch_size))
        self._to_forget: list[int] = []  # the runner has to be told that these are over

    @property
    def num_free(self) -> int:
        return len(self._free)

    def offer(self, sequence: Sequence) -> Offer | None:
        """What a sequence that waits would get with a free slot; ``None``: it has to wait."""
        if not self.adapters.has_place(sequence.submit.adapter):
            return None
        sequence.choose_rope(self._rope_border)
        return self.memory.offer(sequence)

    def take(self, sequence: Sequence, offer: Offer) -> Activation | None:
        """Give it what was offered; returns what its adapter's place needs."""
        self.memory.take(sequence, offer)
        sequence.own_tokens()
        sequence.num_planned = offer.num_cached_tokens
        sequence.prefill_end = sequence.num_known
        sequence.slot = heapq.heappop(self._free)
        insort(self.running, sequence, key=by_arrival)
        return self.adapters.take_place(sequence)

    def give_up(self, sequence: Sequence) -> None:
        """It is over, or will be computed again later."""
        self.running.remove(sequence)
        self.memory.release(sequence)
        self.adapters.leave_place(sequence)
        sequence.num_planned = 0
        sequence.residence += 1
        self._to_forget.append(sequence.slot)
        heapq.heappush(self._free, sequence.slot)
        sequence.slot = -1

    def take_forgotten(self) -> list[int]:
        """Slots that were given up since the last plan."""
        forgotten, self._to_forget = self._to_forget, []
        return forgotten
