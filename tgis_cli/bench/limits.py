"""The limits of this machine: bytes per second from its memory, and floating-point operations per second.

Each is measured for about a second, and the best of many rounds counts: other processes can only slow a round down. The
bandwidth needs only numpy. Rates of matrix products need torch, so ``python -m tgis_cli.bench.limits`` measures them in
a process of its own, with the threads and the environment of a server's shards.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

BANDWIDTH_S = 0.5  # for each number of threads
GEMM_S = 0.7  # for each dtype
BUFFER_BYTES = 16 << 20  # per thread and array
MIN_BYTES = 128 << 20  # of all arrays, so that no cache holds them
GPU_BUFFER_BYTES = 1 << 30
GEMM_SIZE = {"cpu": 2048, "cuda": 8192}  # rows and columns of the matrices


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes per second that a copy reads and writes."""

    one_thread: float
    all_threads: float
    num_threads: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What one device, or all CPUs together, can do."""

    bandwidth: Bandwidth
    gemm_flops_per_s: dict[str, float] = field(default_factory=dict)  # by dtype


def measure_bandwidth(num_threads: int, seconds: float = BANDWIDTH_S) -> Bandwidth:
    """Copy arrays larger than the caches, with one thread and with ``num_threads``."""
    one = best_rate(copy_rounds(1), seconds)
    return Bandwidth(one, best_rate(copy_rounds(num_threads), seconds) if num_threads > 1 else one, num_threads)


def copy_rounds(num_threads: int) -> Callable[[], Iterator[float]]:
    """Rounds in which each thread copies its arrays once; yields the bytes per second of each."""

    def rounds() -> Iterator[float]:
        import numpy as np

        size = max(BUFFER_BYTES, MIN_BYTES // (2 * num_threads))
        pairs = [(np.ones(size, np.uint8), np.zeros(size, np.uint8)) for _ in range(num_threads)]
        barrier = threading.Barrier(num_threads + 1)
        spans = [(0.0, 0.0)] * num_threads

        def copy(thread: int, source: Any, target: Any) -> None:
            try:
                while True:
                    barrier.wait()
                    started_at = time.perf_counter()
                    np.copyto(target, source)  # releases the interpreter's lock
                    spans[thread] = started_at, time.perf_counter()
                    barrier.wait()
            except threading.BrokenBarrierError:
                pass
            finally:
                barrier.abort()  # nobody waits for a thread that has failed

        threads = [threading.Thread(target=copy, args=(i, *pair), daemon=True) for i, pair in enumerate(pairs)]
        for thread in threads:
            thread.start()
        try:
            while True:
                barrier.wait()
                barrier.wait()
                # On a busy machine, this thread may wake only when the copies have long begun, or ended.
                starts, ends = zip(*spans, strict=True)
                yield 2 * size * num_threads / (max(ends) - min(starts))
        finally:
            barrier.abort()  # wherever the threads are: Ctrl-C can come in the middle of a round
            for thread in threads:
                thread.join()

    return rounds


def best_rate(rounds: Callable[[], Iterator[float]], seconds: float) -> float:
    """The highest rate within ``seconds``. The first round is a warm-up; at least one other round follows it."""
    found = rounds()
    try:
        next(found)
        end = time.perf_counter() + seconds
        best = next(found)
        while time.perf_counter() < end:
            best = max(best, next(found))
        return best
    finally:
        found.close()  # type: ignore[attr-defined]  # a generator


def measure_limits(device: str, dtype: str, num_threads: int) -> Limits:
    """Needs torch.

    Args:
        device: "cpu", or "cuda" for the first visible GPU.
    """
    import torch

    rate = best_rate(gemm_rounds(device, dtype), GEMM_S)
    if device == "cpu" and dtype != "float32":  # without instructions for a short dtype, float32 is the faster way
        rate = max(rate, best_rate(gemm_rounds(device, "float32"), GEMM_S))
    gemm = {dtype: rate}
    if device == "cpu":
        return Limits(measure_bandwidth(num_threads), gemm)
    source = torch.ones(GPU_BUFFER_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rate = best_rate(gpu_rounds(lambda: target.copy_(source), 2 * GPU_BUFFER_BYTES), BANDWIDTH_S)
    return Limits(Bandwidth(rate, rate, num_threads), gemm)


def gemm_rounds(device: str, dtype: str) -> Callable[[], Iterator[float]]:
    import torch

    size = GEMM_SIZE[device]
    weight, inputs = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))

    def work() -> object:
        return torch.nn.functional.linear(inputs, weight)  # as the engine's linear layers

    if device == "cuda":
        return gpu_rounds(work, 2 * size**3)

    def rounds() -> Iterator[float]:
        while True:
            started_at = time.perf_counter()
            with torch.inference_mode():
                work()
            yield 2 * size**3 / (time.perf_counter() - started_at)

    return rounds


def gpu_rounds(work: Callable[[], object], amount: int) -> Callable[[], Iterator[float]]:
    """Rounds of ten repetitions, so that the time to launch them hardly counts."""

    def rounds() -> Iterator[float]:
        import torch

        while True:
            torch.cuda.synchronize()
            started_at = time.perf_counter()
            for _ in range(10):
                work()
            torch.cuda.synchronize()
            yield 10 * amount / (time.perf_counter() - started_at)

    return rounds


def best_of(one: Limits, other: Limits) -> Limits:
    """The higher value of each limit: other processes can only have lowered the other one."""
    bandwidth = Bandwidth(
        max(one.bandwidth.one_thread, other.bandwidth.one_thread),
        max(one.bandwidth.all_threads, other.bandwidth.all_threads),
        one.bandwidth.num_threads,
    )
    gemm = {dtype: max(rate, other.gemm_flops_per_s[dtype]) for dtype, rate in one.gemm_flops_per_s.items()}
    return Limits(bandwidth, gemm)


def read_limits(text: str) -> Limits:
    """What the process has printed."""
    facts = json.loads(text.splitlines()[-1])
    return Limits(Bandwidth(**facts["bandwidth"]), facts["gemm_flops_per_s"])


def main(argv: list[str]) -> None:
    device, dtype, num_threads = argv
    print(json.dumps(asdict(measure_limits(device, dtype, int(num_threads)))))


if __name__ == "__main__":
    main(sys.argv[1:])
