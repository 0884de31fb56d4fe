"""The steps of a work on the fake engine, whose plans are checked as a rank checks them."""

from __future__ import annotations

import pytest

from driving import VOCAB_SIZE
from tgis_cli.bench.engine.steps import MIN_STEPS, Stepper
from tgis_cli.bench.engine.work import MAX_STEPS, Work
from tgis_server.engines.api import Capacity, RunnerCaps
from tgis_server.engines.fake import FakeLaunched, FakeRunner
from tgis_server.shard.plan_check import PlanCheck
from tgis_server.wire.messages import StepPlan

CAPACITY = Capacity(num_blocks=64, block_size=4, max_sequence_length=128)


class TimedRunner(FakeRunner):
    """Each token of a step takes a second."""

    def __init__(self, *, plan_ahead: bool = False) -> None:
        super().__init__(vocab_size=VOCAB_SIZE, capacity=CAPACITY, caps=RunnerCaps(plan_ahead=plan_ahead))
        self.now = 0.0
        self.plans: list[StepPlan] = []
        self.num_in_flight = self.most_in_flight = 0

    def launch(self, plan: StepPlan) -> FakeLaunched:
        self.plans.append(plan)
        if plan.slots:
            self.num_in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.num_in_flight)
        return super().launch(plan)

    def collect(self, launched: FakeLaunched):
        self.num_in_flight -= 1
        self.now += launched.plan.total_tokens
        return super().collect(launched)


def make_stepper(runner: TimedRunner) -> Stepper:
    return Stepper(runner, PlanCheck(CAPACITY).apply, max_batch_tokens=8, clock=lambda: runner.now)


@pytest.mark.parametrize("plan_ahead", [False, True])
def test_every_decode_step_is_timed_but_the_one_that_starts_the_sequences(plan_ahead: bool):
    runner = TimedRunner(plan_ahead=plan_ahead)

    times = make_stepper(runner).measure(Work("decode", 3, 10), 6)

    assert times == [3.0] * 6
    assert runner.most_in_flight == (2 if plan_ahead else 1)


def test_a_prefill_is_timed_as_a_whole_in_chunks_as_the_scheduler_makes_them():
    runner = TimedRunner()

    times = make_stepper(runner).measure(Work("prefill", 1, 20), 1)

    assert times == [20.0]
    assert [(plan.num_tokens, plan.sample) for plan in runner.plans if plan.slots] == [
        ([8], [False]),
        ([8], [False]),
        ([4], [True]),
    ]


def test_works_leave_nothing_in_the_engine():
    runner = TimedRunner()
    stepper = make_stepper(runner)

    for work in (Work("decode", 3, 10), Work("prefill", 1, 20), Work("decode", 1, 60, "details")):
        stepper.measure(work, 3)

    assert runner._slots == {}


def test_rows_share_no_block_and_a_long_context_is_not_computed():
    runner = TimedRunner()

    make_stepper(runner).measure(Work("decode", 3, 10), 6)

    held = [[block for plan in runner.plans if plan.slots for block in plan.new_blocks[row]] for row in range(3)]
    assert [len(blocks) for blocks in held] == [5, 5, 5]  # for 10 + 7 tokens
    assert len({block for blocks in held for block in blocks}) == 15
    assert max(plan.total_tokens for plan in runner.plans) == 3


def test_short_steps_are_repeated_up_to_a_limit_and_long_ones_a_few_times():
    runner = TimedRunner()

    assert make_stepper(runner).find_num_steps(Work("decode", 3, 10)) == MIN_STEPS
    assert Stepper(runner, lambda _: None, 8, lambda: 0.0).find_num_steps(Work("decode", 1, 10)) == MAX_STEPS


def test_details_are_computed_where_they_are_asked_for():
    runner = TimedRunner()
    tokens = []
    collect = runner.collect
    runner.collect = lambda launched: tokens.append(collect(launched)) or tokens[-1]  # type: ignore[method-assign]

    make_stepper(runner).measure(Work("decode", 1, 10, "details"), 1)

    assert [len(each.details[0][0].top_ids) for each in tokens] == [5, 5]
