"""The rules by which the scheduler plans steps."""

from __future__ import annotations

import pytest

from driving import Driver, adapter, expected_tokens, submit
from tgis_server.scheduler.deadlines import MIN_SWEEP
from tgis_server.scheduler.scheduler import NOT_FINITE
from tgis_server.scheduler.waiting import MAX_OVERTAKEN
from tgis_server.wire.messages import Cancel, FinishReason, Wanted


def test_a_request_is_prefilled_then_decoded_to_its_limit():
    driver = Driver()
    driver.apply(submit(1, prompt=5, max_new_tokens=3))

    driver.run_until_idle()

    assert [plan.num_tokens for plan in driver.plans] == [[5], [1], [1]]
    assert driver.tokens[1] == expected_tokens(submit(1, prompt=5, max_new_tokens=3))
    assert driver.reasons[1] is FinishReason.MAX_TOKENS


def test_a_prompt_beyond_the_budget_is_prefilled_in_chunks_and_only_the_last_one_samples():
    driver = Driver(max_batch_tokens=4)
    driver.apply(submit(1, prompt=10, max_new_tokens=1))

    driver.run_until_idle()

    assert [(plan.num_tokens, plan.sample) for plan in driver.plans] == [([4], [False]), ([4], [False]), ([2], [True])]
    assert driver.tokens[1] == expected_tokens(submit(1, prompt=10, max_new_tokens=1))


def test_decodes_come_before_prefill_chunks_and_use_the_budget_first():
    driver = Driver(max_batch_tokens=4)
    driver.apply(submit(1, prompt=2))
    driver.step()
    driver.apply(submit(2, prompt=9))

    driver.step()

    assert driver.plans[-1].num_tokens == [1, 2]


def test_waiting_requests_start_in_order_of_arrival():
    driver = Driver(max_batch_size=1)
    driver.apply(submit(5), submit(3), submit(4))

    driver.run_until_idle()

    assert [request_id for result in driver.results for request_id, _ in result.started] == [5, 3, 4]


def test_a_small_request_overtakes_a_big_one_that_waits_for_blocks():
    driver = Driver(num_blocks=6, block_size=4)
    driver.apply(submit(1, prompt=12, max_new_tokens=4))
    driver.step()

    driver.apply(submit(2, prompt=20, max_new_tokens=4), submit(3, prompt=1, max_new_tokens=1))
    driver.run_until_idle()

    assert list(driver.reasons) == [3, 1, 2]


def test_a_big_request_is_overtaken_a_limited_number_of_times():
    driver = Driver(num_blocks=8, block_size=4)
    driver.apply(submit(1, prompt=12, max_new_tokens=10), submit(2, prompt=28, max_new_tokens=4))
    later = range(3, 3 + 2 * MAX_OVERTAKEN)

    for request_id in later:
        driver.apply(submit(request_id, prompt=1, max_new_tokens=1))
    driver.run_until_idle()

    started = [request_id for result in driver.results for request_id, _ in result.started]
    assert started == [1, *later[:MAX_OVERTAKEN], 2, *later[MAX_OVERTAKEN:]]


def test_a_short_prompt_does_not_wait_for_a_long_one():
    driver = Driver(num_blocks=64, max_batch_tokens=16)
    driver.apply(submit(1, prompt=160, max_new_tokens=1))
    driver.step()

    driver.apply(submit(2, prompt=3, max_new_tokens=1))
    driver.step()

    assert driver.rows == [[1], [1, 2]]
    assert [plan.num_tokens for plan in driver.plans] == [[16], [8, 3]]


def test_the_oldest_long_prompt_has_a_chunk_in_every_step_and_the_others_go_shortest_first():
    driver = Driver(num_blocks=256, max_batch_tokens=16, prefix_cache=False)
    driver.apply(submit(1, prompt=400, max_new_tokens=1), submit(2, prompt=100, max_new_tokens=1))
    driver.step()

    driver.apply(submit(3, prompt=90, max_new_tokens=1), submit(4, prompt=40, max_new_tokens=1))
    while 2 not in driver.reasons:
        driver.step()

    assert all(1 in rows for rows in driver.rows)
    assert list(driver.reasons) == [4, 3, 2]


