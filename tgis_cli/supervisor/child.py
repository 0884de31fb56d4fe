"""One child process: starting it, reading its lines, signalling it and reaping it.

A child leads its own process group: Ctrl-C reaches only the launcher, and a signal to the child also reaches whatever
it started. Its death pipe closes when the launcher ends, however that happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from tgis_cli.relay.lines import plain_lines
from tgis_cli.supervisor.signals import signals_held
from tgis_server.host.races import wait_for_first

# called with (line, is_stderr)
OnLine = Callable[[str, bool], None]

PF_EXITING = 0x4  # a flag in /proc/PID/stat
MAX_LINE_BYTES = 1 << 20  # longer lines are split
TAIL_LINES = 200  # of stderr, kept for a child that dies without an error record: enough for the stacks of some threads


class LineReader(asyncio.Protocol):
    """Splits a pipe's bytes into lines."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = b""
        self.ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._on_line(line.rstrip(b"\r").decode(errors="replace"))

    def connection_lost(self, error: Exception | None) -> None:
        if self._rest:
            self._on_line(self._rest.decode(errors="replace"))
        self.ended.set()


class Child:
    """A running or finished child."""

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.pid = process.pid
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.exited = asyncio.Event()
        self.status: int | None = None  # exit code, or the negated number of the signal; None until reaped
        self.ended_at = 0.0  # wall clock when it was reaped
        self.stopped_at: float | None = None  # monotonic time of SIGSTOP or the like; None unless stopped
        self.sent_signals: set[int] = set()  # a death by one of these was our doing
        self._process = process
        self._readers: list[LineReader] = []
        self._pipes: list[asyncio.ReadTransport] = []

    @classmethod
    def spawn(cls, name: str, argv: Sequence[str], environ: Mapping[str, str], death_fd: int) -> Child:
        """Start a child. Must be called from the main thread: the kernel kills the child when this thread ends."""
        with signals_held({signal.SIGHUP}):  # stays blocked in the child until the child ignores it
            process = subprocess.Popen(
                argv,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(death_fd,),
                process_group=0,
            )
        return cls(name, process)

    async def read_lines(self, on_line: OnLine) -> None:
        """Start passing on the child's lines."""
        loop = asyncio.get_running_loop()

        def on_stdout(line: str) -> None:
            on_line(line, False)

        def on_stderr(line: str) -> None:
            self._tail.append(line)
            on_line(line, True)

        for pipe, take in ((self._process.stdout, on_stdout), (self._process.stderr, on_stderr)):
            reader = LineReader(take)
            self._readers.append(reader)
            transport, _ = await loop.connect_read_pipe(lambda reader=reader: reader, as_pipe(pipe))  # type: ignore[misc]  # mypy: lambda default
            self._pipes.append(transport)

    async def wait_for_last_lines(self) -> None:
        """Wait until the child's output ends. A process that the child left behind may delay that."""
        await asyncio.gather(*(reader.ended.wait() for reader in self._readers))

    def close(self) -> None:
        """Stop reading lines, even if a process that the child left behind still writes some."""
        for pipe in self._pipes:
            pipe.close()

    @property
    def tail(self) -> list[str]:
        """The child's last lines on stderr, in a form for people."""
        return [text for line in self._tail for text in plain_lines(self.name, line)]

    @property
    def is_alive(self) -> bool:
        return self.status is None

    @property
    def is_stopped(self) -> bool:
        return self.is_alive and self.stopped_at is not None

    @property
    def is_dying(self) -> bool:
        """Whether the child is exiting: only its resources still have to be freed."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False
        return self.is_alive and (fields[0] in "ZX" or bool(int(fields[6]) & PF_EXITING))

    @property
    def was_ended_by_us(self) -> bool:
        return self.status is not None and -self.status in self.sent_signals

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the child's whole process group; do nothing once the child has ended."""
        if self.is_alive:
            if not self.is_dying:
                self.sent_signals.add(number)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def poll(self) -> bool:
        """Find out, on SIGCHLD, whether the child was stopped, was continued or has ended; return whether it has."""
        if not self.is_alive:
            return False
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            with contextlib.suppress(ChildProcessError):  # it ended in between: another SIGCHLD follows
                while (change := os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WCONTINUED | os.WNOHANG)) is not None:
                    self.stopped_at = time.monotonic() if change.si_code == os.CLD_STOPPED else None
            return False
        self.ended_at = time.time()
        # Until the child is reaped, its number cannot be reused: this kills what it left behind, and nothing else.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.status = self._process.wait()
        self.exited.set()
        return True


def as_pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None, "both outputs are pipes"
    return pipe


async def wait_all(children: Sequence[Child], timeout_s: float | None) -> None:
    """Wait until all children have ended, but no longer than ``timeout_s``."""
    if children:
        await wait_for_first(asyncio.gather(*(child.exited.wait() for child in children)), timeout_s=timeout_s)
