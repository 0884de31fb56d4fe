"""How much memory the processes of a server use."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

WALK_BELOW_BYTES = 4 << 30


def measure_memory(pid: int) -> int:
    """Bytes of main memory that a launcher and its children use; 0 if they have ended."""
    total = 0
    with contextlib.suppress(psutil.Error):
        launcher = psutil.Process(pid)
        for process in (launcher, *launcher.children(recursive=True)):
            with contextlib.suppress(psutil.Error, OSError):
                total += measure_process(process)
    return total


def measure_process(process: psutil.Process) -> int:
    """Memory of a process; pages that several processes share are divided equally among them.

    The kernel finds shared pages by walking all pages, so a large process is counted as if it shared nothing: its
    libraries are a small part of it.
    """
    rss = int(process.memory_info().rss)
    if rss >= WALK_BELOW_BYTES:
        return rss
    return read_pss(Path(f"/proc/{process.pid}/smaps_rollup")) or rss


def read_pss(file: Path) -> int | None:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), None)