def test_a_short_prompt_does_not_wait_behind_long_prompts_in_progress():
    driver = Driver(num_blocks=256, max_batch_tokens=16, prefix_cache=False)
    driver.apply(*[submit(i, prompt=200, max_new_tokens=1) for i in range(3)])
    for _ in range(3):
        driver.step()

    driver.apply(submit(3, prompt=2, max_new_tokens=1))
    driver.step()

    assert driver.rows[-1] == [0, 3, 1]


def test_chunks_except_the_last_are_powers_of_two():
    driver = Driver(num_blocks=64, max_batch_tokens=27, prefix_cache=False)
    driver.apply(submit(1, prompt=70, max_new_tokens=1))

    driver.run_until_idle()

    assert [plan.num_tokens for plan in driver.plans] == [[16], [16], [16], [22]]


def test_sequences_that_never_need_another_block_reserve_none():
    driver = Driver(num_blocks=16, block_size=4, max_batch_size=32, prefix_cache=False)
    driver.apply(*[submit(i, prompt=2, max_new_tokens=3) for i in range(16)])

    driver.step()

    assert len(driver.plans[0].slots) == 16
    driver.run_until_idle()
    assert driver.preemptions == 0


@pytest.mark.parametrize("depth", [1, 2])
def test_only_the_request_that_computes_nan_fails(depth):
    driver = Driver(depth=depth, not_finite={2})
    driver.apply(*[submit(i, max_new_tokens=5) for i in (1, 2, 3)])

    driver.run_until_idle()

    assert driver.failures == {2: NOT_FINITE}
    assert driver.tokens[2] == []
    assert {i: driver.tokens[i] for i in (1, 3)} == {i: expected_tokens(submit(i, max_new_tokens=5)) for i in (1, 3)}
    driver.assert_blocks_balanced()


def test_blocks_of_a_step_that_computed_nan_are_not_shared():
    driver = Driver(block_size=4, max_batch_tokens=8)
    driver.apply(submit(1, list(range(30))))
    driver.step()
    driver.not_finite = {1}
    driver.step()
    driver.not_finite = set()

    driver.apply(submit(2, list(range(30))))
    driver.run_until_idle()

    assert driver.cached_tokens == 8  # tokens of the previous step
    assert driver.tokens[2] == expected_tokens(submit(2, list(range(30))))


def test_a_deadline_that_passes_between_chunks_ends_the_request_without_a_token():
    driver = Driver(max_batch_tokens=4)
    driver.apply(submit(1, prompt=40, deadline=5.0))
    driver.step()
    driver.now = 6.0

    driver.run_until_idle()

    assert driver.reasons[1] is FinishReason.TIME_LIMIT
    assert driver.tokens[1] == []
    assert len(driver.plans) == 2
    driver.assert_blocks_balanced()


def test_a_finished_sequence_frees_its_blocks_before_the_next_plan():
    driver = Driver(num_blocks=4, block_size=2)
    driver.apply(submit(1, prompt=6, max_new_tokens=1), submit(2, prompt=4, max_new_tokens=1))

    driver.step()
    driver.step()

    assert [len(plan.slots) for plan in driver.plans] == [1, 1]
    assert driver.reasons == {1: FinishReason.MAX_TOKENS, 2: FinishReason.MAX_TOKENS}
    driver.assert_blocks_balanced()


def test_a_request_that_could_never_fit_is_refused_at_once():
    driver = Driver(num_blocks=2, block_size=4)

    driver.apply(submit(1, prompt=8, max_new_tokens=2))
    driver.step()

    assert "need 3 KV blocks, but the server has 2" in driver.failures[1]
    assert driver.plans == []


def test_the_last_generated_token_needs_no_block():
    driver = Driver(num_blocks=2, block_size=4)
    driver.apply(submit(1, prompt=7, max_new_tokens=2))

    driver.run_until_idle()

    assert driver.reasons[1] is FinishReason.MAX_TOKENS


@pytest.mark.parametrize("depth", [1, 2])
def test_an_exhausted_pool_preempts_the_youngest_and_no_token_is_repeated(depth):
    driver = Driver(num_blocks=8, block_size=2, depth=depth)
    requests = [submit(i, prompt=3, max_new_tokens=8) for i in (1, 2, 3)]
    driver.apply(*requests)

    driver.run_until_idle()

    assert driver.preemptions > 0
    assert next(iter(driver.reasons)) == 1
    assert {r.request_id: driver.tokens[r.request_id] for r in requests} == {
        r.request_id: expected_tokens(r) for r in requests
    }


