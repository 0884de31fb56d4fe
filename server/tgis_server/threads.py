"""The threads of a run: how many there are, and room for those that libraries start.

The counts are those of processes that serve, measured at several numbers of shards, workers and compute threads. A
GPU's libraries add some that are not counted.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Self

from tgis_server.engines.catalogue import get_engine
from tgis_server.run import Run


def num_cpus() -> int:
    """Of the machine, as gRPC counts them."""
    return os.cpu_count() or 1


GRPC = max(4, min(num_cpus(), 16)) + 2  # its pool, the pool's supervisor, and a timer
POLLER = 1  # of asyncio's gRPC
OWN = 2 + POLLER  # main thread, watch of the parent (the launcher's: its terminal), and gRPC's poller or server
SESSION = 4  # of a shard's gRPC server: the Session and its reader, two for probes
LANES = 2  # of the front-end: prompts and other texts, with --tokenization-workers each
LAUNCHER_SERVER = 2  # of the front-end: the thread that serves the launcher's socket, and the one that answers
HELPER = 1  # of the front-end's event loop: the text of metrics, looks at connections, returning memory
GLOO = 3  # one loop for all connections, two for the operations of a group


@dataclass(frozen=True, slots=True)
class Threads:
    """What a run's threads depend on."""

    num_shard: int
    shard_threads: int | None  # that compute, in each shard; None: nothing is computed
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
        """Of launcher, front-end and all shards together, at least."""
        return OWN + GRPC + self.frontend + self.num_shard * self.shard

    @property
    def least(self) -> int:
        """Of these, what is there before the first request: without tokenization, and with one probe of each shard."""
        return self.total - LANES * self.tokenization_workers - self.num_shard

    @property
    def frontend(self) -> int:
        own = OWN + GRPC + LAUNCHER_SERVER + HELPER
        return own + LANES * self.tokenization_workers + self.has_tracing

    @property
    def shard(self) -> int:
        """Of each."""
        own = OWN + GRPC + SESSION
        if self.shard_threads is None:
            return own
        # A pool for the thread that loads and one for the thread that computes, and the one of numpy's BLAS.
        own += 2 * (self.shard_threads - 1) + min(self.shard_threads, num_cpus()) - 1
        return own + (GLOO if self.num_shard > 1 else 0)


class ThreadRoom:
    """Room for threads, taken early: gRPC crashes, or repeats a line for ever, where it cannot start one.

    Taken before such a library is used and given back right before, so that too tight a limit is an error with words.
    """

    def __init__(self, num_threads: int) -> None:
        """
        Raises:
            RuntimeError: the system does not allow so many threads; none of them is left.
        """
        self._end = threading.Event()
        self._threads: list[threading.Thread] = []
        try:
            for _ in range(num_threads):
                thread = threading.Thread(target=self._end.wait, name="room", daemon=True)
                thread.start()
                self._threads.append(thread)
        except RuntimeError:
            self.give_back()
            raise

    def give_back(self) -> None:
        """For whoever starts threads next."""
        self._end.set()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
