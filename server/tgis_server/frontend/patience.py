"""How long a client may keep the server waiting, and how many bytes of requests and answers may be held meanwhile.

One object for every door (gRPC, HTTP). A door says how it ends a call or a connection; when, is decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from tgis_server.metrics import Metrics

T = TypeVar("T")
End: TypeAlias = Callable[[str, str], None]  # status and text; ends what keeps the server waiting

RECEIVE_TIMEOUT_S = 60.0  # for a request to arrive whole
FREE_BYTES = 64 << 10  # of a message: what fits in the first window takes no time of its own
MIN_BYTES_PER_S = 256 << 10  # a message gets a second more for so many bytes: the library does not tell how far it is
DEADLINE_GRACE_S = 1.0  # for what is written after the request's own deadline, as its last frame is
MAX_BYTES_HELD = 128 << 20  # requests in work and unary answers on their way
TRIM_BYTES = 16 << 20  # after so many at once, memory is returned to the system
TRIM_CHECKS = (1, 4, 16)  # later
CHECK_S = 0.25
MAX_SLOW_REQUESTS = 64  # that have begun to arrive, and have not in two checks
LET_IN = 8  # at a time
RECLAIM_AFTER_S = 1.0  # without progress: an answer may be given up where its bytes are wanted


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a call ends whose client keeps the server waiting."""

    reason: str  # as metrics name it
    status: str
    text: str


TOO_LATE = _Ending(
    "send_timeout",
    "DEADLINE_EXCEEDED",
    "The client did not take the answer in time: it reads too slowly, or not at all.",
)
NOT_ARRIVED = _Ending(
    "receive_timeout", "DEADLINE_EXCEEDED", f"The request did not arrive within {RECEIVE_TIMEOUT_S:g} s."
)
SLOW = _Ending("slow_request", "RESOURCE_EXHAUSTED", "Too many requests arrive slowly.")
RECLAIMED = _Ending("reclaimed", "RESOURCE_EXHAUSTED", "The answer was not taken in time, and its memory is needed.")


@dataclass(slots=True, eq=False)
class _Wait:
    """A client that is waited for."""

    end: End
    num_bytes: int
    began_at: float
    due_at: float
    began_in_check: int
    is_over: bool = False


