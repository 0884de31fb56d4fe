"""Evidence of the kernel's out-of-memory killer: when its count rose, and how much memory each child had then.

The count is the control group's. Another process in it may be the one that was killed, long before or just when a child
is killed by hand: the time of a rise and the child's size tell how likely it was the child.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from tgis_server.host import cgroup
from tgis_server.words.sizes import format_bytes

SAMPLE_S = 1.0
DYING_S = 3.0  # between the kernel's kill and the end of a process that has much to give back
LARGE_SHARE = 0.5  # of the limit that all children have together: less, and others used it up


class OomLikelihood(Enum):
    """Whether a child that was killed was killed for lack of memory."""

    YES = "yes"
    PERHAPS = "perhaps"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class OomEvidence:
    """What was seen of memory until a group ended."""

    is_counted: bool = False  # whether the kernel tells how often it killed
    rises: tuple[tuple[float, float], ...] = ()  # of the count, each between two looks; wall clock
    child_bytes: Mapping[str, int] = field(default_factory=dict)  # resident, by name, at the last look
    limit_bytes: int | None = None

    def judge(self, name: str, ended_at: float) -> OomLikelihood:
        """Of the child ``name``, which ended by SIGKILL at that time."""
        if not self.is_counted:
            return OomLikelihood.UNKNOWN
        if not any(since <= ended_at and until >= ended_at - DYING_S for since, until in self.rises):
            return OomLikelihood.NO
        is_largest = self.child_bytes.get(name, 0) >= max(self.child_bytes.values(), default=0)
        has_share = sum(self.child_bytes.values()) >= LARGE_SHARE * (self.limit_bytes or 0)
        return OomLikelihood.YES if is_largest and has_share else OomLikelihood.PERHAPS

    def describe(self) -> str:
        """What ran out: the kernel counts its kills for the machine's sake under the same name."""
        if self.limit_bytes:
            return f"the container's memory limit of {format_bytes(self.limit_bytes)} was reached"
        return "the machine's memory was used up"


class OomWatch:
    """Looks at the count from time to time, and whenever a child ends."""

    def __init__(
        self,
        count_kills: Callable[[], int | None] = cgroup.count_oom_kills,
        read_bytes: Callable[[int], int] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            read_bytes: resident memory of a process; 0 once it has ended.
        """
        self._count_kills = count_kills
        self._read_bytes = read_bytes or read_resident_bytes
        self._clock = clock
        self._count = count_kills()
        self._looked_at = clock()
        self._rises: list[tuple[float, float]] = []
        self._child_bytes: dict[str, int] = {}

    async def run(self, pids: Mapping[str, int]) -> None:
        """For ever."""
        while True:
            self.sample(pids)
            await asyncio.sleep(SAMPLE_S)

    def sample(self, pids: Mapping[str, int]) -> None:
        """``pids`` are those of the children, by name, whether they live or not."""
        count, now = self._count_kills(), self._clock()
        if count is not None and self._count is not None and count > self._count:
            self._rises.append((self._looked_at, now))
        self._count, self._looked_at = count, now
        self._child_bytes |= {name: found for name, pid in pids.items() if (found := self._read_bytes(pid))}

    def evidence(self) -> OomEvidence:
        """What has been seen so far."""
        return OomEvidence(
            is_counted=self._count is not None,
            rises=tuple(self._rises),
            child_bytes=dict(self._child_bytes),
            limit_bytes=cgroup.memory_limit_bytes(),
        )


def read_resident_bytes(pid: int) -> int:
    fields = cgroup.read_text(Path(f"/proc/{pid}/statm")).split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if fields else 0
