"""The text of ``/metrics``, made beside the event loop and not too often, however many ask for it.

It takes some 10 ms of Python and has 50 KB: clients that ask in a loop would leave the event loop no time for streams.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

MIN_PERIOD_S = 0.2


class MetricsText:
    """Belongs to one event loop."""

    def __init__(self, begin: Callable[[], Callable[[], bytes]]) -> None:
        """``begin`` is called on the event loop, what it returns in a thread."""
        self._begin = begin
        self._next: asyncio.Task[bytes] | None = None  # the text that has not been begun
        self._begun_at = float("-inf")

    async def get(self) -> bytes:
        """A text that was begun after this call. Callers that come together get the same one; none are made faster
        than one each ``MIN_PERIOD_S``, which callers in a loop wait for."""
        if self._next is None:
            self._next = asyncio.create_task(self._make(), name="metrics-text")
        return await asyncio.shield(self._next)  # one caller who leaves takes nothing from the others

    async def _make(self) -> bytes:
        await asyncio.sleep(self._begun_at + MIN_PERIOD_S - time.monotonic())
        self._next = None
        self._begun_at = time.monotonic()
        return await asyncio.to_thread(self._begin())
