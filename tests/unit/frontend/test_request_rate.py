"""Excess requests wait, and a modest client does not wait for a greedy one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from tgis_server.frontend.http_api import request_rate
from tgis_server.frontend.http_api.request_rate import CONNECTION_BURST, PORT_BURST, RequestRate, connection_bucket


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 10))


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, set by the test."""
    now = [100.0]
    monkeypatch.setattr(request_rate.time, "monotonic", lambda: now[0])
    return now


def test_a_connection_gets_a_burst_and_then_its_rate(clock):
    rate, own = RequestRate(), connection_bucket()

    at_once = sum(rate.take_turn(own) for _ in range(200))
    clock[0] += 1
    later = sum(rate.take_turn(own) for _ in range(200))

    assert (at_once, later) == (CONNECTION_BURST, request_rate.CONNECTION_RATE_PER_S)


def test_all_connections_together_get_the_burst_and_the_rate_of_the_port(clock):
    rate = RequestRate()

    at_once = sum(rate.take_turn(connection_bucket()) for _ in range(1000))
    clock[0] += 0.2
    later = sum(rate.take_turn(connection_bucket()) for _ in range(1000))

    assert (at_once, later) == (PORT_BURST, request_rate.PORT_RATE_PER_S / 5)


def test_the_waiting_connection_with_the_fewest_recent_requests_is_first():
    async def test() -> None:
        rate, order = RequestRate(rate_per_s=200, burst=1), []
        greedy = [connection_bucket() for _ in range(20)]
        for own in greedy:
            own.tokens = 10

        async def ask(name: str, own: request_rate.Bucket) -> None:
            await rate.wait_turn(own)
            order.append(name)

        asked = [asyncio.create_task(ask("greedy", own)) for own in greedy]
        await asyncio.sleep(0)
        asked.append(asyncio.create_task(ask("probe", connection_bucket())))
        await asyncio.gather(*asked)

        assert order[:3] == ["greedy", "probe", "greedy"]

    run(test)


def test_a_client_that_leaves_the_queue_takes_no_turn_from_others():
    async def test() -> None:
        rate = RequestRate(rate_per_s=20, burst=1)
        assert rate.take_turn(connection_bucket())
        gone = [asyncio.create_task(rate.wait_turn(connection_bucket())) for _ in range(100)]
        await asyncio.sleep(0)
        for one in gone:
            one.cancel()
        began_at = time.monotonic()
        await rate.wait_turn(connection_bucket())

        assert time.monotonic() - began_at < 2

    run(test)
