"""Where the seconds of startup went: the phases of all processes, and the processes that startup waited for.

Startup waits for the launcher, then for whatever is ready last (a shard, or the front-end's own loading), and then for
the front-end, which starts serving once the shards do. All times are from the same monotonic clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from tgis_server.run.phases import SERVING
from tgis_server.wire import shard_pb2 as pb
from tgis_server.words.processes import FRONTEND, LAUNCHER
from tgis_server.words.sizes import format_bytes

WAITING = "waiting for the shards"  # a phase of the front-end
SHOWN_S = 0.05  # shorter phases are left out of the sentence


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """One phase of one process."""

    process: str
    phase: str
    seconds: float
    num_bytes: int = 0  # read; 0 if unknown

    def __str__(self) -> str:
        read = f" ({format_bytes(self.num_bytes)})" if self.num_bytes else ""
        return f"{self.phase} {self.seconds:.1f}{read}"


@dataclass(frozen=True, slots=True)
class Timeline:
    """A start that succeeded."""

    started_at: float  # of the launcher
    serving_at: float  # of the front-end
    phases: Sequence[PhaseTime]
    critical: Sequence[str]  # processes that startup waited for, in order

    @classmethod
    def make(
        cls, launcher: Sequence[tuple[str, float]], replies: Mapping[str, pb.HealthReply | pb.FrontendHealth]
    ) -> Timeline:
        """
        Args:
            launcher: the names and starting times of its phases.
            replies: the replies of the front-end and at least one shard, all serving, by process name.
        """
        starts = {name: [(p.name, p.started_at_s, p.bytes) for p in reply.phases] for name, reply in replies.items()}
        starts[LAUNCHER] = [(name, at, 0) for name, at in launcher]
        first_child_at = min(at[0][1] for name, at in starts.items() if name != LAUNCHER)
        starts[LAUNCHER].append((SERVING, max(first_child_at, launcher[-1][1]), 0))
        phases = [
            PhaseTime(name, phase, max(0.0, end - begin), num_bytes)
            for name in (LAUNCHER, *replies)
            for (phase, begin, num_bytes), (_, end, _) in pairwise(starts[name])
        ]
        last_shard = max((name for name in replies if name != FRONTEND), key=lambda name: starts[name][-1][1])
        waiting_at = next((at for phase, at, _ in starts[FRONTEND] if phase == WAITING), 0.0)
        critical = [LAUNCHER, last_shard] if starts[last_shard][-1][1] > waiting_at else [LAUNCHER, FRONTEND]
        return cls(launcher[0][1], starts[FRONTEND][-1][1], phases, critical)

    @property
    def total_s(self) -> float:
        return self.serving_at - self.started_at

    def describe(self) -> str:
        """``launcher 0.4 s (…), shard-0 1.9 s (importing libraries 1.1, reading weights 0.3 (257 MiB), …), …``."""
        parts, critical_s = [], 0.0
        for name in self.critical:
            own = [phase for phase in self.phases if phase.process == name and phase.phase != WAITING]
            seconds = sum(phase.seconds for phase in own)
            critical_s += seconds
            shown = ", ".join(str(phase) for phase in own if phase.seconds >= SHOWN_S)
            parts.append(f"{name} {seconds:.1f} s" + (f" ({shown})" if shown else ""))
        rest_s = self.total_s - critical_s
        if rest_s >= SHOWN_S and FRONTEND not in self.critical:
            parts.append(f"{FRONTEND} {rest_s:.1f} s")
        return ", ".join(parts)

    def facts(self) -> list[dict[str, Any]]:
        """Every phase of every process, for scripts."""
        return [{**asdict(phase), "seconds": round(phase.seconds, 3)} for phase in self.phases]
