"""The names of a run's processes in logs, error files, faults and metrics."""

from __future__ import annotations

LAUNCHER = "launcher"
FRONTEND = "frontend"
LEADER = "shard-0"


def shard_name(rank: int) -> str:
    return f"shard-{rank}"


def rank_of(name: str) -> int | None:
    """The rank of a shard; ``None`` for other processes."""
    return int(name.removeprefix("shard-")) if name.startswith("shard-") else None


def child_names(num_shard: int) -> list[str]:
    """The processes that the launcher starts, in order."""
    return [*map(shard_name, range(num_shard)), FRONTEND]
