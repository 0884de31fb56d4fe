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
BUFFER_BYTES = 32 << 20  # per thread
MIN_BYTES = 128 << 20  # of all threads, so that no cache holds them
GPU_BUFFER_BYTES = 1 << 30
GEMM_SIZE = {"cpu": 2048, "cuda": 8192}  # rows and columns of the matrices


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes per second: of reads on a CPU; on a GPU, of a copy, whose reads and writes both count."""

    one_thread: float
    all_threads: float
    num_threads: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What one device, or all CPUs together, can do."""

    bandwidth: Bandwidth
    gemm_flops_per_s: dict[str, float] = field(default_factory=dict)  # by dtype


def measure_bandwidth(num_threads: int, seconds: float = BANDWIDTH_S) -> Bandwidth:
    """Read arrays larger than the caches, with one thread and with ``num_threads``.

    Only reads, because a decode step writes next to nothing.
    """
    one = best_rate(read_rounds(1), seconds)
    return Bandwidth(one, best_rate(read_rounds(num_threads), seconds) if num_threads > 1 else one, num_threads)


def read_rounds(num_threads: int) -> Callable[[], Iterator[float]]:
    """Rounds in which each thread reads its array once; yields the bytes per second of each."""

    def rounds() -> Iterator[float]:
        import numpy as np

        size = max(BUFFER_BYTES, MIN_BYTES // num_threads)
        # Zeros that nothing has written would all be one page, which the caches hold.
        arrays = [np.ones(size // 8, np.uint64) for _ in range(num_threads)]
        barrier = threading.Barrier(num_threads + 1)
        spans = [(0.0, 0.0)] * num_threads

        def read(thread: int, array: Any) -> None:
            try:
                while True:
                    barrier.wait()
                    started_at = time.perf_counter()
                    array.sum()  # releases the interpreter's lock; as fast as the memory
                    spans[thread] = started_at, time.perf_counter()
                    barrier.wait()
            except threading.BrokenBarrierError:
                pass
            finally:
                barrier.abort()  # nobody waits for a thread that has failed

        threads = [threading.Thread(target=read, args=each, daemon=True) for each in enumerate(arrays)]
        for thread in threads:
            thread.start()
        try:
            while True:
                barrier.wait()
                barrier.wait()
                # On a busy machine, this thread may wake only when the reads have long begun, or ended.
                starts, ends = zip(*spans, strict=True)
                yield size * num_threads / (max(ends) - min(starts))
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
