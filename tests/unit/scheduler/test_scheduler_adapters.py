"""Adapters: a request waits until every rank has read its adapter, and until the adapter has a place."""

from __future__ import annotations

from driving import Driver, adapter, expected_tokens, submit
from tgis_server.wire.messages import NO_ADAPTER, Activation, Cancel, FinishReason, Staged


def test_an_adapter_is_staged_once_and_only_its_requests_wait():
    driver = Driver(staging_steps=3)
    driver.apply(*[submit(i, adapter=adapter("a")) for i in (1, 2)], submit(3))

    driver.run_until_idle()

    assert driver.scheduler.take_staging_requests() == []
    assert driver.rows[:4] == [[3], [3], [3], [3, 1, 2]]
    assert [driver.tokens[i] for i in (1, 2)] == [expected_tokens(submit(i, adapter=adapter("a"))) for i in (1, 2)]


def test_a_scheduler_whose_requests_all_wait_for_adapters_is_idle():
    driver = Driver()
    driver.apply(submit(1, adapter=adapter("a")))

    assert driver.scheduler.is_idle
    assert driver.scheduler.num_waiting == 1

    driver.apply(Staged(b"a"))

    assert not driver.scheduler.is_idle


def test_failed_staging_fails_the_waiting_requests_and_is_retried_for_the_next_one():
    driver = Driver()
    driver.apply(submit(1, adapter=adapter("broken")), submit(2))
    driver.run_until_idle()

    driver.apply(submit(3, adapter=adapter("broken")))

    assert driver.failures == {1: "adapter broken cannot be read: it is broken"}
    assert driver.results[0].failures[0].status == "INVALID_ARGUMENT"
    assert driver.tokens[2] == expected_tokens(submit(2))
    assert driver.scheduler.take_staging_requests() == [adapter("broken")]


def test_a_deadline_that_passes_during_staging_ends_the_request_on_an_idle_server():
    driver = Driver(staging_steps=100)
    driver.apply(submit(1, deadline=5.0, adapter=adapter("a")))
    driver.step()
    driver.now = 6.0

    driver.step()

    assert driver.reasons == {1: FinishReason.TIME_LIMIT}


def test_an_adapter_that_is_no_longer_needed_is_not_staged():
    driver = Driver()

    driver.apply(submit(1, adapter=adapter("a")), Cancel(1))

    assert driver.scheduler.take_staging_requests() == []
    driver.apply(submit(2, adapter=adapter("a")))
    assert driver.scheduler.take_staging_requests() == [adapter("a")]


def test_an_adapter_is_activated_with_its_first_request_and_keeps_its_place_until_it_is_needed():
    driver = Driver(max_adapters=2)
    for request_id, name in enumerate(["a", "b", "a", "c", "b"]):
        driver.apply(submit(request_id, max_new_tokens=1, adapter=adapter(name)))
        driver.run_until_idle()

    activated = [plan.activate for plan in driver.plans]
    assert activated == [
        [Activation(0, b"a")],
        [Activation(1, b"b")],
        [],
        [Activation(1, b"c")],  # b was used least recently
        [Activation(0, b"b")],
    ]


def test_a_request_waits_for_a_place_while_others_pass():
    driver = Driver(max_adapters=1)
    requests = [
        submit(1, max_new_tokens=3, adapter=adapter("a")),
        submit(2, max_new_tokens=1, adapter=adapter("b")),
        submit(3, max_new_tokens=1, adapter=adapter("a")),
        submit(4, max_new_tokens=1),
    ]
    driver.apply(*requests)

    driver.run_until_idle()

    assert driver.rows == [[1, 3, 4], [1], [1], [2]]
    assert [new.adapter_place for new in driver.plans[0].new] == [0, 0, NO_ADAPTER]
    assert [driver.tokens[r.request_id] for r in requests] == [expected_tokens(r) for r in requests]
    driver.assert_blocks_balanced()
