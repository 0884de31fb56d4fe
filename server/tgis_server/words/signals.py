"""How signals are written."""

from __future__ import annotations

import signal


def signal_name(number: int) -> str:
    """``SIGKILL``, or ``signal 40`` for a real-time signal, most of which have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