def test_a_preempted_sequence_keeps_the_border_between_prompt_and_output():
    driver = Driver(num_blocks=8, block_size=2)
    driver.apply(*[submit(i, prompt=3, max_new_tokens=8) for i in (1, 2, 3)])

    driver.run_until_idle()

    resumed = [new for plan in driver.plans[1:] for new in plan.new]
    assert resumed
    assert all(new.prompt_length == 3 and len(new.token_ids) > 3 for new in resumed)


def test_a_preempted_sequence_resumes_before_later_arrivals():
    driver = Driver(num_blocks=8, block_size=2, max_batch_size=2)
    driver.apply(*[submit(i, prompt=4, max_new_tokens=9) for i in (1, 2, 3)])

    driver.run_until_idle()

    first_ends = next(i for i, result in enumerate(driver.results) if FinishReason.MAX_TOKENS in result.finish_reasons)
    third_starts = next(i for i, result in enumerate(driver.results) if 3 in dict(result.started))
    assert driver.preemptions > 0
    assert third_starts > first_ends  # the third did not get the blocks that the second released


def test_only_computed_blocks_are_shared():
    driver = Driver(block_size=2, max_batch_tokens=5)
    driver.apply(submit(1, prompt=10))

    driver.step()

    driver.apply(submit(2, prompt=submit(1, prompt=10).prompt_ids))
    driver.step()
    assert driver.cached_tokens == 4


def test_a_common_prefix_is_computed_once():
    driver = Driver(block_size=4)
    common = list(range(10))
    first, second = submit(1, [*common, 11]), submit(2, [*common, 12])
    driver.apply(first)
    driver.run_until_idle()
    driver.apply(second)

    driver.run_until_idle()

    assert driver.cached_tokens == 8
    assert driver.tokens[2] == expected_tokens(second)


def test_a_prefix_hit_always_leaves_the_last_prompt_token_to_compute():
    driver = Driver(block_size=4)
    driver.apply(submit(1, list(range(8))))
    driver.run_until_idle()
    driver.apply(submit(2, list(range(8))))

    driver.run_until_idle()

    assert driver.cached_tokens == 4
    assert driver.tokens[2] == driver.tokens[1]


def test_generated_tokens_enter_the_prefix_cache():
    driver = Driver(block_size=4)
    first = submit(1, prompt=4, max_new_tokens=6)
    driver.apply(first)
    driver.run_until_idle()
    driver.apply(submit(2, [*first.prompt_ids, *driver.tokens[1][:5]]))

    driver.run_until_idle()

    assert driver.cached_tokens == 8


def test_a_sequence_that_outgrows_the_rope_border_is_recomputed_in_the_same_step():
    driver = Driver(rope_border=8)
    request = submit(1, prompt=7, max_new_tokens=4)
    driver.apply(request)

    driver.run_until_idle()

    assert [plan.num_tokens for plan in driver.plans] == [[7], [1], [9], [1]]
    assert [new.is_rope_long for plan in driver.plans for new in plan.new] == [False, True]
    assert driver.tokens[1] == expected_tokens(request, rope_border=8)
    assert driver.preemptions == 0  # only preemptions for lack of blocks count


def test_when_planning_ahead_a_sequence_that_outgrows_the_rope_border_waits_for_its_newest_token():
    driver = Driver(rope_border=8, depth=2)
    requests = submit(1, prompt=7, max_new_tokens=4), submit(2, prompt=3, max_new_tokens=4)
    driver.apply(*requests)

    driver.run_until_idle()

    assert [plan.num_tokens for plan in driver.plans] == [[7, 3], [1, 1], [1], [1, 9], [1]]
    assert [driver.tokens[r.request_id] for r in requests] == [expected_tokens(r, rope_border=8) for r in requests]


def test_prompts_within_and_beyond_the_rope_border_share_no_blocks():
    driver = Driver(block_size=4, rope_border=8)
    driver.apply(submit(1, prompt=list(range(8)), max_new_tokens=1))
    driver.run_until_idle()
    driver.apply(submit(2, prompt=list(range(9))))

    driver.run_until_idle()

    assert driver.cached_tokens == 0


