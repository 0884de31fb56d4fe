"""An event loop for measuring."""

from __future__ import annotations

import asyncio
import selectors


def make_exact_loop() -> asyncio.AbstractEventLoop:
    """An event loop whose timers are not rounded up to milliseconds, as those of epoll are. For few connections."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())
