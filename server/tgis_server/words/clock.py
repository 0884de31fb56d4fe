"""Points in time as people read them."""

from __future__ import annotations

import time


def format_time(seconds: float) -> str:
    """
    Args:
        seconds: since the epoch.
    """
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
