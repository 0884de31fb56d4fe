"""The messages between the load generator and a worker, pickled, over a socket that only these two have."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, islice

from tgis_cli.bench.http2.channel import Endpoint
from tgis_cli.bench.load.calls import Arrivals, Feed
from tgis_cli.bench.load.columns import Columns, WorkerHealth, floats

TICK_S = 0.25  # between totals


@dataclass(frozen=True, slots=True)
class Setup:
    endpoint: Endpoint
    feed: Feed
    has_stamps: bool  # the server is the null server, whose frames carry stamps


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a level's arrivals that is one worker's."""

    slots: tuple[int, ...] | None  # closed loop: the numbers of this worker's slots
    concurrency: int  # slots of all workers
    due_s: array[float] | None  # open loop: when the calls of this worker are due
    number: int  # of this worker, and of its first call ...
    step: int  # ... after which it has every so many-th one: the number of workers
    max_calls: int | None  # of the level
    max_s: float | None
    limit_s: float | None
    first_index: int

    @property
    def num_slots(self) -> int:
        return len(self.slots or ())

    def make_indexes(self) -> Iterator[int]:
        """The calls in the feed that this worker sends, in order: those of other workers are different ones.

        Each slot has its own, so that workers with more slots send more.
        """
        if self.due_s is not None:
            calls: Iterator[int] = islice(count(self.number, self.step), len(self.due_s))
        else:
            slots = self.slots or ()
            calls = (base + slot for base in count(0, self.concurrency) for slot in slots) if slots else iter(())
        for number in calls:
            if self.max_calls is not None and number >= self.max_calls:
                return
            yield self.first_index + number


def split(arrivals: Arrivals, num_workers: int) -> list[Share]:
    """A share for each worker; in a closed loop with fewer slots than workers, some get nothing."""
    shares = []
    for number in range(num_workers):
        slots, due_s = None, None
        if arrivals.due_s is not None:
            due_s = array("d", arrivals.due_s[number::num_workers])
        else:
            slots = tuple(range(number, arrivals.concurrency or 0, num_workers))
        shares.append(
            Share(
                slots=slots,
                concurrency=arrivals.concurrency or 0,
                due_s=due_s,
                number=number,
                step=num_workers,
                max_calls=arrivals.max_calls,
                max_s=arrivals.max_s,
                limit_s=arrivals.limit_s,
                first_index=arrivals.first_index,
            )
        )
    return shares


@dataclass(frozen=True, slots=True)
class Go:
    """Start the level that was prepared."""

    at: float  # by the monotonic clock, which all processes of a machine share


@dataclass(frozen=True, slots=True)
class Cut:
    """Cut the level: cancel what is in flight."""


# What a worker says


@dataclass(frozen=True, slots=True)
class Ready:
    """It is connected, or has prepared a level."""


@dataclass(frozen=True, slots=True)
class NotConnected:
    reason: str


@dataclass(frozen=True, slots=True)
class GaveUp:
    """There is no connection any more; calls fail until the level is cut."""

    reason: str


@dataclass(frozen=True, slots=True)
class Totals:
    """What has happened in a level so far, with some of the latest latencies in seconds."""

    sent: int = 0
    in_flight: int = 0
    streaming: int = 0  # calls in flight of which a token has arrived
    oldest_s: float = 0.0  # seconds since the oldest call in flight was due; 0 without one
    completed: int = 0
    failed: int = 0
    output_tokens: int = 0
    ttft_s: array[float] = field(default_factory=floats)
    itl_s: array[float] = field(default_factory=floats)


@dataclass(frozen=True, slots=True)
class Done:
    columns: Columns
    health: WorkerHealth


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker ends."""

    error: Exception
