"""SIGTERM, SIGINT and SIGHUP, recorded by their handlers and acted on by the supervisor's loop.

SIGHUP stops the server, as a closed terminal and the original want it, unless there is a log file to reopen.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

from tgis_cli.stop_signals import ECHO_S, STOP_SIGNALS, heeded_signals


def exit_until_supervised() -> None:
    """Before there are children a stop signal ends the launcher by ``SystemExit``, with the same exit code as later."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    for number in heeded_signals():
        signal.signal(number, leave)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Stop signals wait for the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StopSignals:
    """Counts stop signals; a second one means that the person does not want to wait."""

    def __init__(self, on_hangup: Callable[[], None] | None = None) -> None:
        """
        Args:
            on_hangup: what SIGHUP does instead of stopping the server.
        """
        self.received: list[signal.Signals] = []
        self._on_hangup = on_hangup
        self._first = asyncio.Event()
        self._second = asyncio.Event()
        self._first_at = 0.0

    def install(self) -> None:
        """Take over the signals in the running loop."""
        loop = asyncio.get_running_loop()
        for number in heeded_signals():
            loop.add_signal_handler(number, self._record, number)
        if self._on_hangup:  # also under nohup: the signal has a meaning then
            loop.add_signal_handler(signal.SIGHUP, self._on_hangup)

    async def wait_first(self) -> None:
        await self._first.wait()

    async def wait_second(self) -> None:
        await self._second.wait()

    def _record(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if not self._first.is_set():
            self._first_at = now
            self._first.set()
        elif now - self._first_at < ECHO_S:
            return
        else:
            self._second.set()
        self.received.append(number)
