"""SIGTERM, SIGINT and SIGHUP for commands that run until they are done. A launch has ``supervisor/signals.py``."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from tgis_server.errors import TgisError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
EXIT_INTERRUPTED = 130


class Interrupted(TgisError):
    """A person or a supervisor ended the command."""

    exit_code = EXIT_INTERRUPTED


def heeded_signals() -> list[signal.Signals]:
    """SIGHUP stays ignored where it is (``nohup``)."""
    return [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """The first stop signal ends the block as an error does, so that it removes what it has begun.

    The second does what it did before.

    Raises:
        Interrupted: a stop signal came.
    """
    received: list[signal.Signals] = []
    before = {number: signal.getsignal(number) for number in heeded_signals()}

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        restore()
        raise KeyboardInterrupt  # which nothing takes for a failure of its own

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"Stopped by {received[0].name}." if received else "Stopped.") from None
    finally:
        restore()
