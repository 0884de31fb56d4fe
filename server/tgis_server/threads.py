"""The threads of a run: how many there will be, and how they are reserved for libraries.

The counts were measured in serving processes with various numbers of shards, workers and compute threads. Threads of
GPU libraries are not counted.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Self

from tgis_server.engines.catalogue import get_engine
from tgis_server.run import Run


def num_cpus() -> int:
    """CPUs of the machine, as gRPC counts them."""
    return os.cpu_count() or 1


GRPC = max(4, min(num_cpus(), 16)) + 2  # gRPC's pool, the pool's supervisor, and a timer
POLLER = 1  # the thread that polls for gRPC's asyncio API
OWN = 2 + POLLER  # the main thread, the parent watch (in the launcher: its terminal), and gRPC's poller or server
SESSION = 4  # a shard's gRPC server: the Session and its reader, two for probes
LANES = 2  # the front-end's lanes for prompts and other texts, with --tokenization-workers threads each
LAUNCHER_SERVER = 2  # the front-end's server on the launcher's socket: one thread serves and one answers
HELPER = 1  # the front-end's helper: renders metrics, checks connections, returns memory
GLOO = 3  # one event loop for all connections, and two threads for the operations of a group


@dataclass(frozen=True, slots=True)
class Threads:
    """The number of threads of a run, and what it depends on."""

    num_shard: int
    shard_threads: int | None  # compute threads of each shard; None: nothing is computed
    tokenization_workers: int = 1
    has_tracing: bool = False

    @classmethod
    def of(cls, run: Run) -> Self:
        return cls(
            num_shard=run.num_shard,
            shard_threads=(run.shard_threads or num_cpus()) if get_engine(run.engine).computes else None,
            tokenization_workers=run.tokenization_workers,
            has_tracing=bool(run.config.otlp_endpoint),
        )

    @property
    def total(self) -> int:
        """At least this many threads in the launcher, the front-end and all shards together."""
        return OWN + GRPC + self.frontend + self.num_shard * self.shard

    @property
    def at_start(self) -> int:
        """Threads before the first request: none that tokenize, and one probe per shard instead of two."""
        return self.total - LANES * self.tokenization_workers - self.num_shard

    @property
    def frontend(self) -> int:
        own = OWN + GRPC + LAUNCHER_SERVER + HELPER
        return own + LANES * self.tokenization_workers + self.has_tracing

    @property
    def shard(self) -> int:
        """Threads of each shard."""
        own = OWN + GRPC + SESSION
        if self.shard_threads is None:
            return own
        # One pool for the loading thread, one for the computing thread, and one for numpy's BLAS.
        own += 2 * (self.shard_threads - 1) + min(self.shard_threads, num_cpus()) - 1
        return own + (GLOO if self.num_shard > 1 else 0)


class ReservedThreads:
    """Threads reserved early, because gRPC crashes or logs the same line forever if it cannot start one.

    They are started well before gRPC is used and ended right before its first use, so that a tight limit causes an
    error that says so.
    """

    def __init__(self, num_threads: int) -> None:
        """
        Raises:
            RuntimeError: the system does not allow that many threads; none is left running.
        """
        self._end = threading.Event()
        self._threads: list[threading.Thread] = []
        try:
            for _ in range(num_threads):
                thread = threading.Thread(target=self._end.wait, name="reserved", daemon=True)
                thread.start()
                self._threads.append(thread)
        except RuntimeError:
            self.release()
            raise

    def release(self) -> None:
        """End the reserved threads, so that others can be started."""
        self._end.set()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
