"""Times for people to read."""

from __future__ import annotations

import time


def format_time(seconds: float) -> str:
    """
    Args:
        seconds: since the epoch.
    """
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
