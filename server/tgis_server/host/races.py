"""Races between coroutines: wait for whichever finishes first and cancel the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any


async def wait_for_first(*works: Any, timeout_s: float | None = None) -> int | None:
    """Wait for the first of several coroutines or futures, cancel the others, and return its index.

    Returns ``None`` if none of them finished within ``timeout_s``.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return next((index for index, task in enumerate(tasks) if task.done()), None)
    finally:
        await _cancel(tasks)


async def end_with_first(tasks: set[asyncio.Task[Any]]) -> None:
    """Wait for the first task to finish and cancel the others; raise what the first one raised, if anything."""
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _cancel(tasks)
    for task in done:
        task.result()


async def run_before(limit: asyncio.Task[Any], work: Coroutine[Any, Any, Any]) -> bool:
    """Run ``work``, and cancel it if ``limit`` finishes first. Returns whether ``work`` finished."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({limit, task}, return_when=asyncio.FIRST_COMPLETED)
        return task.done()
    finally:
        await _cancel([task])


async def _cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
