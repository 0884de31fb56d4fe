"""Encoder-decoder models: the encoder's keys and values are written once, into blocks of the pool."""

from __future__ import annotations

import pytest

from driving import Driver, expected_tokens, submit
from tgis_server.scheduler.budget import StepLoad
from tgis_server.wire.messages import Cancel, FinishReason

depths = pytest.mark.parametrize("depth", [1, 2])
SOURCE = list(range(10))


def test_an_encoder_runs_in_the_step_of_its_first_decoder_row_and_never_again():
    driver = Driver(block_size=4)
    request = submit(1, prompt=1, max_new_tokens=3, encoder=SOURCE)
    driver.apply(request)

    driver.run_until_idle()

    assert driver.encoded == [[0], [], []]
    (new,) = driver.plans[0].new
    assert (len(new.cross_blocks), new.num_encoder_tokens, list(new.encoder_ids)) == (3, 10, SOURCE)
    assert driver.tokens[1] == expected_tokens(request)
    driver.assert_blocks_balanced()


@depths
def test_equal_encodings_are_shared_once_their_step_is_committed(depth):
    driver = Driver(block_size=4, depth=depth)
    first, second = submit(1, 1, 9, encoder=SOURCE), submit(2, 2, 4, encoder=SOURCE)
    driver.apply(first, second)

    driver.run_until_idle()

    starts = [i for i, plan in enumerate(driver.plans) if plan.new]
    assert starts == [0, depth]  # the second one waits until the first step is committed
    assert [len(slots) for slots in driver.encoded if slots] == [1]
    new = driver.plans[depth].new[0]
    assert (list(new.encoder_ids), new.num_encoder_tokens) == ([], 10)
    assert new.cross_blocks == driver.plans[0].new[0].cross_blocks
    assert [driver.tokens[1], driver.tokens[2]] == [expected_tokens(first), expected_tokens(second)]
    driver.assert_blocks_balanced()


@depths
def test_a_sequence_that_waits_for_an_encoding_encodes_itself_if_that_fails(depth):
    driver = Driver(block_size=4, depth=depth, out_of_memory=["step1"])
    second = submit(2, 1, encoder=SOURCE)
    driver.apply(submit(1, 1, encoder=SOURCE), second)

    driver.run_until_idle()

    assert list(driver.failures) == [1]
    assert driver.tokens[2] == expected_tokens(second)
    driver.assert_blocks_balanced()


@depths
def test_a_preempted_sequence_is_encoded_again_if_its_blocks_were_reused(depth):
    driver = Driver(num_blocks=10, block_size=2, depth=depth, prefix_cache=False)
    requests = [submit(i, prompt=1, max_new_tokens=9, encoder=4) for i in (1, 2)]
    driver.apply(*requests)

    driver.run_until_idle()

    assert driver.preemptions > 0
    assert sum(map(len, driver.encoded)) == 3
    assert [driver.tokens[i] for i in (1, 2)] == [expected_tokens(r) for r in requests]
    driver.assert_blocks_balanced()


def test_without_a_prefix_cache_an_encoding_is_shared_only_while_it_is_in_use():
    driver = Driver(prefix_cache=False)
    for request_id in (1, 2):
        driver.apply(submit(request_id, 1, 2, encoder=SOURCE))
        driver.run_until_idle()

    assert sum(map(len, driver.encoded)) == 2


def test_the_encoding_of_a_cancelled_request_is_not_published():
    driver = Driver(depth=2)
    driver.apply(submit(1, 1, 9, encoder=SOURCE))
    driver.step()
    driver.apply(Cancel(1), submit(2, 1, encoder=SOURCE))

    driver.run_until_idle()

    assert driver.tokens[2] == expected_tokens(submit(2, 1, encoder=SOURCE))
    assert [len(slots) for slots in driver.encoded[:2]] == [1, 1]


def test_an_encoder_beyond_the_budget_runs_alone_in_a_step_between_those_of_others():
    driver = Driver(max_batch_tokens=8)
    driver.apply(submit(1, prompt=2, max_new_tokens=20))
    driver.step()

    driver.apply(submit(2, prompt=1, max_new_tokens=2, encoder=30))
    for _ in range(3):
        driver.step()

    assert driver.rows == [[1], [1], [2], [1, 2]]


def test_encoder_tokens_count_towards_the_budget_and_the_predicted_time():
    driver = Driver(max_batch_tokens=16)
    for num_tokens in (1, 2, 4, 8):
        load = StepLoad()
        load.add(0, num_tokens)
        driver.scheduler.times.observe(load, num_tokens * 1.0)
    driver.apply(submit(1, 1, encoder=10), submit(2, 1, encoder=10))

    driver.step()

    assert driver.rows == [[1]]
    assert driver.plans[0].allowance_s > 100
    assert driver.results[0].stats.prefill_tokens == 11


def test_encoder_blocks_count_when_a_request_is_checked_against_the_pool():
    driver = Driver(num_blocks=4, block_size=4)

    driver.apply(submit(1, prompt=4, max_new_tokens=5, encoder=9))
    driver.step()

    assert driver.failures == {1: "13 input and 5 new tokens need 5 KV blocks, but the server has 4"}


def test_a_decoder_prompt_that_does_not_fit_with_its_encoder_begins_with_one_token():
    driver = Driver(max_batch_tokens=8)
    request = submit(1, prompt=7, max_new_tokens=1, encoder=6)
    driver.apply(request)

    driver.run_until_idle()

    assert [plan.num_tokens for plan in driver.plans] == [[1], [6]]
    assert driver.reasons[1] is FinishReason.MAX_TOKENS
    assert driver.tokens[1] == expected_tokens(request)
