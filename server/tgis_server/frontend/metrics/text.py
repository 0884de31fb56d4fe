"""The text of ``/metrics``, rendered off the event loop and at a limited rate, whatever the number of scrapers.

A text is 50 KB long and takes about 10 ms of Python: clients scraping in a loop would starve the streams.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

MIN_PERIOD_S = 0.2


class MetricsText:
    """Shares each text among concurrent scrapers. Belongs to one event loop."""

    def __init__(self, take_snapshot: Callable[[], Callable[[], bytes]]) -> None:
        """``take_snapshot`` is called on the event loop; the function it returns is called in a thread."""
        self._take_snapshot = take_snapshot
        self._next: asyncio.Task[bytes] | None = None  # a text whose rendering has not started yet
        self._started_at = float("-inf")

    async def get(self) -> bytes:
        """A text whose snapshot is taken after this call.

        Concurrent callers share one. At most one is rendered per ``MIN_PERIOD_S``; callers wait for it.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._render(), name="metrics-text")
        return await asyncio.shield(self._next)  # a cancelled caller must not cancel it for the others

    async def _render(self) -> bytes:
        await asyncio.sleep(self._started_at + MIN_PERIOD_S - time.monotonic())
        self._next = None
        self._started_at = time.monotonic()
        return await asyncio.to_thread(self._take_snapshot())