@pytest.mark.parametrize(
    ("other", "is_encoded_again"),
    [
        ({"cache_salt": b"b"}, True),
        ({"adapter": adapter("a")}, True),
        ({"encoder": [6]}, True),
        ({"num_encoder_virtual": 1}, True),
        ({"num_virtual": 1}, False),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_equal_tokens_share_nothing_if_anything_else_that_keys_and_values_depend_on_differs(other, is_encoded_again):
    driver = Driver(block_size=4)
    driver.apply(submit(1, list(range(9)), encoder=[5]))
    driver.run_until_idle()
    request = submit(2, list(range(9)), **{"encoder": [5]} | other)
    driver.apply(request)

    driver.run_until_idle()

    assert driver.cached_tokens == 0
    assert sum(map(len, driver.encoded)) == 1 + is_encoded_again
    assert driver.tokens[2] == expected_tokens(request)


def test_a_request_for_input_tokens_without_details_uses_the_prefix_cache():
    driver = Driver(block_size=4)
    driver.apply(submit(1, list(range(9))))
    driver.run_until_idle()
    driver.apply(submit(2, list(range(9)), wanted=Wanted(input_tokens=True)))

    driver.run_until_idle()

    assert driver.cached_tokens == 8


def test_a_request_for_input_details_does_not_use_the_prefix_cache():
    driver = Driver(block_size=4)
    driver.apply(submit(1, list(range(9))))
    driver.run_until_idle()
    driver.apply(submit(2, list(range(9)), wanted=Wanted(logprobs=True, input_tokens=True)))

    driver.run_until_idle()

    assert driver.cached_tokens == 0
    assert driver.described[2] == list(range(1, 9))


def test_cached_blocks_are_evicted_least_recently_used_first():
    driver = Driver(num_blocks=6, block_size=2, max_batch_size=1)
    for request in (submit(1, [1, 2, 3], 1), submit(2, [4, 5, 6], 1), submit(3, [1, 2, 3], 1)):
        driver.apply(request)
        driver.run_until_idle()
    driver.apply(submit(4, prompt=10, max_new_tokens=1))  # takes all blocks but the most recently used one
    driver.run_until_idle()
    hits_before = driver.cached_tokens

    driver.apply(submit(5, [1, 2, 9], 1), submit(6, [4, 5, 9], 1))
    driver.run_until_idle()

    assert driver.cached_tokens - hits_before == 2


def test_cancelling_a_running_request_frees_its_slot_and_blocks_at_once():
    driver = Driver()
    driver.apply(submit(1, max_new_tokens=50))
    driver.step()

    driver.apply(Cancel(1))

    driver.assert_blocks_balanced()
    assert driver.scheduler.num_running == 0


def test_a_cancel_that_leaves_nothing_to_compute_is_still_reported():
    driver = Driver()
    driver.apply(submit(1, max_new_tokens=50))
    driver.step()
    driver.apply(Cancel(1))

    driver.step()

    assert driver.results[-1].stats.used_blocks == 0
    assert driver.results[-1].stats.num_running == 0


def test_cancelling_a_waiting_or_unknown_request_is_harmless():
    driver = Driver(max_batch_size=1)
    driver.apply(submit(1), submit(2), Cancel(2), Cancel(77))

    driver.run_until_idle()

    assert list(driver.reasons) == [1]


def test_a_token_in_flight_for_a_cancelled_request_is_dropped():
    driver = Driver(depth=2)
    driver.apply(submit(1, max_new_tokens=50))
    driver.step()
    driver.step()

    driver.apply(Cancel(1))
    driver.run_until_idle()

    assert len(driver.tokens[1]) == 1
    driver.assert_blocks_balanced()


def test_end_of_sequence_ends_the_request_and_counts_as_a_token():
    request = submit(1, max_new_tokens=20)
    end_id = expected_tokens(request)[2]
    driver = Driver(end_ids=frozenset({end_id}))
    driver.apply(request)

    driver.run_until_idle()

    assert driver.tokens[1] == expected_tokens(request)[:3]
    assert driver.reasons[1] is FinishReason.EOS_TOKEN


def test_tokens_planned_ahead_of_an_end_of_sequence_are_dropped():
    request = submit(1, max_new_tokens=20)
    end_id = expected_tokens(request)[2]
    driver = Driver(end_ids=frozenset({end_id}), depth=2)
    driver.apply(request)

    driver.run_until_idle()

    assert driver.tokens[1] == expected_tokens(request)[:3]
    driver.assert_blocks_balanced()


def test_no_row_is_planned_once_the_last_allowed_token_is_in_flight():
    driver = Driver(depth=2)
    driver.apply(submit(1, prompt=3, max_new_tokens=2))

    driver.run_until_idle()

    assert [plan.num_tokens for plan in driver.plans] == [[3], [1]]


def test_a_deadline_that_passes_in_the_queue_ends_the_request_without_a_token():
    driver = Driver(max_batch_size=1)
    driver.apply(submit(1, max_new_tokens=3), submit(2, deadline=5.0))
    driver.step()
    driver.now = 6.0

    driver.run_until_idle()

    assert driver.reasons[2] is FinishReason.TIME_LIMIT
    assert driver.tokens[2] == []


def test_an_idle_server_generates_a_token_whatever_the_deadline():
    driver = Driver()
    driver.now = 6.0
    driver.apply(submit(1, max_new_tokens=3, deadline=5.0))

    driver.run_until_idle()

    assert driver.reasons[1] is FinishReason.TIME_LIMIT
    assert len(driver.tokens[1]) == 1


def test_a_deadline_that_passes_while_running_keeps_the_tokens_so_far():
    driver = Driver()
    driver.apply(submit(1, max_new_tokens=30, deadline=5.0))
    driver.step()
    driver.now = 6.0

    driver.run_until_idle()

    assert driver.reasons[1] is FinishReason.TIME_LIMIT
    assert len(driver.tokens[1]) == 2


def test_deadlines_of_ended_requests_do_not_accumulate():
    driver = Driver()

    for request_id in range(5 * MIN_SWEEP):
        driver.apply(submit(request_id, deadline=1e9), Cancel(request_id))

    assert len(driver.scheduler._deadlines._heap) <= MIN_SWEEP


@pytest.mark.parametrize("max_new_tokens", [2, 30])
def test_a_deadline_takes_precedence_over_end_of_sequence_and_token_limit(max_new_tokens):
    request = submit(1, max_new_tokens=max_new_tokens, deadline=5.0)
    driver = Driver(end_ids=frozenset({expected_tokens(request)[1]}))
    driver.apply(request)
    driver.step()
    driver.now = 6.0

    driver.run_until_idle()

    assert driver.reasons[1] is FinishReason.TIME_LIMIT
    assert driver.tokens[1] == expected_tokens(request)[:2]


@pytest.mark.parametrize("moment", ["step2", "finish2"])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_step_that_does_not_fit_fails_its_prefills_and_repeats_its_decodes(depth, moment):
    driver = Driver(depth=depth, out_of_memory=[moment])
    running, new = submit(1, max_new_tokens=6), submit(2)
    driver.apply(running)
    driver.step()

    driver.apply(new)
    driver.run_until_idle()

    assert driver.failures == {2: "GPU out of memory"}
    assert driver.tokens[1] == expected_tokens(running)
    driver.assert_blocks_balanced()


def test_plans_free_slots_before_they_are_reused():
    driver = Driver(max_batch_size=1)
    driver.apply(submit(1, max_new_tokens=1), submit(2, max_new_tokens=1))

    driver.run_until_idle()

    assert [(plan.free, [new.slot for new in plan.new]) for plan in driver.plans] == [([], [0]), ([0], [0])]


def test_results_contain_start_times_and_statistics():
    driver = Driver(max_batch_size=1)
    driver.apply(submit(1, prompt=3, max_new_tokens=1), submit(2, prompt=2, max_new_tokens=1))
    driver.now = 2.5

    driver.step()

    assert driver.results[0].started == [(1, 2.5)]
    stats = driver.results[0].stats
    assert (stats.prefill_rows, stats.prefill_tokens, stats.num_started) == (1, 3, 1)
    assert (stats.decode_rows, stats.num_waiting) == (0, 1)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_new_request_counts_as_started_in_the_step_that_it_joins(depth):
    driver = Driver(depth=depth)
    driver.apply(submit(1, max_new_tokens=4))
    driver.step()
    driver.apply(submit(2, max_new_tokens=1))

    driver.run_until_idle()

    stats = [result.stats for result in driver.results]
    assert [(s.num_started, s.prefill_rows, s.decode_rows) for s in stats[:3]] == [(1, 1, 0), (1, 1, 1), (0, 0, 1)]
