"""The text of metrics: always fresh, and rendered at a limited rate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count

import pytest

from tgis_server.frontend.metrics import MetricsText
from tgis_server.frontend.metrics import text as metrics_text


def texts() -> MetricsText:
    numbers = count(1)

    def begin() -> Callable[[], bytes]:
        number = next(numbers)
        return lambda: f"text {number}".encode()

    return MetricsText(begin)


def test_concurrent_callers_share_one_text():
    async def ask() -> list[bytes]:
        text = texts()
        return await asyncio.gather(*(text.get() for _ in range(100)))

    assert set(asyncio.run(ask())) == {b"text 1"}


def test_a_text_is_never_older_than_its_request(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metrics_text, "MIN_PERIOD_S", 0.0)

    async def ask() -> list[bytes]:
        text = texts()
        return [await text.get() for _ in range(3)]

    assert asyncio.run(ask()) == [b"text 1", b"text 2", b"text 3"]


def test_callers_in_a_loop_wait_for_the_next_text():
    async def ask() -> tuple[list[bytes], float]:
        text, started_at = texts(), asyncio.get_running_loop().time()
        answers = await asyncio.gather(*(in_a_loop(text) for _ in range(20)))
        return answers, asyncio.get_running_loop().time() - started_at

    async def in_a_loop(text: MetricsText) -> bytes:
        await text.get()
        await text.get()
        return await text.get()

    answers, took_s = asyncio.run(ask())
    assert set(answers) == {b"text 3"}
    assert took_s >= 2 * metrics_text.MIN_PERIOD_S


def test_a_cancelled_caller_does_not_cancel_the_text_for_others():
    async def ask() -> bytes:
        text = texts()
        first, second = (asyncio.create_task(text.get()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert asyncio.run(ask()) == b"text 1"
