"""When calls are sent, on a channel whose answers the test gives."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

import pytest

from tgis_cli.bench.http2.client import OK, UNAVAILABLE
from tgis_cli.bench.load import sender as sender_module
from tgis_cli.bench.load.calls import Arrivals
from tgis_cli.bench.load.columns import CUT, Columns
from tgis_cli.bench.load.orders import split
from tgis_cli.bench.load.recorder import RecordedCall
from tgis_cli.bench.load.sender import MAX_PAUSE_S, Sender
from tgis_cli.bench.null_feed import NullFeed

PATIENCE_S = 30.0


class Channel:
    def __init__(self, *, answers: bool = False, status: int = OK, has_connection: bool = True) -> None:
        """
        Args:
            answers: end each call in the next round of the event loop, with that status.
        """
        self.calls: list[RecordedCall] = []
        self.cancelled: list[int] = []
        self._started = asyncio.Event()
        self._answers, self._status, self._has_connection = answers, status, has_connection

    async def wait_for_calls(self, number: int) -> None:
        while len(self.calls) < number:
            self._started.clear()
            await self._started.wait()

    def start(self, call: RecordedCall) -> None:
        self.calls.append(call)
        self._started.set()
        if self._has_connection:
            call.on_sent(monotonic())
        if self._answers:
            asyncio.get_running_loop().call_soon(lambda: call.on_end(self._status, "", monotonic()))

    def cancel(self, call: RecordedCall) -> None:
        self.cancelled.append(call.index)


def make_sender(arrivals: Arrivals, channel: Channel) -> Sender:
    blocks = {True: b"", False: b""}
    return Sender(split(arrivals, 1)[0], NullFeed(1), channel, blocks, has_stamps=False)  # type: ignore[arg-type]


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await test()

    asyncio.run(limited())


async def run_level(arrivals: Arrivals, channel: Channel) -> tuple[float, Columns]:
    sender = make_sender(arrivals, channel)
    sender.prepare()
    sender.start(start := monotonic())
    await sender.done
    return start, sender.recorder.columns


def test_a_closed_loop_keeps_its_slots_busy_until_all_calls_are_sent():
    async def test() -> None:
        sender = make_sender(Arrivals(concurrency=2, max_calls=4), channel := Channel())
        sender.prepare()
        sender._fill_slots()
        assert [call.index for call in channel.calls] == [0, 1]

        channel.calls[1].on_end(OK, "", 5.0)
        assert [(call.index, call.due) for call in channel.calls[2:]] == [(2, 5.0)]

        for call in (0, 2, 3):
            channel.calls[call].on_end(OK, "", 6.0)
        await sender.done
        assert list(sender.recorder.columns.index) == [1, 0, 2, 3]

    run(test)


def test_a_closed_loop_sends_nothing_after_its_time():
    async def test() -> None:
        sender = make_sender(Arrivals(concurrency=1, max_s=10.0), channel := Channel())
        sender._fill_slots()
        channel.calls[0].on_end(OK, "", 9.9)
        channel.calls[1].on_end(OK, "", 10.0)
        await sender.done
        assert len(channel.calls) == 2

    run(test)


def test_a_closed_loop_whose_calls_are_refused_pauses_before_the_next_ones():
    async def test() -> None:
        sender = make_sender(Arrivals(concurrency=1, max_calls=9), channel := Channel())
        sender.start(monotonic())
        for number in range(9):
            await channel.wait_for_calls(number + 1)
            call = channel.calls[number]
            call.on_end(UNAVAILABLE, "", call.sent)
        await sender.done

        pauses = [after.due - before.sent for before, after in itertools.pairwise(channel.calls)]
        assert pauses == pytest.approx([0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, MAX_PAUSE_S])

    run(test)


def test_a_cut_level_ends_although_its_slots_pause():
    async def test() -> None:
        sender = make_sender(Arrivals(concurrency=2), channel := Channel(answers=True, status=UNAVAILABLE))
        sender.start(monotonic())
        await channel.wait_for_calls(8)
        sender.cut()
        await sender.done

    run(test)


def test_an_open_loop_sends_by_its_schedule_whatever_is_in_flight():
    async def test() -> None:
        due_s = (0.0, 0.01, 0.01, 0.03)
        sender = make_sender(Arrivals(due_s=due_s, first_index=5), channel := Channel())
        sender.prepare()
        sender.start(start := monotonic())
        await channel.wait_for_calls(len(due_s))

        assert [call.index for call in channel.calls] == [5, 6, 7, 8]
        assert [round(call.due - start, 6) for call in channel.calls] == list(due_s)
        assert all(call.sent >= call.due for call in channel.calls)
        assert not sender.done.done()

        for call in channel.calls:
            call.on_end(OK, "", monotonic())
        await sender.done

    run(test)


def test_an_open_loop_sends_nothing_that_is_due_after_its_time():
    async def test() -> None:
        _, columns = await run_level(Arrivals(due_s=(0.0, 0.001, 0.002), max_s=0.002), Channel(answers=True))
        assert list(columns.index) == [0, 1]

    run(test)


def test_a_cut_level_cancels_what_is_in_flight_and_forgets_what_was_not_sent():
    async def test() -> None:
        sender = make_sender(Arrivals(concurrency=2), channel := Channel())
        sender._fill_slots()
        channel._has_connection = False
        channel.calls[0].on_end(OK, "", monotonic())
        sender.cut()
        await sender.done
        assert sorted(channel.cancelled) == [1, 2]
        assert list(sender.recorder.columns.index) == [0, 1]
        assert list(sender.recorder.columns.status) == [OK, CUT]
        assert sender.recorder.columns.texts == {}

    run(test)


def test_at_its_limit_a_level_cancels_what_is_in_flight():
    async def test() -> None:
        _, columns = await run_level(Arrivals(concurrency=2, limit_s=0.01), Channel())
        assert list(columns.status) == [CUT, CUT]

    run(test)


def test_an_open_loop_drops_what_it_could_not_send_in_its_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sender_module, "LATE_S", 0.0)

    async def test() -> None:
        channel = Channel(has_connection=False)
        sender = make_sender(Arrivals(due_s=(0.0, 0.001, 0.002), max_s=0.01), channel)
        sender.start(monotonic())
        await sender.done
        assert (sender.recorder.num_dropped, len(sender.recorder.columns.index)) == (3, 0)

    run(test)


def test_a_schedule_that_is_late_at_the_end_of_its_time_is_dropped_but_not_what_is_still_to_come():
    async def test() -> None:
        sender = make_sender(Arrivals(due_s=(0.0, 0.0, 0.0, 3600.0)), Channel())
        sender.start(monotonic())
        sender.cut()
        await sender.done
        assert sender.recorder.num_dropped == 3

    run(test)


def test_a_level_that_is_cut_before_its_start_ends_without_a_call():
    async def test() -> None:
        sender = make_sender(Arrivals(concurrency=2), channel := Channel())
        sender.cut()
        sender.start(monotonic())
        await sender.done
        assert channel.calls == []

    run(test)


def test_more_calls_than_are_prepared_are_made_meanwhile():
    async def test() -> None:
        _, columns = await run_level(Arrivals(concurrency=3, max_calls=2500), Channel(answers=True))
        assert sorted(columns.index) == list(range(2500))

    run(test)


def test_a_worker_without_a_slot_is_done_at_once():
    async def test() -> None:
        _, columns = await run_level(Arrivals(concurrency=0), Channel())
        assert list(columns.index) == []

    run(test)
