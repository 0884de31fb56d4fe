"""The queue of sequences without a slot, in order of arrival, and how far they may overtake each other.

A sequence that waits for KV blocks, or for its turn among long prompts, may be overtaken by later, smaller ones at most
``MAX_OVERTAKEN`` times. After that, nothing passes it: running sequences end, their blocks are freed, and it starts. So
no sequence starves, and small requests do not wait needlessly behind a large one. A preempted sequence is never
overtaken: the memory that it released is for sequences before it and for itself.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from tgis_server.scheduler.sequence import Sequence

MAX_OVERTAKEN = 16
MAX_TRIED = 8  # sequences that a plan tries to start if earlier ones do not fit

by_arrival = attrgetter("arrival")


class WaitingQueue:
    """Owned by the scheduler."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []  # by arrival

    def __len__(self) -> int:
        return len(self._sequences)

    def add(self, sequence: Sequence) -> None:
        """Add a new sequence, or a preempted one at its old place."""
        insort(self._sequences, sequence, key=by_arrival)

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence that has ended."""
        del self._sequences[self._index(sequence)]

    def start(self, sequence: Sequence) -> None:
        """Remove a sequence that gets a slot; it overtakes those before it."""
        index = self._index(sequence)
        for overtaken in self._sequences[:index]:
            overtaken.num_overtaken += 1
        del self._sequences[index]

    def _index(self, sequence: Sequence) -> int:
        return bisect_left(self._sequences, sequence.arrival, key=by_arrival)

    @staticmethod
    def is_due(sequence: Sequence) -> bool:
        """Whether no other sequence may pass it."""
        return sequence.has_started or sequence.num_overtaken >= MAX_OVERTAKEN

    def candidates(self) -> Iterator[Sequence]:
        """Sequences that may start next, in order. Each may be started before the next one is requested."""
        num_passed = 0
        while num_passed < min(len(self._sequences), MAX_TRIED):
            if any(map(self.is_due, self._sequences[:num_passed])):
                return
            sequence = self._sequences[num_passed]
            yield sequence
            if num_passed < len(self._sequences) and self._sequences[num_passed] is sequence:
                num_passed += 1  # it did not fit
