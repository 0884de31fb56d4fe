"""The limit on a process's file descriptors, and how many of them connections may use."""

from __future__ import annotations

import contextlib
import resource
from dataclasses import dataclass

RESERVED = 96  # for the sockets of the run, files, and the event loops of gRPC
MAX_HTTP = 256  # probes and scrapers
MAX_GRPC = 10_000


@dataclass(frozen=True, slots=True)
class MaxConnections:
    """The maximum number of connections per port; other descriptors keep the launcher, shards and probes connected."""

    grpc: int
    http: int

    @classmethod
    def of(cls, num_descriptors: int) -> MaxConnections:
        """A quarter for HTTP, the rest for gRPC, within bounds."""
        free = max(32, num_descriptors - RESERVED)
        http = min(MAX_HTTP, free // 4)
        return cls(grpc=min(MAX_GRPC, free - http), http=http)


def raise_limit() -> int:
    """Raise this process's limit on open files to the maximum; its children inherit it. Returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # some systems report more than they allow
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_GRPC * 2 if soft == resource.RLIM_INFINITY else soft
