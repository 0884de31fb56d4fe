"""Many requests at once, with their outcomes in order.

Memory is bounded: at most ``parallel`` calls run at once, and at most ``WINDOW`` times as many requests have started
but have not been yielded, however many there are and however slow one of them is.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Generic, TypeVar

from tgis_server.errors import Overloaded, RequestError

WINDOW = 4
PATIENCE_S = 60.0  # how long a request is retried while the server is overloaded
PAUSE_S = 0.5  # before the next attempt, if no call of ours is running
TICK_S = 0.1

Request = TypeVar("Request")
Result = TypeVar("Result")
OnDone = Callable[[Result | RequestError], None]


class InOrder(Generic[Request, Result]):
    """Runs requests; iterating yields each request with its result or error.

    A request that an overloaded server refuses is retried, with fewer calls at once. Ending the iteration cancels
    all running calls.
    """

    def __init__(
        self,
        requests: Iterable[Request],
        start: Callable[[Request, OnDone[Result]], Callable[[], None]],
        parallel: int,
        *,
        on_tick: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            start: starts a call without waiting and returns a function that cancels it; calls ``on_done`` once, from
                any thread.
            on_tick: called at least every ``TICK_S``, from the thread that iterates.
        """
        self._requests = enumerate(requests)
        self._start = start
        self._parallel = parallel
        self._allowed = parallel  # calls at once; fewer after an overload
        self._on_tick = on_tick
        self._clock = clock
        self._ended: queue.SimpleQueue[tuple[int, Result | RequestError]] = queue.SimpleQueue()
        self._begun: dict[int, tuple[Request, float]] = {}  # but not yet yielded; with the time of the first attempt
        self._cancels: dict[int, Callable[[], None]] = {}  # of the running calls
        self._refused: deque[int] = deque()  # to be started again
        self._finished: dict[int, Result | RequestError] = {}  # but not yet due
        self._num_begun = 0
        self._num_since_refusal = 0
        self._retry_at = 0.0
        self.num_running = 0

    def __iter__(self) -> Iterator[tuple[Request, Result | RequestError]]:
        due = 0
        try:
            while self._start_calls(due):
                self._take_ended()
                while due in self._finished:
                    request, _ = self._begun.pop(due)
                    yield request, self._finished.pop(due)
                    due += 1
        finally:
            for cancel in list(self._cancels.values()):
                cancel()

    def _start_calls(self, due: int) -> bool:
        """Start the calls that may run now; return whether any request is left."""
        while self._refused and len(self._cancels) < self._allowed and self._clock() >= self._retry_at:
            self._start_call(self._refused.popleft())
        while not self._refused and len(self._cancels) < self._allowed:
            following = next(self._requests, None) if self._num_begun - due < WINDOW * self._parallel else None
            if following is None:
                break
            index, request = following
            self._begun[index] = (request, self._clock())
            self._num_begun += 1
            self._start_call(index)
        self.num_running = len(self._cancels)
        return bool(self._begun)

    def _start_call(self, index: int) -> None:
        self._cancels[index] = lambda: None  # the call may end before `start` returns
        self._cancels[index] = self._start(self._begun[index][0], partial(self._end, index))

    def _end(self, index: int, result: Result | RequestError) -> None:
        self._ended.put((index, result))

    def _take_ended(self) -> None:
        """Wait for the next call to end, for at most one tick."""
        self._on_tick()
        try:
            index, result = self._ended.get(timeout=TICK_S)
        except queue.Empty:
            return
        del self._cancels[index]
        if is_overload(result) and self._clock() - self._begun[index][1] < PATIENCE_S:
            self._refused.append(index)
            self._allowed, self._num_since_refusal = max(1, len(self._cancels)), 0
            self._retry_at = self._clock() + (PAUSE_S if not self._cancels else 0.0)
            return
        self._finished[index] = result
        self._num_since_refusal += 1
        if self._num_since_refusal > self._allowed < self._parallel:
            self._allowed, self._num_since_refusal = self._allowed + 1, 0


def is_overload(result: object) -> bool:
    """Whether the server refused a request only because it is overloaded."""
    return isinstance(result, RequestError) and str(result).startswith(str(Overloaded()))
