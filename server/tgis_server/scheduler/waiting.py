"""The queue of sequences without a slot, in order of arrival, and how far it may be left.

A sequence that waits for KV blocks, or for its turn among long prompts, may be overtaken by later ones that are
smaller, at most ``MAX_OVERTAKEN`` times. After that nobody passes it: running sequences end, their blocks come back,
and it starts. So nobody starves, and a small request does not wait behind a large one for nothing. A preempted sequence
is not overtaken at all: the room that it gave up is for those before it and for itself.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from tgis_server.scheduler.sequence import Sequence

MAX_OVERTAKEN = 16
MAX_LOOKED_AT = 8  # sequences that a plan tries while those before them do not fit

by_arrival = attrgetter("arrival")


class WaitingQueue:
    """One owner: the scheduler."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []  # by arrival

    def __len__(self) -> int:
        return len(self._sequences)

    def add(self, sequence: Sequence) -> None:
        """A newcomer, or a preempted sequence, which returns to its place."""
        insort(self._sequences, sequence, key=by_arrival)

    def remove(self, sequence: Sequence) -> None:
        """It is over without having started."""
        del self._sequences[self._place(sequence)]

    def start(self, sequence: Sequence) -> None:
        """It gets a slot, and overtakes those before it."""
        place = self._place(sequence)
        for overtaken in self._sequences[:place]:
            overtaken.num_overtaken += 1
        del self._sequences[place]

    def _place(self, sequence: Sequence) -> int:
        return bisect_left(self._sequences, sequence.arrival, key=by_arrival)

    @staticmethod
    def is_due(sequence: Sequence) -> bool:
        """Whether nobody may pass it any more."""
        return sequence.has_started or sequence.num_overtaken >= MAX_OVERTAKEN

    def candidates(self) -> Iterator[Sequence]:
        """Who may start next, one after the other. What is yielded may be started before the next one is asked for."""
        num_passed = 0
        while num_passed < min(len(self._sequences), MAX_LOOKED_AT):
            if any(map(self.is_due, self._sequences[:num_passed])):
                return
            sequence = self._sequences[num_passed]
            yield sequence
            if num_passed < len(self._sequences) and self._sequences[num_passed] is sequence:
                num_passed += 1  # it did not fit
