"""Separate threads for each kind of work, so one kind never waits behind another. They know nothing of the work."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

T = TypeVar("T")

MAX_CHARACTERS_HELD = 8 << 20  # characters of long texts: each takes about thirty bytes with tokens and reply


class Lane:
    """A thread pool for jobs of about ten milliseconds. It belongs to one event loop."""

    def __init__(self, name: str, num_workers: int, max_characters: int = MAX_CHARACTERS_HELD) -> None:
        self._num_workers = num_workers
        self._pool = ThreadPoolExecutor(num_workers, thread_name_prefix=name)
        self._alone = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-alone")
        self._max_characters = max_characters
        self._num_held = 0  # characters
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def run(self, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, job)

    async def run_alone(self, job: Callable[[], T]) -> T:
        """Run a job that takes seconds and a lot of memory. Only one runs at a time, alongside the other jobs."""
        try:
            doing = asyncio.get_running_loop().run_in_executor(self._alone, job)
        except RuntimeError:  # no more threads can start: this one is rarely needed, and the limits do not count it
            return await self.run(job)
        return await doing

    async def run_each(self, jobs: Iterable[Callable[[], T]]) -> list[T]:
        """Run jobs and return their results in order.

        No more are submitted at once than there are threads, so the jobs of several calls take turns.
        """
        queue = list(enumerate(jobs))
        results: dict[int, T] = {}
        unstarted = iter(queue)

        async def work_off() -> None:
            for index, job in unstarted:
                results[index] = await self.run(job)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._num_workers, len(queue))):
                group.create_task(work_off())
        return [results[index] for index, _ in queue]

    @asynccontextmanager
    async def hold(self, num_characters: int) -> AsyncIterator[None]:
        """Wait in turn until this much text fits, and count it as held inside the ``async with`` block.

        A text longer than the maximum is held alone.
        """
        if self._waiting or not self._fits(num_characters):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((num_characters, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._release(num_characters)  # its turn came just as the caller was cancelled
                else:
                    with suppress(ValueError):  # already passed over
                        self._waiting.remove((num_characters, turn))
                    self._admit()
                raise
        else:
            self._num_held += num_characters
        try:
            yield
        finally:
            self._release(num_characters)

    def close(self) -> None:
        for pool in (self._pool, self._alone):
            pool.shutdown(wait=False, cancel_futures=True)

    def _fits(self, num_characters: int) -> bool:
        return not self._num_held or self._num_held + num_characters <= self._max_characters

    def _release(self, num_characters: int) -> None:
        self._num_held -= num_characters
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            num_characters, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._num_held += num_characters
                turn.set_result(None)
