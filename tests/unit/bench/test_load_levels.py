"""Which levels a load has, on servers that exist only as arithmetic."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest

from tgis_cli.bench.load.levels import (
    DEFAULT_BUDGET_S,
    MAX_CONCURRENCY,
    MAX_RATES,
    RATE_RESOLUTION,
    DefaultLevels,
    FixedLevels,
    GoodputSearch,
    Outcome,
    Plan,
    Strategy,
    Sweep,
    find_knee,
)

Serve = Callable[[Plan], Outcome]
TOKENS = 64  # of each answer


def outcome(plan: Plan, latency_s: float, throughput: float, **more: float | bool | None) -> Outcome:
    facts: dict[str, float | bool | None] = {
        "failed_share": 0.0,
        "objective_share": None,
        "is_saturated": False,
        "took_s": 5.0 + latency_s,
    }
    return Outcome(plan, throughput, latency_s, **(facts | more))  # type: ignore[arg-type]


def serve_up_to(rows: int, step_s: float = 0.01) -> Serve:
    """Steps last as long up to so many rows, and more streams wait for a place."""

    def serve(plan: Plan) -> Outcome:
        assert plan.concurrency is not None
        latency_s = TOKENS * step_s * max(1.0, plan.concurrency / rows)
        return outcome(plan, latency_s, plan.concurrency * TOKENS / latency_s)

    return serve


def serve_rates_below(capacity: float, latency_s: float = 0.5) -> Serve:
    """Every call is good up to this rate; above it, the queue grows."""

    def serve(plan: Plan) -> Outcome:
        if plan.rate is None:
            return outcome(plan, latency_s, TOKENS / latency_s, objective_share=1.0)
        is_over = plan.rate > capacity
        return outcome(plan, latency_s, plan.rate * TOKENS, objective_share=0.2 if is_over else 1.0)

    return serve


def run(strategy: Strategy, serve: Serve) -> list[Outcome]:
    done: list[Outcome] = []
    while plan := strategy.choose(done):
        done.append(serve(plan))
        assert len(done) < 50, "the levels do not end"
    return done


def streams(done: list[Outcome]) -> list[int | None]:
    return [one.plan.concurrency for one in done]


def rates(done: list[Outcome]) -> list[float]:
    return [one.plan.rate for one in done if one.plan.rate is not None]


def test_titles_say_what_a_level_is():
    plans = (Plan(concurrency=1), Plan(concurrency=8), Plan(rate=2.5), Plan())

    assert [plan.title for plan in plans] == ["1 stream", "8 streams", "2.5 requests/s", "trace"]


def test_given_levels_are_measured_in_their_order():
    strategy = FixedLevels((Plan(concurrency=8), Plan(concurrency=1)))

    assert streams(run(strategy, serve_up_to(4))) == [8, 1]


def test_a_sweep_ends_with_the_doubling_that_brings_no_more():
    assert streams(run(Sweep(), serve_up_to(16))) == [1, 2, 4, 8, 16, 32]


def test_a_sweep_ends_at_its_limit():
    assert streams(run(Sweep(), serve_up_to(5000)))[-1] == MAX_CONCURRENCY


def test_a_sweep_ends_where_the_server_refuses_calls():
    def refuse_many(plan: Plan) -> Outcome:
        served = serve_up_to(1000)(plan)
        return outcome(
            plan, served.latency_s, served.throughput, failed_share=0.5 if served.plan.concurrency == 4 else 0
        )

    assert streams(run(Sweep(), refuse_many)) == [1, 2, 4]


@pytest.mark.parametrize("rows", [4, 16, 64])
def test_the_knee_is_where_the_batch_is_full(rows: int):
    knee = find_knee(run(Sweep(), serve_up_to(rows)))

    assert knee is not None
    assert knee.plan.concurrency == rows


@pytest.mark.parametrize("streams", [(1, 2, 4, 8), (8, 4, 2, 1)])
def test_levels_that_do_not_reach_the_knee_have_none(streams: tuple[int, ...]):
    done = [serve_up_to(1000)(Plan(concurrency=number)) for number in streams]

    assert find_knee(done) is None


def test_levels_without_answers_are_no_knee():
    dead = [outcome(Plan(concurrency=number), math.nan, 0.0) for number in (1, 2, 4)]

    assert find_knee(dead) is None


@pytest.mark.parametrize("capacity", [0.3, 2.0, 7.7, 100.0])
def test_the_search_brackets_the_highest_good_rate(capacity: float):
    strategy = GoodputSearch()

    held, failed = strategy.find_bracket(run(strategy, serve_rates_below(capacity)))

    assert held is not None
    assert failed is not None
    assert held <= capacity < failed
    assert failed / held <= RATE_RESOLUTION * 1.001


def test_the_search_begins_with_one_stream_and_its_rate():
    done = run(GoodputSearch(), serve_rates_below(7.7, latency_s=0.5))

    assert done[0].plan == Plan(concurrency=1)
    assert rates(done)[:3] == [2.0, 4.0, 8.0]


def test_a_rate_that_the_server_cannot_keep_up_with_does_not_hold():
    def fall_behind(plan: Plan) -> Outcome:
        is_over = (plan.rate or 0) > 3
        return outcome(plan, 0.5, 100.0, objective_share=1.0, is_saturated=is_over)

    held, failed = GoodputSearch().find_bracket(run(GoodputSearch(), fall_behind))

    assert held is not None
    assert failed is not None
    assert held <= 3 < failed


def test_a_search_without_a_good_rate_ends():
    done = run(GoodputSearch(), serve_rates_below(0.0))

    assert len(rates(done)) == MAX_RATES
    assert GoodputSearch().find_bracket(done)[0] is None


def test_a_search_ends_where_a_level_has_too_few_requests_to_judge():
    done = run(GoodputSearch(level_s=10.0), serve_rates_below(0.0, latency_s=0.1))

    assert rates(done) == [10.0, 5.0, 2.5, 1.25]


def test_a_search_on_slow_answers_begins_with_enough_requests():
    assert rates(run(GoodputSearch(level_s=10.0), serve_rates_below(50.0, latency_s=5.0)))[:2] == [1.0, 2.0]


def test_a_search_ends_with_one_stream_that_does_not_hold():
    done = run(GoodputSearch(), lambda plan: outcome(plan, 0.5, 100.0, objective_share=0.9))

    assert [one.plan for one in done] == [Plan(concurrency=1)]


def test_levels_that_are_only_ramp_up_decide_nothing():
    done = [serve_up_to(2)(Plan(concurrency=number)) for number in (1, 2, 4, 8)]
    short = [dataclasses.replace(one, is_short=True) for one in done]

    assert (find_knee(done) is not None, find_knee(short)) == (True, None)
    assert Sweep().choose(short[:1]) is None


def test_a_search_on_a_server_that_answers_nothing_ends_at_once():
    assert len(run(GoodputSearch(), lambda plan: outcome(plan, math.nan, 0.0))) == 1


def test_a_fast_server_gets_all_default_levels():
    assert streams(run(DefaultLevels(5.0), serve_up_to(8, step_s=0.005))) == [1, 8, 32]


def test_default_levels_that_would_take_too_long_are_left_out():
    done = run(DefaultLevels(5.0), serve_up_to(8, step_s=0.15))

    assert streams(done) == [1]
    assert sum(one.took_s for one in done) < DEFAULT_BUDGET_S


def test_each_default_level_ends_within_what_is_left_of_the_time():
    done = run(DefaultLevels(5.0), serve_up_to(8, step_s=0.005))

    left_s = [DEFAULT_BUDGET_S - sum(one.took_s for one in done[:number]) for number in range(3)]
    assert [one.plan.limit_s for one in done] == left_s
