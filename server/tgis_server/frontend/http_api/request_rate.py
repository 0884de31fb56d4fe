"""Limits the rate of HTTP requests: they share an event loop with the streams, which they must not starve.

Requests beyond the rate wait; none is refused. Each connection has a rate, and so does the port. The connection with
the fewest recent requests goes first, so a probe is answered at once whatever other clients do.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from dataclasses import dataclass, field
from itertools import count

CONNECTION_RATE_PER_S = 20
CONNECTION_BURST = 50
PORT_RATE_PER_S = 400  # this many take a tenth of one CPU
PORT_BURST = 100


@dataclass(slots=True)
class Bucket:
    """A token bucket, filled at a fixed rate; each request takes one token."""

    rate_per_s: float
    max_tokens: float
    tokens: float = field(init=False)
    filled_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.tokens, self.filled_at = self.max_tokens, time.monotonic()

    def wait_s(self) -> float:
        """Seconds until a token is available; 0 if one is."""
        now = time.monotonic()
        self.tokens = min(self.max_tokens, self.tokens + (now - self.filled_at) * self.rate_per_s)
        self.filled_at = now
        return max(0.0, (1 - self.tokens) / self.rate_per_s)


def connection_bucket() -> Bucket:
    return Bucket(CONNECTION_RATE_PER_S, CONNECTION_BURST)


class RequestRate:
    """The rate of a port. It belongs to one event loop."""

    def __init__(self, rate_per_s: float = PORT_RATE_PER_S, burst: float = PORT_BURST) -> None:
        self._bucket = Bucket(rate_per_s, burst)
        self._numbers = count()
        self._queue: list[tuple[float, int, asyncio.Future[None], Bucket]] = []  # a heap: most tokens first
        self._timer: asyncio.TimerHandle | None = None

    def take_turn(self, own: Bucket) -> bool:
        """Take a turn for the connection whose bucket is ``own``, unless it or others must wait.

        Returns whether a turn was taken.
        """
        if self._queue or own.wait_s() or self._bucket.wait_s():
            return False
        self._take(own)
        return True

    async def wait_turn(self, own: Bucket) -> None:
        """Wait until the next request of a connection may be handled. Each connection may wait only once at a time."""
        if wait_s := own.wait_s():
            await asyncio.sleep(wait_s)
        if self.take_turn(own):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (-own.tokens, next(self._numbers), turn, own))
        if not self._timer:
            self._give_turns()
        await turn

    def _take(self, own: Bucket) -> None:
        own.tokens -= 1
        self._bucket.tokens -= 1

    def _give_turns(self) -> None:
        self._timer = None
        while self._queue:
            _, _, turn, own = self._queue[0]
            if not turn.done():  # otherwise its client has left
                if wait_s := self._bucket.wait_s():
                    self._timer = asyncio.get_running_loop().call_later(wait_s, self._give_turns)
                    return
                self._take(own)
                turn.set_result(None)
            heapq.heappop(self._queue)
