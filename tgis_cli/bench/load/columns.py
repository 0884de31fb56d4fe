"""What a worker has measured, as columns that it can send. Workers do without numpy, so that they start quickly."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

CUT = -1  # the status of a call that the load generator itself has cancelled


def ints() -> array[int]:
    return array("q")


def doubles() -> array[float]:
    return array("d")


def floats() -> array[float]:
    return array("f")


@dataclass(slots=True)
class Columns:
    """The fields of ``Records``, but with times of the monotonic clock. ``sent_s`` is NaN without a connection."""

    index: array[int] = field(default_factory=ints)
    due_s: array[float] = field(default_factory=doubles)
    sent_s: array[float] = field(default_factory=doubles)
    first_s: array[float] = field(default_factory=doubles)
    end_s: array[float] = field(default_factory=doubles)
    status: array[int] = field(default_factory=ints)
    input_tokens: array[int] = field(default_factory=ints)
    output_tokens: array[int] = field(default_factory=ints)
    asked_input: array[int] = field(default_factory=ints)
    asked_output: array[int] = field(default_factory=ints)
    gap_s: array[float] = field(default_factory=floats)
    num_gaps: array[int] = field(default_factory=ints)
    texts: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class WorkerHealth:
    """How well one worker did its own work."""

    loop_lag_s: array[float] = field(default_factory=doubles)
    stamp_delay_s: array[float] = field(default_factory=doubles)  # from the null server's stamps to the arrivals
    cpu_s: float = 0.0
    wall_s: float = 0.0
    num_tokens: int = 0
    num_queued: int = 0
    num_dropped: int = 0
    peak_bytes: int = 0


def read_peak_bytes() -> int:
    """The peak of this process's resident memory. That of getrusage would include the parent's, from before exec."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
