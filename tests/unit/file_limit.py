"""Commands that can write no file of more than so many bytes, as on a disk that is full."""

from __future__ import annotations

from pathlib import Path


def with_file_limit(command: list[str | Path], num_bytes: int) -> list[str | Path]:
    """Not by ``preexec_fn``: between fork and exec the threads that gRPC has in the tests' process may abort it."""
    return ["sh", "-c", 'trap "" XFSZ; exec "$@"', "sh", "prlimit", f"--fsize={num_bytes}:{num_bytes}", *command]
