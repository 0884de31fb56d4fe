"""Predictions of how long a step takes, and how much of a prompt fits into it."""

from __future__ import annotations

import math

import pytest

from driving import Driver, Load, submit
from tgis_server.scheduler.budget import PrefillBudget, StepLoad, StepTimes


def load(*rows: tuple[int, int]) -> StepLoad:
    """The load of rows, each given by its start and number of tokens."""
    found = StepLoad()
    for start, num_tokens in rows:
        found.add(start, num_tokens)
    return found


def seconds(load: StepLoad | Load) -> float:
    """A slow machine: 20 ms for the weights, 1 ms per token, 20 ns per token and key."""
    return 0.02 + 0.001 * load.num_tokens + 2e-8 * load.num_products


def learned(*loads: StepLoad) -> StepTimes:
    times = StepTimes()
    for each in loads:
        times.observe(each, seconds(each))
    return times


PROMPTS = [load((start, count)) for count in (64, 128, 256) for start in range(0, 8192, 1024)]


def test_the_prediction_is_zero_before_the_first_step():
    assert StepTimes().predict(load((0, 512))) == 0.0


def test_steps_are_predicted_from_recent_ones():
    far = load((20_000, 512), (300, 1))

    assert learned(*PROMPTS).predict(far) == pytest.approx(seconds(far), rel=0.05)


def test_the_cost_of_prompts_is_not_forgotten_during_decoding():
    decodes = [load((200 + i, 1), (900 + i, 1)) for i in range(500)]
    prompt = load((0, 512))

    assert learned(*PROMPTS, *decodes).predict(prompt) == pytest.approx(seconds(prompt), rel=0.1)


def test_predictions_adapt_when_the_machine_slows_down():
    times = learned(*PROMPTS)
    for each in PROMPTS * 2:
        times.observe(each, 3 * seconds(each))

    assert times.predict(load((0, 256))) == pytest.approx(3 * seconds(load((0, 256))), rel=0.1)


def test_a_step_without_duration_is_ignored():
    times = StepTimes()

    times.observe(load((0, 64)), 0.0)

    assert times.predict(load((0, 64))) == 0.0


def test_a_chunk_is_the_rest_of_the_prompt_or_a_power_of_two_that_fits():
    times = learned(*PROMPTS)

    def budget() -> PrefillBudget:
        return PrefillBudget.after_decodes(times, load((100, 1)), 512, 0.3, has_others=False)

    assert [budget().take(0, 1000), budget().take(0, 200), budget().take(32_000, 1000)] == [128, 200, 128]


def test_the_first_chunk_of_a_step_has_at_least_one_token_even_if_it_does_not_fit():
    budget = PrefillBudget.after_decodes(learned(*PROMPTS), load((100, 1)), 512, 0.001, has_others=True)

    assert [budget.take(600_000, 1000), budget.take(600_000, 1000)] == [1, 0]


def test_a_chunk_spends_at_least_as_long_on_its_tokens_as_on_reading_keys():
    def slow_reader(load: StepLoad) -> float:
        return 0.02 + 0.001 * load.num_tokens + 1e-5 * load.num_keys

    times = StepTimes()
    for each in [load((start, count)) for count in (64, 128, 256) for start in range(60_000, 70_000, 500)]:
        times.observe(each, slow_reader(each))

    budget = PrefillBudget.after_decodes(times, load(), 512, 0.1, has_others=False, may_exceed=True)

    assert budget.take(65_536, 10_000) >= 256


def test_no_sequence_gets_more_than_half_of_a_step_while_there_are_others():
    budget = PrefillBudget.after_decodes(StepTimes(), load((5, 1)), 64, math.inf, has_others=True)

    assert [budget.take(0, 1000) for _ in range(6)] == [32, 16, 8, 4, 2, 1]


def long_prompt_seconds(load: Load) -> float:
    """A machine on which the last of 131,072 prompt tokens takes thirty times as long as the first."""
    return 0.005 + 2e-5 * load.num_tokens + 5e-9 * load.num_products


@pytest.mark.parametrize("depth", [1, 2])
def test_running_rows_wait_no_longer_than_the_target_during_the_longest_prompt(depth):
    driver = Driver(
        num_blocks=2100,
        block_size=64,
        max_batch_tokens=512,
        target_s=0.1,
        step_seconds=long_prompt_seconds,
        depth=depth,
    )
    driver.apply(submit(1, prompt=4, max_new_tokens=2000))
    for _ in range(5):
        driver.step()
    driver.apply(submit(2, prompt=131_072, max_new_tokens=1))

    while 2 not in driver.reasons:
        driver.step()

    assert 1 not in driver.reasons
    assert all(1 in rows for rows in driver.rows)
    learning = 20  # steps until the cost of long prompts is known
    assert max(driver.seconds[learning:]) <= 0.1
    assert sum(driver.seconds) < 1.3 * (2e-5 * 131_072 + 5e-9 * 131_072**2 / 2 + 0.005 * len(driver.plans))


def test_a_plan_carries_its_allowance():
    driver = Driver(step_seconds=seconds)
    driver.apply(submit(1))
    driver.run_until_idle()

    assert driver.plans[0].allowance_s == 0.0
    assert driver.plans[-1].allowance_s == pytest.approx(10 * driver.seconds[-1], rel=0.1)
