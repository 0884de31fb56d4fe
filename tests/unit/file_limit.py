"""Commands with a limit on the size of files, which simulates a full disk."""

from __future__ import annotations

from pathlib import Path


def with_file_limit(command: list[str | Path], num_bytes: int) -> list[str | Path]:
    """The command, limited to files of ``num_bytes``.

    ``preexec_fn`` is not an option: gRPC's threads in the test process may abort the child between fork and exec.
    """
    return ["sh", "-c", 'trap "" XFSZ; exec "$@"', "sh", "prlimit", f"--fsize={num_bytes}:{num_bytes}", *command]
