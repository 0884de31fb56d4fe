"""How signals are written."""

from __future__ import annotations

import signal


def signal_name(number: int) -> str:
    """``SIGKILL``; ``signal 40``, a real-time signal, of which most have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
