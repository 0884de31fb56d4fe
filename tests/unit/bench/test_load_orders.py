"""How a level is divided among workers."""

from __future__ import annotations

from itertools import chain, islice

import pytest

from tgis_cli.bench.load.calls import Arrivals
from tgis_cli.bench.load.orders import split


def list_indexes(arrivals: Arrivals, num_workers: int, limit: int = 1000) -> list[list[int]]:
    return [list(islice(share.make_indexes(), limit)) for share in split(arrivals, num_workers)]


@pytest.mark.parametrize("num_workers", [1, 2, 3, 8])
@pytest.mark.parametrize("max_calls", [1, 7, 100])
def test_each_call_of_a_closed_loop_is_sent_once(num_workers, max_calls):
    arrivals = Arrivals(concurrency=5, max_calls=max_calls, first_index=1 << 40)

    indexes = list_indexes(arrivals, num_workers)

    assert sorted(chain(*indexes)) == list(range(1 << 40, (1 << 40) + max_calls))


def test_workers_with_more_slots_send_more_calls():
    indexes = list_indexes(Arrivals(concurrency=3, max_calls=300), 2)

    assert [len(each) for each in indexes] == [200, 100]


def test_a_worker_without_a_slot_sends_nothing():
    shares = split(Arrivals(concurrency=1), 2)

    assert [share.num_slots for share in shares] == [1, 0]
    assert list_indexes(Arrivals(concurrency=1), 2, 3) == [[0, 1, 2], []]


def test_a_schedule_is_dealt_out_with_the_indexes_of_its_calls():
    arrivals = Arrivals(due_s=(0.0, 0.1, 0.2, 0.3, 0.4), first_index=10)

    shares = split(arrivals, 2)

    assert [list(share.due_s or ()) for share in shares] == [[0.0, 0.2, 0.4], [0.1, 0.3]]
    assert list_indexes(arrivals, 2) == [[10, 12, 14], [11, 13]]
