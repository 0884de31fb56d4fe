"""SIGTERM, SIGINT and SIGHUP for commands that run until they are done. A launch has ``supervisor/signals.py``."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

from tgis_server.errors import TgisError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
EXIT_INTERRUPTED = 130
# `timeout` and some init systems signal a process and then its group: an echo within this time is not impatience.
ECHO_S = 0.2

on_stop: list[Callable[[signal.Signals], None]] = []  # what stops the work; empty: an exception does


class Interrupted(TgisError):
    """A person or a supervisor ended the command."""

    exit_code = EXIT_INTERRUPTED


def heeded_signals() -> list[signal.Signals]:
    """SIGHUP stays ignored where it is (``nohup``)."""
    return [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """The first stop signal ends the block as an error does, so that it removes what it has begun.

    An echo of it is ignored; a later one does what it did before.

    Raises:
        Interrupted: a stop signal came.
    """
    received: list[tuple[signal.Signals, float]] = []
    before = {number: signal.getsignal(number) for number in heeded_signals()}

    def stop(number: int, frame: FrameType | None) -> None:
        name, now = signal.Signals(number), time.monotonic()
        if not received:
            received.append((name, now))
            if not on_stop:
                raise KeyboardInterrupt  # which nothing takes for a failure of its own
            on_stop[-1](name)
        elif now - received[0][1] > ECHO_S:
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"Stopped by {received[0][0].name}." if received else "Stopped.") from None
    finally:
        if not received:  # else an echo may yet come
            restore()


@contextlib.contextmanager
def stopping_by(stop: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Within :func:`interrupted_by_signals`: in this block the first stop signal calls ``stop`` in place of raising."""
    on_stop.append(stop)
    try:
        yield
    finally:
        on_stop.pop()
