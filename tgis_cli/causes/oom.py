"""Evidence of the kernel's out-of-memory killer: when its kill count rose, and how large each child was at the time.

The count is that of the whole control group, so the victim may have been another process, even if a child was killed
by hand at about the same time. The time of the rise and the child's size tell how
likely it is that the child was the victim.
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
DYING_S = 3.0  # from the kernel's kill to the end of a process that has much memory to free
LARGE_SHARE = 0.5  # of the limit: if all children together have less, other processes used it up


class OomLikelihood(Enum):
    """Whether a killed child was killed for lack of memory."""

    YES = "yes"
    PERHAPS = "perhaps"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class OomEvidence:
    """The samples of a group's memory until it ended."""

    is_counted: bool = False  # whether the kernel counts its kills
    rises: tuple[tuple[float, float], ...] = ()  # of the count, as wall-clock times of the samples before and after
    child_bytes: Mapping[str, int] = field(default_factory=dict)  # resident, by name, as last measured
    limit_bytes: int | None = None

    def judge(self, name: str, ended_at: float) -> OomLikelihood:
        """How likely it is that the child, which SIGKILL ended at that time, was killed for lack of memory."""
        if not self.is_counted:
            return OomLikelihood.UNKNOWN
        if not any(since <= ended_at and until >= ended_at - DYING_S for since, until in self.rises):
            return OomLikelihood.NO
        is_largest = self.child_bytes.get(name, 0) >= max(self.child_bytes.values(), default=0)
        has_share = sum(self.child_bytes.values()) >= LARGE_SHARE * (self.limit_bytes or 0)
        return OomLikelihood.YES if is_largest and has_share else OomLikelihood.PERHAPS

    def describe(self) -> str:
        """What ran out; the kernel counts kills for the container's limit and for the machine's memory alike."""
        if self.limit_bytes:
            return f"the container's memory limit of {format_bytes(self.limit_bytes)} was reached"
        return "the machine's memory was used up"


class OomWatch:
    """Samples the kill count and the children's memory."""

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
        """Sample forever."""
        while True:
            self.sample(pids)
            await asyncio.sleep(SAMPLE_S)

    def sample(self, pids: Mapping[str, int]) -> None:
        """Take a sample.

        Args:
            pids: those of the children by name, running or not.
        """
        count, now = self._count_kills(), self._clock()
        if count is not None and self._count is not None and count > self._count:
            self._rises.append((self._looked_at, now))
        self._count, self._looked_at = count, now
        self._child_bytes |= {name: found for name, pid in pids.items() if (found := self._read_bytes(pid))}

    def evidence(self) -> OomEvidence:
        """The samples so far."""
        return OomEvidence(
            is_counted=self._count is not None,
            rises=tuple(self._rises),
            child_bytes=dict(self._child_bytes),
            limit_bytes=cgroup.memory_limit_bytes(),
        )


def read_resident_bytes(pid: int) -> int:
    fields = cgroup.read_text(Path(f"/proc/{pid}/statm")).split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if fields else 0
