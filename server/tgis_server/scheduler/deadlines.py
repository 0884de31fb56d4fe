"""Finds sequences whose deadline has passed. It uses a heap, because thousands may wait and every step checks."""

from __future__ import annotations

import heapq

from tgis_server.scheduler.sequence import Sequence

MIN_SWEEP = 64  # entries


class Deadlines:
    """An entry may outlive its sequence for a while: it is only two numbers."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []  # deadline, request id

    def add(self, sequence: Sequence, alive: dict[int, Sequence]) -> None:
        """Add a sequence's deadline, if it has one. ``alive``: all unfinished sequences by request id."""
        deadline = sequence.submit.deadline
        if deadline is None:
            return
        if len(self._heap) >= max(MIN_SWEEP, 4 * len(alive)):
            self._sweep(alive)
        heapq.heappush(self._heap, (deadline, sequence.submit.request_id))

    def pop(self, now: float, alive: dict[int, Sequence]) -> list[Sequence]:
        """Sequences whose deadline has passed; one that was added twice may appear twice."""
        passed = []
        while self._heap and self._heap[0][0] < now:
            _, request_id = heapq.heappop(self._heap)
            if request_id in alive:
                passed.append(alive[request_id])
        return passed

    def _sweep(self, alive: dict[int, Sequence]) -> None:
        self._heap = [entry for entry in set(self._heap) if entry[1] in alive]
        heapq.heapify(self._heap)
