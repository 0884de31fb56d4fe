"""Many requests at once: their order, their bounds, and an overloaded server."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tgis_cli.clients.in_order import WINDOW, InOrder
from tgis_server.errors import InvalidRequest, OutOfMemory

OVERLOADED = OutOfMemory("Model is overloaded (RESOURCE_EXHAUSTED)")


class FakeServer:
    """Calls that end when the test says so; each result is the request's double."""

    def __init__(self, max_running: int = 1000) -> None:
        self.running: dict[int, Callable[[object], None]] = {}
        self.started: list[int] = []
        self.cancelled: list[int] = []
        self.most_running = 0
        self.max_running = max_running

    def start(self, request: int, on_done: Callable[[object], None]) -> Callable[[], None]:
        self.started.append(request)
        if len(self.running) >= self.max_running:
            on_done(OVERLOADED)
            return lambda: None
        self.running[request] = on_done
        self.most_running = max(self.most_running, len(self.running))
        return lambda: self.cancelled.append(request)

    def end(self, request: int, result: object = None) -> None:
        self.running.pop(request)(request * 2 if result is None else result)

    def end_newest(self) -> None:
        """On a tick, end calls in the worst order."""
        if self.running:
            self.end(max(self.running))


def test_results_come_in_the_order_of_the_requests_whatever_the_order_in_which_calls_end():
    server = FakeServer()

    results = list(InOrder(range(20), server.start, 4, on_tick=server.end_newest))

    assert results == [(number, number * 2) for number in range(20)]
    assert server.most_running == 4


def test_a_failed_request_takes_its_place_among_the_others():
    server = FakeServer()
    error = InvalidRequest("too long")

    def end_with_an_error() -> None:
        if server.running:
            request = max(server.running)
            server.end(request, error if request == 1 else None)

    assert list(InOrder(range(3), server.start, 2, on_tick=end_with_an_error)) == [(0, 0), (1, error), (2, 4)]


def test_a_slow_request_bounds_how_many_wait_behind_it():
    server = FakeServer()
    read: list[int] = []

    def endless() -> Iterator[int]:
        number = 0
        while True:
            read.append(number)
            yield number
            number += 1

    def end_all_but_the_first() -> None:
        if len(server.running) > 1:
            server.end(max(server.running))
        else:
            server.end(0)  # nothing else is left to run

    results = iter(InOrder(endless(), server.start, 4, on_tick=end_all_but_the_first))

    assert next(results) == (0, 0)
    assert len(read) == WINDOW * 4


def test_ending_early_cancels_the_running_calls():
    server = FakeServer()
    results = iter(InOrder(range(100), server.start, 3, on_tick=lambda: server.end(min(server.running))))

    next(results)
    results.close()

    assert sorted(server.cancelled) == sorted(server.running)


def test_an_overloaded_server_gets_the_request_again_with_fewer_calls_at_once():
    server = FakeServer(max_running=2)

    results = list(InOrder(range(12), server.start, 8, on_tick=server.end_newest))

    assert results == [(number, number * 2) for number in range(12)]
    assert len(server.started) < 12 + 2 * 8  # few were asked for nothing


def test_a_server_that_stays_overloaded_fails_the_request():
    seconds = iter(range(0, 10_000, 40))
    server = FakeServer(max_running=0)

    results = list(InOrder([7], server.start, 1, clock=lambda: next(seconds)))

    assert results == [(7, OVERLOADED)]


def test_without_requests_the_iteration_ends_at_once():
    assert list(InOrder([], FakeServer().start, 3)) == []


@pytest.mark.parametrize("parallel", [1, 3])
def test_calls_that_end_before_they_have_returned_are_counted(parallel: int):
    def start(request: int, on_done: Callable[[object], None]) -> Callable[[], None]:
        on_done(request)
        return lambda: None

    assert [result for _, result in InOrder(range(10), start, parallel)] == list(range(10))
