"""When the calls of a level are sent: as others end, at random or regular moments, or as a trace says."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, count, islice

from tgis_cli.bench.load.calls import Arrivals

MAX_CALLS = 1_000_000  # of one level; their due times are made before it starts, and held in memory
TAIL_S = 60.0  # for the last answers of an open loop, which gets as long as it has sent requests if that is longer


class ArrivalProcess(StrEnum):
    """The random process, or the lack of one, by which the requests of an open loop come."""

    POISSON = "poisson"  # as from independent users
    CONSTANT = "constant"


@dataclass(frozen=True, slots=True)
class Pacing:
    """How calls follow each other in an open loop, and when a level ends."""

    process: ArrivalProcess = ArrivalProcess.POISSON
    burstiness: float = 1.0  # shape of the gamma distribution of the intervals; below 1: bursts; 1: Poisson
    max_calls: int | None = None
    max_s: float | None = None
    seed: int = 0

    def make_closed(self, concurrency: int, first_index: int, limit_s: float | None = None) -> Arrivals:
        return Arrivals(
            concurrency=concurrency,
            max_calls=self.max_calls,
            max_s=self.max_s,
            limit_s=limit_s,
            first_index=first_index,
        )

    def make_open(self, rate: float, first_index: int) -> Arrivals:
        """
        Args:
            rate: calls per second on average.
        """
        return self._make_due(self._moments(rate), first_index)

    def make_trace(self, starts: Sequence[float], speed: float) -> Arrivals:
        """At the moments of a recorded load, ``speed`` times as fast."""
        return self._make_due((start / speed for start in starts), 0)

    def _make_due(self, moments: Iterator[float], first_index: int) -> Arrivals:
        due_s = cut(moments, self.max_calls, self.max_s)
        end_s = self.max_s or due_s[-1]
        limit_s = end_s + max(TAIL_S, end_s)
        return Arrivals(due_s=due_s, max_calls=len(due_s), max_s=self.max_s, limit_s=limit_s, first_index=first_index)

    def _moments(self, rate: float) -> Iterator[float]:
        """When calls are due, from 0 on. The mean interval is 1/rate whatever the burstiness, as in vLLM's bench."""
        if self.process is ArrivalProcess.CONSTANT:
            return (number / rate for number in count())
        rng = random.Random(self.seed)  # noqa: S311  reproducible
        intervals = (rng.gammavariate(self.burstiness, 1 / (rate * self.burstiness)) for _ in count())
        return accumulate(intervals, initial=0.0)


def cut(moments: Iterator[float], max_calls: int | None, max_s: float | None) -> tuple[float, ...]:
    """The moments within both limits."""
    kept: list[float] = []
    for moment in islice(moments, max_calls or MAX_CALLS):
        if max_s is not None and moment >= max_s:
            break
        kept.append(moment)
    return tuple(kept)
