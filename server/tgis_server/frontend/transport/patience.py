"""Limits how long clients may keep the server waiting, and how many bytes of requests and answers it holds for them.

All doors share one object. It decides when to end a call or a connection; each door knows how.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import mmap
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias, TypeVar

from tgis_server.errors import Overloaded
from tgis_server.frontend.metrics import Metrics

T = TypeVar("T")
End: TypeAlias = Callable[[str, str], None]  # status and text; ends the call or connection

logger = logging.getLogger(__name__)

RECEIVE_TIMEOUT_S = 60.0  # time for a request to arrive completely
FREE_BYTES = 64 << 10  # the part of a message that needs no extra time: it fits in the first window
MIN_BYTES_PER_S = 256 << 10  # extra time for larger messages: the library does not report progress
DEADLINE_GRACE_S = 1.0  # extra time for writes after a request's own deadline, such as its last frame
MAX_BYTES_HELD = 128 << 20  # requests in progress and unary answers being sent
TRIM_BYTES = 32 << 20  # growth of the process after which memory is returned to the system
TRIM_CHECKS = (1, 16, 64)  # done after this many further checks
CHECK_S = 0.25
IDLE_TIMEOUT_S = 600.0  # time for the next request of a call that streams its requests
MAX_WAITING = 1000  # requests waiting for memory; the library buffers up to 64 KiB of each
MEMORY_TIMEOUT_S = 10.0  # time that such a request may wait
MAX_SLOW_REQUESTS = 64  # requests that have been arriving for more than two checks
MAX_LET_IN = 8  # waiting requests that may start to arrive at once
RECLAIM_AFTER_S = 1.0  # after this time an answer may be dropped if its memory is needed
RECLAIM_BYTES_PER_S = 4 << 20  # extra time for large answers


@dataclass(frozen=True, slots=True)
class _Ending:
    """How to end a call whose client keeps the server waiting."""

    reason: str  # the label in metrics
    status: str
    text: str


TOO_LATE = _Ending(
    "send_timeout",
    "DEADLINE_EXCEEDED",
    "The client did not take the answer in time: it reads too slowly, or not at all.",
)
IDLE = _Ending("idle_timeout", "DEADLINE_EXCEEDED", f"No further request came within {IDLE_TIMEOUT_S:g} s.")
NOT_ARRIVED = _Ending(
    "receive_timeout", "DEADLINE_EXCEEDED", f"The request did not arrive within {RECEIVE_TIMEOUT_S:g} s."
)
SLOW = _Ending("slow_request", "RESOURCE_EXHAUSTED", "Too many requests are arriving slowly.")
RECLAIMED = _Ending("reclaimed", "RESOURCE_EXHAUSTED", "The answer was not taken in time, and its memory is needed.")


@dataclass(slots=True, eq=False)
class Wait:
    """A wait for a client; reusable."""

    end: End
    num_held: int = 0  # bytes freed if it is ended
    began_at: float = 0.0
    due_at: float = 0.0
    began_in_check: int = 0
    is_over: bool = False  # its call has been ended


@dataclass(slots=True)
class Patience:
    """Tracks all waits and held bytes. Belongs to one event loop."""

    send_timeout_s: float
    metrics: Metrics
    max_bytes_held: int = MAX_BYTES_HELD
    num_bytes_held: int = 0
    _sending: dict[Wait, None] = field(default_factory=dict)
    _receiving: dict[Wait, None] = field(default_factory=dict)
    _idle: dict[Wait, None] = field(default_factory=dict)
    _requests: dict[object, int] = field(default_factory=dict)  # bytes held, by call
    _queue: deque[asyncio.Future[None]] = field(default_factory=deque)  # requests waiting for memory
    _num_checks: int = 0
    _trimmed_bytes: int = field(default_factory=lambda: get_resident_bytes())  # the size after memory was last returned
    _trims: list[int] = field(default_factory=list)  # the checks at which to return memory

    @property
    def num_waiting(self) -> int:
        """Requests waiting for memory."""
        return len(self._queue)

    def send_bound_s(self, num_bytes: int, deadline: float | None = None) -> float:
        """Seconds a client has to take a message."""
        bound_s = self.send_timeout_s
        if deadline is not None:
            bound_s = min(bound_s, max(0.0, deadline - time.monotonic()) + DEADLINE_GRACE_S)
        return bound_s + max(0, num_bytes - FREE_BYTES) / MIN_BYTES_PER_S

    def begin_sending(self, wait: Wait, num_bytes: int, deadline: float | None = None) -> None:
        """Time a write until :meth:`end_sending`; if the write takes too long, the call is ended.

        Every frame needs this, so it must be cheap: it sets no timer; instead, :meth:`check` finds the late writes.

        Args:
            deadline: the request's, on the host's monotonic clock.
        """
        self._begin(self._sending, wait, self.send_bound_s(num_bytes, deadline))

    def end_sending(self, wait: Wait) -> None:
        self._sending.pop(wait, None)

    def start_sending(self, end: End, num_bytes: int) -> Callable[[], None]:
        """Time a single message; call the returned function when it is written."""
        wait = Wait(end)
        self.begin_sending(wait, num_bytes)
        return partial(self.end_sending, wait)

    async def receive(
        self, read: Callable[[], Awaitable[T]], end: End, *, is_first: bool = True, limits_memory: bool = False
    ) -> T:
        """Read a request; with ``limits_memory``, first wait until memory is free.

        Raises:
            Overloaded: memory was not free in time.
        """
        if limits_memory and (self._queue or self.num_bytes_held >= self.max_bytes_held):
            await self._wait_for_memory()
        waits, bound_s = (self._receiving, RECEIVE_TIMEOUT_S) if is_first else (self._idle, IDLE_TIMEOUT_S)
        wait = Wait(end)
        self._begin(waits, wait, bound_s)
        try:
            return await read()
        finally:
            waits.pop(wait, None)

    def hold_request(self, call: object, num_bytes: int) -> None:
        """Count a request's bytes as held until :meth:`release_request`."""
        self._requests[call] = self._requests.get(call, 0) + num_bytes
        self._add_held(num_bytes)

    def release_request(self, call: object) -> None:
        """Stop counting a request's bytes: its text is no longer needed, or its call has ended."""
        self._release(self._requests.pop(call, 0))

    def hold_answer(self, end: End, num_bytes: int) -> Callable[[], None]:
        """Count an answer's bytes as held until the returned function is called.

        If others need the memory, the answer is dropped.
        """
        wait = Wait(end, num_held=num_bytes)
        self.begin_sending(wait, num_bytes)
        self._add_held(num_bytes)

        def stop() -> None:
            self.end_sending(wait)
            held, wait.num_held = wait.num_held, 0
            self._release(held)

        return stop

    async def run(self) -> None:
        """Check periodically, forever."""
        while True:
            await asyncio.sleep(CHECK_S)
            try:
                self.check()
                await self._return_memory()
            except Exception:
                logger.exception("The check for late clients failed.")

    def check(self) -> None:
        """End late calls, and the oldest slow requests if there are too many of them.

        A request is slow if it has not arrived after two checks: counting time would blame clients for a slow server.
        """
        self._num_checks += 1
        now = time.monotonic()
        for waits, ending in ((self._sending, TOO_LATE), (self._receiving, NOT_ARRIVED), (self._idle, IDLE)):
            for wait in [wait for wait in waits if now >= wait.due_at]:
                self._give_up(wait, ending)
        slow = [wait for wait in self._receiving if self._num_checks - wait.began_in_check > 2 and not wait.is_over]
        for wait in slow[: max(0, len(slow) - MAX_SLOW_REQUESTS)]:
            self._give_up(wait, SLOW)
        if self._queue:
            self._reclaim()
            self._let_in()

    async def _return_memory(self) -> None:
        """Return the memory of finished requests and connections to the system: malloc alone would keep it.

        This is done several times: some memory may still be in use at first, and the library frees its buffers late.
        """
        if not self._trims and get_resident_bytes() >= self._trimmed_bytes + TRIM_BYTES:
            self._trims = [self._num_checks + number for number in TRIM_CHECKS]
        if self._trims and self._num_checks >= self._trims[0]:
            self._trims.pop(0)
            await asyncio.to_thread(trim_memory)
            self._trimmed_bytes = get_resident_bytes()

    def _begin(self, waits: dict[Wait, None], wait: Wait, bound_s: float) -> None:
        wait.began_at = now = time.monotonic()
        wait.due_at = now + bound_s
        wait.began_in_check = self._num_checks
        waits[wait] = None

    def _give_up(self, wait: Wait, ending: _Ending) -> None:
        if not wait.is_over:
            wait.is_over = True
            self.metrics.count_abort(ending.reason)
            wait.end(ending.status, ending.text)

    def _add_held(self, num_bytes: int) -> None:
        self.num_bytes_held += num_bytes
        if self.num_bytes_held >= self.max_bytes_held:
            self._reclaim()

    def _release(self, num_bytes: int) -> None:
        if num_bytes:
            self.num_bytes_held -= num_bytes
            self._let_in()

    def _reclaim(self) -> None:
        """Drop answers that clients do not take, oldest first, if others need their memory."""
        excess, now = self.num_bytes_held - self.max_bytes_held, time.monotonic()
        for wait in list(self._sending):
            if excess < 0:
                break
            patience_s = RECLAIM_AFTER_S + wait.num_held / RECLAIM_BYTES_PER_S
            if wait.num_held and not wait.is_over and now - wait.began_at >= patience_s:
                excess -= wait.num_held
                self._give_up(wait, RECLAIMED)

    async def _wait_for_memory(self) -> None:
        """Wait in line until fewer bytes are held than are allowed."""
        if len(self._queue) >= MAX_WAITING:
            self.metrics.count_abort("no_room")
            raise Overloaded
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        self._reclaim()
        try:
            await asyncio.wait_for(turn, MEMORY_TIMEOUT_S)
        except TimeoutError:
            self.metrics.count_abort("no_room")
            raise Overloaded from None
        finally:
            with contextlib.suppress(ValueError):  # its turn has come
                self._queue.remove(turn)

    def _let_in(self) -> None:
        """Let in only a few of the waiting requests: their sizes are unknown until they have arrived."""
        num_let_in = 0
        while self._queue and self.num_bytes_held < self.max_bytes_held and num_let_in < MAX_LET_IN:
            turn = self._queue.popleft()
            if not turn.done():  # otherwise its client has left
                turn.set_result(None)
                num_let_in += 1


def get_resident_bytes() -> int:
    """The resident size of this process; takes about 10 µs."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


def trim_memory() -> None:
    with contextlib.suppress(OSError, AttributeError):  # glibc only; other C libraries return memory on their own
        ctypes.CDLL(None).malloc_trim(0)
