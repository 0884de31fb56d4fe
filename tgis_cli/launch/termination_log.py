"""The file that Kubernetes reads to learn why a container ended."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

MAX_BYTES = 4096  # Kubernetes reads no more


def write_termination_log(file: Path, sentence: str, details: str = "") -> None:
    """Overwrite the file with the sentence and as many of the last lines of ``details`` as fit.

    A file in ``/dev`` must already exist. Errors are ignored, as nothing could be done about them.
    """
    if file.is_relative_to("/dev") and not file.exists():
        return
    with contextlib.suppress(OSError):
        # The file may be a mount, which cannot be replaced by renaming. A single write, so that a reader finds either
        # the old text or the new one.
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, os.pwrite(descriptor, compose(sentence, details), 0))
        finally:
            os.close(descriptor)


def compose(sentence: str, details: str) -> bytes:
    """At most ``MAX_BYTES`` of whole lines; only a sentence that is too long by itself is cut, between characters."""
    text = (sentence + "\n").encode(errors="replace")
    if len(text) > MAX_BYTES:
        return text[:MAX_BYTES].decode(errors="ignore").encode()
    kept: list[bytes] = []
    room = MAX_BYTES - len(text)
    for line in reversed(details.encode(errors="replace").splitlines(keepends=True)):
        room -= len(line)
        if room < 0:
            break
        kept.append(line)
    return text + b"".join(reversed(kept))
