"""A real pseudo-terminal of a given size, for output that depends on one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import termios
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TextIO

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


@dataclass
class PseudoTerminal:
    """``stream`` is its end for a program; what it wrote is read with :attr:`raw` or :attr:`lines` after the block."""

    stream: TextIO
    received: list[bytes] = field(default_factory=list)

    @property
    def raw(self) -> str:
        return b"".join(self.received).decode().replace("\r\n", "\n")

    @property
    def lines(self) -> list[str]:
        """The lines without escape sequences, as a person sees them if nothing moves the cursor."""
        return ESCAPES.sub("", self.raw).splitlines()


@contextlib.contextmanager
def pseudo_terminal(columns: int, rows: int = 40) -> Iterator[PseudoTerminal]:
    """Open one; its output is complete when the block ends."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with open(ours, "rb", buffering=0) as reader, open(theirs, "w") as stream:
        terminal = PseudoTerminal(stream)

        def read() -> None:
            with contextlib.suppress(OSError):  # the other end is closed
                while data := os.read(reader.fileno(), 65536):
                    terminal.received.append(data)

        thread = threading.Thread(target=read)
        thread.start()
        try:
            yield terminal
        finally:
            stream.close()
            thread.join()