@dataclass(slots=True)
class Patience:
    """Belongs to one event loop."""

    send_timeout_s: float
    metrics: Metrics
    max_bytes_held: int = MAX_BYTES_HELD
    num_bytes_held: int = 0
    _sending: dict[_Wait, None] = field(default_factory=dict)
    _receiving: dict[_Wait, None] = field(default_factory=dict)
    _queue: deque[asyncio.Future[None]] = field(default_factory=deque)  # of requests that wait for room
    _num_checks: int = 0
    _most_bytes_held: int = 0  # since memory was returned
    _trims: list[int] = field(default_factory=list)  # the checks at which it is returned

    def send_bound_s(self, num_bytes: int, deadline: float | None = None) -> float:
        """Seconds that a client gets to take a message."""
        bound_s = self.send_timeout_s
        if deadline is not None:
            bound_s = min(bound_s, max(0.0, deadline - time.monotonic()) + DEADLINE_GRACE_S)
        return bound_s + max(0, num_bytes - FREE_BYTES) / MIN_BYTES_PER_S

    def start_sending(self, end: End, num_bytes: int, deadline: float | None = None) -> Callable[[], None]:
        """A message is being written until what is returned is called; ``end`` is called if that takes too long.

        Cheap, as it happens for every frame: no timer is made, :meth:`check` looks at what is late.

        Args:
            deadline: of the request, host monotonic clock.
        """
        return self._begin(self._sending, end, num_bytes, self.send_bound_s(num_bytes, deadline))

    async def receive(self, read: Callable[[], Awaitable[T]], end: End, *, waits_for_room: bool) -> T:
        """Read a request, as soon as there is room for it."""
        if waits_for_room and (self._queue or self.num_bytes_held >= self.max_bytes_held):
            await self._wait_for_room()
        stop = self._begin(self._receiving, end, 0, RECEIVE_TIMEOUT_S)
        try:
            return await read()
        finally:
            stop()

    def hold(self, num_bytes: int) -> Callable[[], None]:
        """Count bytes of a request or an answer as held, until what is returned is called."""
        self.num_bytes_held += num_bytes
        self._most_bytes_held = max(self._most_bytes_held, self.num_bytes_held)
        if self.num_bytes_held >= self.max_bytes_held:
            self._reclaim()

        def release() -> None:
            nonlocal num_bytes
            self.num_bytes_held, num_bytes = self.num_bytes_held - num_bytes, 0
            self._let_in()

        return release

    async def run(self) -> None:
        """Look at who is late, for ever."""
        while True:
            await asyncio.sleep(CHECK_S)
            self.check()
            await self._return_memory()

    def check(self) -> None:
        """End what is late, and of the requests that arrive slowly the oldest, if these are too many.

        Slow is what has not arrived in two checks, not in some time: where this process is slow, checks are rare.
        """
        self._num_checks += 1
        now = time.monotonic()
        for waits, ending in ((self._sending, TOO_LATE), (self._receiving, NOT_ARRIVED)):
            for wait in [wait for wait in waits if now >= wait.due_at]:
                self._give_up(wait, ending)
        slow = [wait for wait in self._receiving if self._num_checks - wait.began_in_check > 2 and not wait.is_over]
        for wait in slow[: max(0, len(slow) - MAX_SLOW_REQUESTS)]:
            self._give_up(wait, SLOW)
        if self._queue:
            self._reclaim()
            self._let_in()

    async def _return_memory(self) -> None:
        """Give what many large requests have taken back to the system, once they are gone: malloc keeps it.

        Several times: the library frees its buffers later than we do.
        """
        if self._most_bytes_held >= TRIM_BYTES and self.num_bytes_held < TRIM_BYTES // 2:
            self._most_bytes_held = 0
            self._trims = [self._num_checks + number for number in TRIM_CHECKS]
        if self._trims and self._num_checks >= self._trims[0]:
            self._trims.pop(0)
            await asyncio.to_thread(trim_memory)

    def _begin(self, waits: dict[_Wait, None], end: End, num_bytes: int, bound_s: float) -> Callable[[], None]:
        now = time.monotonic()
        wait = _Wait(end, num_bytes, now, now + bound_s, self._num_checks)
        waits[wait] = None

        def stop() -> None:
            wait.is_over = True
            waits.pop(wait, None)

        return stop

    def _give_up(self, wait: _Wait, ending: _Ending) -> None:
        if not wait.is_over:
            wait.is_over = True
            self.metrics.count_abort(ending.reason)
            wait.end(ending.status, ending.text)

    def _reclaim(self) -> None:
        """Give up answers that nobody reads, the oldest first, where others need the room."""
        excess = self.num_bytes_held - self.max_bytes_held
        for wait in list(self._sending):
            if excess < 0 or time.monotonic() - wait.began_at < RECLAIM_AFTER_S:
                break
            if wait.num_bytes and not wait.is_over:
                excess -= wait.num_bytes
                self._give_up(wait, RECLAIMED)

    async def _wait_for_room(self) -> None:
        """Until fewer bytes are held than may be, in order."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        self._reclaim()
        await turn

    def _let_in(self) -> None:
        """Let a few of those in that wait: only when they have arrived one knows how much room they need."""
        num_let_in = 0
        while self._queue and self.num_bytes_held < self.max_bytes_held and num_let_in < LET_IN:
            turn = self._queue.popleft()
            if not turn.done():  # else its client has left
                turn.set_result(None)
                num_let_in += 1


def trim_memory() -> None:
    with contextlib.suppress(OSError, AttributeError):  # a C library other than glibc returns memory by itself
        ctypes.CDLL(None).malloc_trim(0)
