"""Engines without some capabilities: rows instead of blocks, whole prompts, unmixed steps; and guided rows."""

from __future__ import annotations

import tracemalloc

import pytest

from driving import Driver, every, expected_tokens, submit
from tgis_server.engines.api import Capacity, RunnerCaps
from tgis_server.scheduler import Scheduler, SchedulerLimits
from tgis_server.wire.messages import StepTokens, Submit, pack_ids

depths = pytest.mark.parametrize("depth", [1, 2])
ROWS = RunnerCaps(memory="rows", chunked_prefill=False, mixed_steps=False, prefix_cache=False)


def test_limits_follow_from_capabilities_and_capacity():
    capacity = Capacity(num_blocks=0, block_size=0, max_sequence_length=64, max_rows=4, max_padded_tokens=256)

    limits = SchedulerLimits.of(ROWS, capacity, max_batch_size=8, max_batch_tokens=512, prefix_cache=True)

    assert limits == SchedulerLimits(
        0, 1, 4, 512, prefix_cache=False, max_padded_tokens=256, chunked_prefill=False, mixed_steps=False
    )


@depths
def test_an_engine_with_rows_serves_as_many_sequences_as_fit_beside_the_longest(depth):
    driver = Driver(caps=ROWS, max_padded_tokens=40, depth=depth)
    requests = [submit(i, prompt=3, max_new_tokens=8) for i in range(6)]  # ten tokens each are reserved
    driver.apply(*requests, submit(7, prompt=10, max_new_tokens=11))

    driver.run_until_idle()

    assert len(driver.plans[0].slots) == 4
    assert driver.preemptions == 0
    assert [plan.new_blocks for plan in driver.plans if any(plan.new_blocks)] == []
    assert [driver.tokens[r.request_id] for r in requests] == [expected_tokens(r) for r in requests]
    driver.assert_blocks_balanced()


def test_a_request_longer_than_all_rows_together_is_refused():
    driver = Driver(caps=ROWS, max_padded_tokens=40)
    driver.apply(submit(1, prompt=30, max_new_tokens=12))

    driver.step()

    assert driver.failures == {1: "30 input and 12 new tokens are more than the 40 tokens that the server has room for"}


@depths
def test_unmixed_steps_take_turns_while_there_are_both_kinds_of_rows(depth):
    driver = Driver(caps=RunnerCaps(mixed_steps=False), max_batch_tokens=4, depth=depth)
    driver.apply(submit(1, prompt=2, max_new_tokens=9))
    driver.step()

    driver.apply(submit(2, prompt=4, max_new_tokens=3))
    driver.run_until_idle()

    assert driver.rows[:6] == [[1], [1], [2], [1], [2], [1, 2]]


def test_whole_prompts_share_a_step_if_they_fit_and_run_alone_otherwise():
    driver = Driver(caps=RunnerCaps(chunked_prefill=False), max_batch_tokens=8)
    requests = [submit(1, 5), submit(2, 3), submit(3, 12), submit(4, 2)]
    driver.apply(*requests)

    driver.run_until_idle()

    assert [(rows, plan.num_tokens) for rows, plan in zip(driver.rows[:4], driver.plans, strict=False)] == [
        ([1, 2], [5, 3]),
        ([1, 2, 4], [1, 1, 2]),
        ([3], [12]),
        ([1, 2, 3, 4], [1, 1, 1, 1]),
    ]
    assert [driver.tokens[r.request_id] for r in requests] == [expected_tokens(r) for r in requests]


@depths
def test_guided_rows_are_planned_ahead_and_get_the_mask_of_their_newest_token(depth):
    driver = Driver(depth=depth)
    requests = [submit(1, max_new_tokens=8, grammar=every(7)), submit(2, max_new_tokens=8)]
    driver.apply(*requests)

    driver.run_until_idle()

    assert len(driver.plans) == 8
    assert [driver.tokens[r.request_id] for r in requests] == [expected_tokens(r) for r in requests]
    assert driver.tokens[1] != expected_tokens(submit(1, max_new_tokens=8))


def test_only_rows_that_sample_are_guided_rows():
    driver = Driver(max_batch_tokens=8)
    driver.apply(submit(1, prompt=1), submit(2, prompt=1, grammar=every(3)), submit(3, prompt=30, grammar=every(3)))

    plan = driver.scheduler.plan(0.0)

    assert driver.requests_of(plan) == [1, 2, 3]
    assert driver.scheduler.guided_rows(plan) == [(1, 2)]


def test_waiting_prompts_are_not_copied():
    scheduler = Scheduler(SchedulerLimits(num_blocks=100_000, block_size=16, max_batch_size=1, max_batch_tokens=1024))
    num_tokens, num_prompts = 100_000, 8
    prompts = [pack_ids(range(num_tokens)) for _ in range(num_prompts)]
    tracemalloc.start()
    try:
        scheduler.apply(Submit(i, prompt, 10) for i, prompt in enumerate(prompts))
        plan = scheduler.plan(0.0)
        assert plan is not None
        scheduler.commit(plan, StepTokens([[] for _ in plan.slots]), 1.0)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    # Only the sequence that has a slot has a block table and a copy of its prompt.
    assert peak_bytes < 2 * 4 * num_tokens
