"""The phases of a process's startup, timed on the monotonic clock, which all processes of a machine share.

The front-end and the shards each keep one ``Phases`` and report it in their health.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tgis_server.wire import shard_pb2 as pb

SERVING = "serving"  # the last phase of a successful startup


class Phase(NamedTuple):
    name: str
    started_at: float
    num_bytes: int = 0


class Phases:
    """Written by one thread and read by any: every write is a single assignment."""

    def __init__(self) -> None:
        self._phases = [Phase("starting", process_started_at())]

    @property
    def current(self) -> str:
        return self._phases[-1].name

    @property
    def started_at(self) -> float:
        return self._phases[0].started_at

    def enter(self, name: str, num_bytes: int = 0) -> None:
        """Start a phase or, if it is the current one, record how many bytes it has read so far."""
        last = self._phases[-1]
        if name != last.name:
            self._phases.append(Phase(name, time.monotonic(), num_bytes))
        elif num_bytes > last.num_bytes:
            self._phases[-1] = last._replace(num_bytes=num_bytes)

    def encode(self) -> list[pb.Phase]:
        """All phases so far, in order."""
        from tgis_server.wire import shard_pb2 as pb

        return [pb.Phase(name=name, started_at_s=at, bytes=num_bytes) for name, at, num_bytes in self._phases]


def process_started_at() -> float:
    """When the kernel created this process, in seconds of the monotonic clock, to within 10 ms."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()  # the name may contain spaces
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - age_s
