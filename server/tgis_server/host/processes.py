"""What a process uses, as the kernel counts it. The front-end reports it in its metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one process, without its children."""

    resident_bytes: int  # shared pages count in every process
    cpu_s: float
    started_at_s: float  # since 1970


def read_usage(pid: int) -> Usage | None:
    """Takes about 0.1 ms. None if the process has ended or may not be read."""
    import psutil

    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            return Usage(process.memory_info().rss, times.user + times.system, process.create_time())
    except psutil.Error:
        return None
