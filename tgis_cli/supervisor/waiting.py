"""Waiting for the first of several things, and for children to end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from tgis_cli.supervisor.child import Child


async def first_of(*works: Any, timeout_s: float | None = None) -> int | None:
    """Wait for the first of several coroutines or futures, cancel the others, and return its index (``None``: none)."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return next((index for index, task in enumerate(tasks) if task.done()), None)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def wait_all(children: Sequence[Child], timeout_s: float | None) -> None:
    """Wait until all children have ended, or for ``timeout_s``."""
    if children:
        await first_of(asyncio.gather(*(child.exited.wait() for child in children)), timeout_s=timeout_s)
