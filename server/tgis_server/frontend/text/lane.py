"""Threads for one kind of work, so that another kind never waits behind it. Knows nothing of what it does."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

T = TypeVar("T")

MAX_CHARACTERS_HELD = 8 << 20  # of long texts; with tokens and reply, some thirty bytes each


class Lane:
    """Jobs should take some ten milliseconds. Belongs to one event loop."""

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
        """For a job that takes seconds and much memory: one at a time, beside the others."""
        try:
            doing = asyncio.get_running_loop().run_in_executor(self._alone, job)
        except RuntimeError:  # no further thread may be started: this one is seldom needed, and was not counted
            return await self.run(job)
        return await doing

    async def run_each(self, jobs: Iterable[Callable[[], T]]) -> list[T]:
        """Results in the order of the jobs. No more are handed out at a time than there are threads.

        So the jobs of a call with many of them take turns with those of others.
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
        """Have this much text in work inside the ``async with`` block; waits, in order, until there is room.

        A text of more than the maximum is in work alone.
        """
        if self._waiting or not self._has_room(num_characters):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((num_characters, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._release(num_characters)  # its turn came in the same moment
                else:
                    with suppress(ValueError):  # it was passed over already
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

    def _has_room(self, num_characters: int) -> bool:
        return not self._num_held or self._num_held + num_characters <= self._max_characters

    def _release(self, num_characters: int) -> None:
        self._num_held -= num_characters
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._has_room(self._waiting[0][0]):
            num_characters, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._num_held += num_characters
                turn.set_result(None)
