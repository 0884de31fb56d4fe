"""One worker's part of a level: it sends each call when it is due, and waits until the last one has ended."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from math import inf, isnan
from time import monotonic

from tgis_cli.bench.http2.channel import Channel
from tgis_cli.bench.load.calls import Feed
from tgis_cli.bench.load.columns import CUT
from tgis_cli.bench.load.orders import Share
from tgis_cli.bench.load.recorder import RecordedCall, Recorder, StampedCall, StreamedCall, UnaryCall

# How much is prepared before the level starts, and at least a call for each slot; the others follow during the level.
AHEAD_CALLS = 1000
AHEAD_BYTES = 16 << 20
AHEAD_S = 2.0
# Without these, a closed loop on a server that refuses its calls would send as fast as both can.
FIRST_PAUSE_S, MAX_PAUSE_S = 0.001, 0.1
# After the duration of an open loop; what is not sent until then is dropped.
LATE_S = 1.0
Blocks = dict[bool, bytes]  # header blocks, by whether the call is streamed


class Stock:
    """Calls that are ready to be sent, so that none has to wait until it is made."""

    def __init__(self, share: Share, make: Callable[[int], RecordedCall]) -> None:
        self._make = make
        self._indexes = share.make_indexes()
        self._ready: deque[RecordedCall] = deque()
        self._num_wanted = max(share.num_slots, 1)
        self._num_bytes = 0
        self._is_filling = False

    def prepare(self) -> None:
        """Make the first calls."""
        deadline = monotonic() + AHEAD_S
        while self._add_one():
            is_enough = self._num_bytes >= AHEAD_BYTES or monotonic() >= deadline or len(self._ready) >= AHEAD_CALLS
            if is_enough and len(self._ready) >= self._num_wanted:
                break
        self._num_wanted = len(self._ready)

    def take(self) -> RecordedCall | None:
        """The next call; ``None`` if there is none."""
        if not self._ready:
            self._add_one()
        if not self._ready:
            return None
        call = self._ready.popleft()
        if not self._is_filling:
            self._is_filling = True
            asyncio.get_running_loop().call_soon(self._refill)
        return call

    def _refill(self) -> None:
        """Make one call at a time, so that what arrives meanwhile is not kept waiting."""
        self._is_filling = len(self._ready) < self._num_wanted and self._add_one()
        if self._is_filling:
            asyncio.get_running_loop().call_soon(self._refill)

    def _add_one(self) -> bool:
        index = next(self._indexes, None)
        if index is None:
            return False
        call = self._make(index)
        self._num_bytes += len(call.body)
        self._ready.append(call)
        return True


class Sender:
    """``done`` gets its result when all calls have ended."""

    def __init__(self, share: Share, feed: Feed, channel: Channel, blocks: Blocks, *, has_stamps: bool) -> None:
        self.recorder = Recorder(self._on_end)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._share, self._channel = share, channel
        streamed = StampedCall if has_stamps else StreamedCall

        def make(index: int) -> RecordedCall:
            call = feed.make_call(index)
            kind = streamed if call.is_streamed else UnaryCall
            return kind(blocks[call.is_streamed], call, index, self.recorder)

        self._stock = Stock(share, make)
        self._due: Iterator[float] = iter(share.due_s if share.due_s is not None else ())
        self._next_due = inf  # of a call that waits for its time
        self._start = 0.0
        self._is_sending = True
        self._pause_s = 0.0  # before the next call of a slot; grows while calls are refused
        self._timers: list[asyncio.TimerHandle] = []

    def prepare(self) -> None:
        self._stock.prepare()

    def start(self, at: float) -> None:
        """Send the first calls at that moment of the monotonic clock."""
        self._start = at
        loop, share = asyncio.get_running_loop(), self._share
        if share.due_s is None:
            loop.call_at(at, self._fill_slots)
        else:
            self._schedule_next()
            if share.max_s is not None:
                self._timers.append(loop.call_at(at + share.max_s + LATE_S, self._drop_unsent))
        if share.limit_s is not None:
            self._timers.append(loop.call_at(at + share.limit_s, self.cut))

    def cut(self) -> None:
        """Cancel what is in flight, and send nothing more."""
        self._drop_unsent()
        at = monotonic()
        for call in list(self.recorder.in_flight.values()):
            self._channel.cancel(call)
            self.recorder.end(call, CUT, "", at)

    def _drop_unsent(self) -> None:
        """Count what is due but has no connection, or no room on it, or is late in the schedule; do not send it."""
        for call in [call for call in self.recorder.in_flight.values() if isnan(call.sent)]:
            self._channel.cancel(call)
            self.recorder.drop(call)
        schedule = itertools.chain([self._next_due], (self._start + due for due in self._due))
        now = monotonic()
        self.recorder.num_dropped += sum(1 for _ in itertools.takewhile(lambda due: due <= now, schedule))
        self._next_due, self._is_sending = inf, False
        self._check_done()

    def _send(self, due: float) -> None:
        call = self._stock.take() if self._is_sending else None
        if call is None:
            self._is_sending = False
        else:
            self.recorder.begin(call, due)
            self._channel.start(call)

    def _is_over(self, at: float) -> bool:
        return self._share.max_s is not None and at - self._start >= self._share.max_s

    def _on_end(self, at: float, is_refused: bool) -> None:
        """A call has ended. In a closed loop, its slot is free at that moment, or after a pause."""
        self._pause_s = min(MAX_PAUSE_S, max(FIRST_PAUSE_S, 2 * self._pause_s)) if is_refused else 0.0
        if self._share.due_s is not None or not self._is_sending:
            self._check_done()
        elif self._pause_s:
            at += self._pause_s
            asyncio.get_running_loop().call_at(at, self._use_slot, at)
        else:
            self._use_slot(at)

    def _check_done(self) -> None:
        if not self._is_sending and not self.recorder.in_flight and not self.done.done():
            self.done.set_result(None)
            for timer in self._timers:
                timer.cancel()

    # Closed loop

    def _use_slot(self, at: float) -> None:
        """A slot is free for the next call."""
        if self._is_over(at):
            self._is_sending = False
        self._send(at)
        self._check_done()

    def _fill_slots(self) -> None:
        for _ in range(self._share.num_slots):
            self._send(self._start)
        if not self._share.num_slots:
            self._is_sending = False
        self._check_done()

    # Open loop

    def _schedule_next(self) -> None:
        due = next(self._due, None)
        if due is None or not self._is_sending or (self._share.max_s is not None and due >= self._share.max_s):
            self._next_due, self._is_sending = inf, False
            self._check_done()
        else:
            self._next_due = self._start + due
            asyncio.get_running_loop().call_at(self._next_due, self._send_due)

    def _send_due(self) -> None:
        self._send(self._next_due)
        self._schedule_next()
