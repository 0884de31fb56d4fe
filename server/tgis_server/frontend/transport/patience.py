"""How long a client may keep the server waiting, and how many bytes of requests and answers may be held meanwhile.

One object for every door (gRPC, HTTP). A door says how it ends a call or a connection; when, is decided here.
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
End: TypeAlias = Callable[[str, str], None]  # status and text; ends what keeps the server waiting

logger = logging.getLogger(__name__)

RECEIVE_TIMEOUT_S = 60.0  # for a request to arrive whole
FREE_BYTES = 64 << 10  # of a message: what fits in the first window takes no time of its own
MIN_BYTES_PER_S = 256 << 10  # a message gets a second more for so many bytes: the library does not tell how far it is
DEADLINE_GRACE_S = 1.0  # for what is written after the request's own deadline, as its last frame is
MAX_BYTES_HELD = 128 << 20  # requests in work and unary answers on their way
TRIM_BYTES = 32 << 20  # when the process has grown by so much, memory is returned to the system
TRIM_CHECKS = (1, 16, 64)  # later
CHECK_S = 0.25
IDLE_TIMEOUT_S = 600.0  # for the next request of a call that has many
MAX_WAITING = 1000  # requests that wait for room; the library keeps up to 64 KiB of each
MEMORY_TIMEOUT_S = 10.0  # that they wait at most
MAX_SLOW_REQUESTS = 64  # that have begun to arrive, and have not in two checks
MAX_LET_IN = 8  # at a time
RECLAIM_AFTER_S = 1.0  # an answer may be given up where its bytes are wanted,
RECLAIM_BYTES_PER_S = 4 << 20  # and a second later for so many of them


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
IDLE = _Ending("idle_timeout", "DEADLINE_EXCEEDED", f"No further request came within {IDLE_TIMEOUT_S:g} s.")
NOT_ARRIVED = _Ending(
    "receive_timeout", "DEADLINE_EXCEEDED", f"The request did not arrive within {RECEIVE_TIMEOUT_S:g} s."
)
SLOW = _Ending("slow_request", "RESOURCE_EXHAUSTED", "Too many requests arrive slowly.")
RECLAIMED = _Ending("reclaimed", "RESOURCE_EXHAUSTED", "The answer was not taken in time, and its memory is needed.")


@dataclass(slots=True, eq=False)
class Wait:
    """A client that is waited for, maybe several times."""

    end: End
    num_held: int = 0  # bytes that ending it would free
    began_at: float = 0.0
    due_at: float = 0.0
    began_in_check: int = 0
    is_over: bool = False  # it has been ended


@dataclass(slots=True)
class Patience:
    """Belongs to one event loop."""

    send_timeout_s: float
    metrics: Metrics
    max_bytes_held: int = MAX_BYTES_HELD
    num_bytes_held: int = 0
    _sending: dict[Wait, None] = field(default_factory=dict)
    _receiving: dict[Wait, None] = field(default_factory=dict)
    _idle: dict[Wait, None] = field(default_factory=dict)
    _requests: dict[object, int] = field(default_factory=dict)  # bytes held, by call
    _queue: deque[asyncio.Future[None]] = field(default_factory=deque)  # of requests that wait for room
    _num_checks: int = 0
    _trimmed_bytes: int = field(default_factory=lambda: get_resident_bytes())  # when memory was last returned
    _trims: list[int] = field(default_factory=list)  # the checks at which it is returned

    @property
    def num_waiting(self) -> int:
        """Requests that wait for room."""
        return len(self._queue)

    def send_bound_s(self, num_bytes: int, deadline: float | None = None) -> float:
        """Seconds that a client gets to take a message."""
        bound_s = self.send_timeout_s
        if deadline is not None:
            bound_s = min(bound_s, max(0.0, deadline - time.monotonic()) + DEADLINE_GRACE_S)
        return bound_s + max(0, num_bytes - FREE_BYTES) / MIN_BYTES_PER_S

    def begin_sending(self, wait: Wait, num_bytes: int, deadline: float | None = None) -> None:
        """A message is being written until :meth:`end_sending`; the call is ended if that takes too long.

        Cheap, as it happens for every frame: no timer is made, :meth:`check` looks at what is late.

        Args:
            deadline: of the request, host monotonic clock.
        """
        self._begin(self._sending, wait, self.send_bound_s(num_bytes, deadline))

    def end_sending(self, wait: Wait) -> None:
        self._sending.pop(wait, None)

    def start_sending(self, end: End, num_bytes: int) -> Callable[[], None]:
        """The same for one message; what is returned is to be called when it is written."""
        wait = Wait(end)
        self.begin_sending(wait, num_bytes)
        return partial(self.end_sending, wait)

    async def receive(
        self, read: Callable[[], Awaitable[T]], end: End, *, is_first: bool = True, limits_memory: bool = False
    ) -> T:
        """Read a request, as soon as there is room for it.

        Raises:
            Overloaded: there was none for too long.
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
        """The request's text is needed no more, or its call is over."""
        self._release(self._requests.pop(call, 0))

    def hold_answer(self, end: End, num_bytes: int) -> Callable[[], None]:
        """An answer is on its way, until what is returned is called. It is given up where its bytes are wanted."""
        wait = Wait(end, num_held=num_bytes)
        self.begin_sending(wait, num_bytes)
        self._add_held(num_bytes)

        def stop() -> None:
            self.end_sending(wait)
            held, wait.num_held = wait.num_held, 0
            self._release(held)

        return stop

    async def run(self) -> None:
        """Look at who is late, for ever."""
        while True:
            await asyncio.sleep(CHECK_S)
            try:
                self.check()
                await self._return_memory()
            except Exception:
                logger.exception("Looking at who is late failed.")

    def check(self) -> None:
        """End what is late, and of the requests that arrive slowly the oldest, if these are too many.

        Slow is what has not arrived in two checks, not in some time: where this process is slow, checks are rare.
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
        """Give back to the system what requests and connections have taken, once they are gone: malloc keeps it.

        Several times: what has grown may still be in use, and the library frees its buffers later than we do.
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
        """Give up answers that are not taken, the oldest first, where others need the room."""
        excess, now = self.num_bytes_held - self.max_bytes_held, time.monotonic()
        for wait in list(self._sending):
            if excess < 0:
                break
            patience_s = RECLAIM_AFTER_S + wait.num_held / RECLAIM_BYTES_PER_S
            if wait.num_held and not wait.is_over and now - wait.began_at >= patience_s:
                excess -= wait.num_held
                self._give_up(wait, RECLAIMED)

    async def _wait_for_memory(self) -> None:
        """Until fewer bytes are held than may be, in order."""
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
        """Let a few of those in that wait: only when they have arrived one knows how much room they need."""
        num_let_in = 0
        while self._queue and self.num_bytes_held < self.max_bytes_held and num_let_in < MAX_LET_IN:
            turn = self._queue.popleft()
            if not turn.done():  # else its client has left
                turn.set_result(None)
                num_let_in += 1


def get_resident_bytes() -> int:
    """What this process has in memory; costs some 10 µs."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


def trim_memory() -> None:
    with contextlib.suppress(OSError, AttributeError):  # a C library other than glibc returns memory by itself
        ctypes.CDLL(None).malloc_trim(0)
