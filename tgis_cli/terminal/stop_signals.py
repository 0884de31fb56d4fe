"""SIGTERM, SIGINT and SIGHUP for all commands but ``launch``, which has ``supervisor/signals.py``."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

from tgis_server.errors import TgisError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
EXIT_INTERRUPTED = 130
# `timeout` and some init systems signal a process and then its group: a repeat within this time is no second request.
ECHO_S = 0.2

on_stop: list[Callable[[signal.Signals], None]] = []  # how to stop the work; empty: by an exception


class Interrupted(TgisError):
    """A stop signal ended the command."""

    exit_code = EXIT_INTERRUPTED


def heeded_signals() -> list[signal.Signals]:
    """The stop signals that are not ignored, as ``nohup`` ignores SIGHUP."""
    return [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Make the first stop signal end the block like an error, so that it can clean up.

    An echo of the signal is ignored; a later one has its previous effect.

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
                raise KeyboardInterrupt  # not caught by `except Exception`
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
        if not received:  # otherwise an echo may still arrive
            restore()


class StopRequested(BaseException):
    """Not caught by what handles errors or Ctrl-C."""


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end the block, in which Ctrl-C may mean something else. More of them are ignored then.

    Raises:
        Interrupted: one of them came.
    """
    before = {number: signal.getsignal(number) for number in heeded_signals() if number is not signal.SIGINT}

    def end(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, lambda *_: None)
        raise StopRequested(number)

    for number in before:
        signal.signal(number, end)
    try:
        yield
    except StopRequested as request:
        raise Interrupted(f"Stopped by {signal.Signals(request.args[0]).name}.") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def stopping_by(stop: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Within :func:`interrupted_by_signals`: let the first stop signal call ``stop`` instead of raising."""
    on_stop.append(stop)
    try:
        yield
    finally:
        on_stop.pop()
