"""Lanes: jobs that take turns, and a bound on the text held."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from tgis_server.frontend.text.lane import Lane


def in_a_lane(check: Callable[[Lane], Awaitable[None]], **options: int) -> None:
    async def run() -> None:
        lane = Lane("test", **{"num_workers": 1, "max_characters": 10, **options})
        try:
            await check(lane)
        finally:
            lane.close()

    asyncio.run(run())


async def until_all_wait() -> None:
    """Wait until nothing can proceed."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_results_come_in_the_order_of_the_jobs():
    async def check(lane: Lane) -> None:
        assert await lane.run_each([lambda i=i: i for i in range(20)]) == list(range(20))

    in_a_lane(check, num_workers=3)


def test_a_small_call_gets_a_turn_between_the_jobs_of_a_large_one():
    order: list[str] = []
    blocked = threading.Event()

    def job(name: str) -> Callable[[], None]:
        return lambda: (blocked.wait(10), order.append(name))[1]

    async def check(lane: Lane) -> None:
        many = asyncio.create_task(lane.run_each([job("many")] * 5))
        await until_all_wait()
        one = asyncio.create_task(lane.run(job("one")))
        await until_all_wait()
        blocked.set()
        await asyncio.gather(many, one)

    in_a_lane(check)
    assert order[:2] == ["many", "one"]


class Holder:
    """A call that holds text until :meth:`end`."""

    def __init__(self, lane: Lane, num_characters: int) -> None:
        self.is_in_work = False
        self._end = asyncio.Event()
        self.task = asyncio.create_task(self._hold(lane, num_characters))

    async def _hold(self, lane: Lane, num_characters: int) -> None:
        async with lane.hold(num_characters):
            self.is_in_work = True
            await self._end.wait()
        self.is_in_work = False

    def end(self) -> None:
        self._end.set()


def test_text_beyond_the_bound_waits_in_order():
    async def check(lane: Lane) -> None:
        first, large, small = [Holder(lane, size) for size in (6, 5, 1)]
        await until_all_wait()
        assert [one.is_in_work for one in (first, large, small)] == [True, False, False]

        first.end()
        await until_all_wait()
        assert [one.is_in_work for one in (first, large, small)] == [False, True, True]
        large.end()
        small.end()
        await asyncio.gather(first.task, large.task, small.task)

    in_a_lane(check)


def test_text_larger_than_the_bound_is_held_alone():
    async def check(lane: Lane) -> None:
        small, huge, after = [Holder(lane, size) for size in (1, 100, 1)]
        await until_all_wait()
        small.end()
        await until_all_wait()
        assert [one.is_in_work for one in (huge, after)] == [True, False]

        huge.end()
        await until_all_wait()
        assert after.is_in_work
        after.end()
        await asyncio.gather(small.task, huge.task, after.task)

    in_a_lane(check)


def test_a_waiter_cancelled_while_waiting_or_at_its_turn_holds_nothing():
    async def check(lane: Lane) -> None:
        first, waiting, turned, last = [Holder(lane, 10) for _ in range(4)]
        await until_all_wait()
        waiting.task.cancel()
        await until_all_wait()
        first.end()
        await first.task  # the next one has been admitted, but has not run yet
        turned.task.cancel()
        await until_all_wait()

        assert last.is_in_work
        last.end()
        for holder in (waiting, turned, last):
            with suppress(asyncio.CancelledError):
                await holder.task

    in_a_lane(check)


def test_cancelling_a_waiter_as_it_is_admitted_only_cancels_it():
    async def check(lane: Lane) -> None:
        first, second = Holder(lane, 10), Holder(lane, 10)
        await until_all_wait()
        second.task.cancel()
        first.end()  # both in the same iteration of the loop
        await first.task
        with pytest.raises(asyncio.CancelledError):
            await second.task

        after = Holder(lane, 10)
        await until_all_wait()
        assert after.is_in_work
        after.end()
        await after.task

    in_a_lane(check)
