"""SIGTERM, SIGINT and SIGHUP for all commands but ``launch``, which has ``supervisor/signals.py``.

The exit code is the one with which shells report death by the signal: 143, 130 and 129.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from tgis_server.errors import TgisError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
EXIT_INTERRUPTED = 128 + signal.SIGINT
# `timeout` and some init systems signal a process, then its group: a repeat within this time is not a second request.
ECHO_S = 0.2

on_stop: list[Callable[[signal.Signals], None]] = []  # how to stop the work; empty: by an exception


class Interrupted(TgisError):
    """A stop signal ended the command."""

    def __init__(self, number: signal.Signals, rest: str = "") -> None:
        """
        Args:
            rest: the rest of the sentence, such as what is kept.
        """
        super().__init__(f"Stopped by {number.name}{f': {rest}' if rest else '.'}")
        self.exit_code = 128 + number  # type: ignore[misc]  # of the class otherwise


def heeded_signals() -> list[signal.Signals]:
    """The stop signals that are not ignored, as ``nohup`` ignores SIGHUP."""
    return [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Make the first stop signal end the block like an error, so that it can clean up.

    An echo of the signal is ignored; a later signal has its usual effect.

    Raises:
        Interrupted: a stop signal arrived.
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
        raise Interrupted(received[0][0] if received else signal.SIGINT) from None
    finally:
        if not received:  # otherwise an echo may still arrive
            restore()


class StopRequested(BaseException):
    """Not caught by handlers of errors or of Ctrl-C."""


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end the block, in which Ctrl-C may mean something else. Later signals are ignored.

    Python handles signals only in the main thread; in other threads this does nothing.

    Raises:
        Interrupted: one of them came. It replaces errors that it causes, such as those of a closed terminal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[signal.Signals] = []
    before = {number: signal.getsignal(number) for number in heeded_signals() if number is not signal.SIGINT}

    def end(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, lambda *_: None)
        received.append(signal.Signals(number))
        raise StopRequested

    for number in before:
        signal.signal(number, end)
    try:
        yield
    except (StopRequested, Exception):
        if not received:
            raise
        raise Interrupted(received[0]) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stop:
    """The stop signal that ends the work of a command early, with what it has done until then."""

    def __init__(self) -> None:
        self._received: list[signal.Signals] = []

    def __bool__(self) -> bool:
        """Whether one came."""
        return bool(self._received)

    @contextlib.contextmanager
    def calling(self, stop: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Within :func:`interrupted_by_signals`: let the first stop signal call ``stop`` instead of raising."""

        def note(number: signal.Signals) -> None:
            self._received.append(number)
            stop()

        on_stop.append(note)
        try:
            yield
        finally:
            on_stop.pop()

    def exit_code(self, otherwise: int = 0) -> int:
        return 128 + self._received[0] if self._received else otherwise

    def as_error(self, rest: str = "") -> Interrupted:
        """Of a signal that came, where nothing has been done until then."""
        return Interrupted(self._received[0], rest)
