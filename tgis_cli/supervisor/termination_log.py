"""The file in which Kubernetes looks for the reason of a container's end."""

from __future__ import annotations

import contextlib
from pathlib import Path


def write_termination_log(file: Path, sentence: str) -> None:
    """Overwrite the file with one line. In ``/dev`` it must exist already; problems are ignored: nobody could act."""
    if file.is_relative_to("/dev") and not file.exists():
        return
    with contextlib.suppress(OSError):
        file.write_text(sentence + "\n")
