"""SIGTERM, SIGINT and SIGHUP of a launch: recorded by handlers, acted on by the supervisor's loop.

SIGHUP, which a closing terminal sends, stops the server as in the original, unless there is a log file to reopen.
Children ignore it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Collection, Iterator
from types import FrameType

from tgis_cli.terminal.stop_signals import ECHO_S, STOP_SIGNALS, heeded_signals


def exit_until_supervised() -> None:
    """Before there are children, let a stop signal raise ``SystemExit``, with the same exit code as later."""

    def leave(number: int, frame: FrameType | None) -> None:
        for each in STOP_SIGNALS:  # another one would interrupt the clean-up, and the exit code is decided
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(0)

    for number in heeded_signals():
        signal.signal(number, leave)


def decide_hangup(*, has_log_file: bool) -> None:
    """Unblock SIGHUP, held since the process began, now that the options say what it means."""
    if has_log_file:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nothing to reopen yet
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


@contextlib.contextmanager
def signals_held(numbers: Collection[signal.Signals] = STOP_SIGNALS) -> Iterator[None]:
    """Hold signals until the block ends. A process that the block starts inherits them as blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StopSignals:
    """Counts stop signals; a second one asks the server to stop at once.

    SIGHUP never counts as the second: closing the terminal during a drain is not a request to hurry.
    """

    def __init__(self, on_hangup: Callable[[], None] | None = None) -> None:
        """
        Args:
            on_hangup: called on SIGHUP instead of stopping the server.
        """
        self.received: list[signal.Signals] = []
        self._on_hangup = on_hangup
        self._first = asyncio.Event()
        self._second = asyncio.Event()
        self._first_at = 0.0

    def install(self) -> None:
        """Handle the signals in the running loop."""
        loop = asyncio.get_running_loop()
        for number in heeded_signals():
            loop.add_signal_handler(number, self._record, number)
        if self._on_hangup:  # also under nohup: the signal has a different meaning
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
        elif number == signal.SIGHUP or now - self._first_at < ECHO_S:
            return
        else:
            self._second.set()
        self.received.append(number)
