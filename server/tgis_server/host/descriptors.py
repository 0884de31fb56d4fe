"""File descriptors of a process: as many as it may have, and how many of them connections may take."""

from __future__ import annotations

import contextlib
import resource
from dataclasses import dataclass

RESERVED = 96  # for the sockets of the run, files, and the event loops of gRPC
MAX_HTTP = 256  # probes and scrapers
MAX_GRPC = 10_000


@dataclass(frozen=True, slots=True)
class MaxConnections:
    """Of each port. What is left of the descriptors keeps the launcher, the shards and probes connected."""

    grpc: int
    http: int

    @classmethod
    def of(cls, num_descriptors: int) -> MaxConnections:
        """A quarter for HTTP, the rest for gRPC, within bounds."""
        free = max(32, num_descriptors - RESERVED)
        http = min(MAX_HTTP, free // 4)
        return cls(grpc=min(MAX_GRPC, free - http), http=http)


def raise_limit() -> int:
    """Let this process, and those that it starts, open as many files as it has the right to; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # some systems announce more than they allow
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_GRPC * 2 if soft == resource.RLIM_INFINITY else soft
