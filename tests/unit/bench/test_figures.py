"""The figures of levels that can be computed by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tgis_cli.bench.load.calls import Arrivals
from tgis_cli.bench.load.columns import CUT
from tgis_cli.bench.load.detail import Level
from tgis_cli.bench.load.figures import make_level, to_figures
from tgis_cli.bench.load.objectives import Objective
from tgis_cli.bench.result import Estimate, drop_nonfinite
from timelines import Timeline, closed_loop, healthy, open_loop


def level_of(timeline: Timeline, concurrency: int | None = 2, **options) -> Level:
    records = timeline.records()
    due_s = None if concurrency else tuple(sorted(records.due_s))
    arrivals = Arrivals(concurrency=concurrency, due_s=due_s, limit_s=options.pop("limit_s", None))
    health = options.pop("health", healthy())
    return make_level(records, health, arrivals, "level", is_streamed=True, **options)


def test_latencies_of_streams_are_those_of_their_tokens():
    # Calls of 1 s: first token after 0.5 s, then five gaps of 0.1 s.
    level = level_of(closed_loop())

    means = {name: latency.mean for name, latency in level.latencies.items()}
    assert means == pytest.approx({"ttft": 0.5, "itl": 0.1, "tpot": 0.1, "e2e": 1.0})
    # Of ten rounds, the first one is ramp-up.
    assert (level.sent, level.completed) == (20, 18)
    assert level.latencies["ttft"].percentiles["50"] == Estimate(0.5, 0.5, 0.5)
    assert level.latencies["itl"].count == pytest.approx(90, abs=2)  # some arrive at the very border


def test_percentiles_without_enough_calls_are_left_out():
    assert list(level_of(closed_loop()).latencies["e2e"].percentiles) == ["50"]


def test_a_late_start_lengthens_only_what_counts_from_the_intended_one():
    timeline = Timeline()
    for number in range(10):
        timeline.stream(number + 0.3, number + 0.5, [0.1], due_s=number)

    latencies = level_of(timeline, None).latencies

    assert latencies["ttft"].mean == pytest.approx(0.2)
    assert latencies["ttft_intended"].mean == pytest.approx(0.5)


def test_rates_are_those_of_the_steady_window():
    # Two streams of six tokens per second after ten prompt tokens per second.
    level = level_of(closed_loop(stagger_s=0.25))

    assert level.output_tokens_per_s.value == pytest.approx(12, rel=0.001)
    assert level.total_tokens_per_s.value == pytest.approx(32, rel=0.001)
    assert level.requests_per_s.value == pytest.approx(2, rel=0.001)
    assert level.whole_output_tokens_per_s == pytest.approx(120 / 10.25)


@pytest.mark.parametrize("calls_per_stream", [4, 5])
def test_streams_in_lockstep_have_their_rate_in_short_windows_too(calls_per_stream):
    level = level_of(closed_loop(streams=8, calls_per_stream=calls_per_stream), 8)

    assert level.output_tokens_per_s.value == pytest.approx(48, rel=0.001)
    assert level.requests_per_s.value == pytest.approx(8, rel=0.001)


def test_rates_of_a_steady_level_have_narrow_intervals():
    rate = level_of(closed_loop(streams=20, calls_per_stream=50, stagger_s=0.05), 20).output_tokens_per_s

    assert rate.low < rate.value < rate.high
    assert rate.high - rate.low < 0.02 * rate.value


def test_a_long_call_across_the_border_of_the_window_counts_in_part():
    timeline = closed_loop(streams=1, calls_per_stream=10)
    timeline.stream(0.0, 0.5, [0.5] * 40)  # ends long after the other stream: two tokens per second

    level = level_of(timeline)

    assert (level.steady.start_s, level.steady.end_s) == pytest.approx((0.5, 10.0))
    assert level.output_tokens_per_s.value == pytest.approx((59 + 19) / 9.5)


def test_unary_calls_have_no_first_token_and_their_tokens_count_evenly():
    timeline = Timeline()
    for number in range(20):
        timeline.answer(number, number + 1, output_tokens=8)

    level = level_of(timeline, 1)

    assert set(level.latencies) == {"e2e"}
    assert level.output_tokens_per_s.value == pytest.approx(8)
    assert level.series.ttft_p50_s == [None] * 20


def test_failures_are_counted_by_status_with_the_first_text():
    timeline = closed_loop()
    timeline.answer(5.0, 5.1, status=8, output_tokens=0)
    timeline.answer(5.1, 5.2, status=8, output_tokens=0)
    timeline.answer(5.2, 5.3, status=14, output_tokens=0)
    timeline.answer(9.9, 10.0, status=-1, output_tokens=0)
    timeline.texts = {8: "Model is overloaded", 14: "connection lost"}

    level = level_of(timeline)

    assert level.failed == 3
    assert level.failures == {"RESOURCE_EXHAUSTED": 2, "UNAVAILABLE": 1}
    assert level.failure_texts == {"RESOURCE_EXHAUSTED": "Model is overloaded", "UNAVAILABLE": "connection lost"}
    assert level.series.errors == [0, 0, 0, 0, 0, 3, 0, 0, 0, 0]


def test_a_level_of_failures_alone_has_no_latencies_and_can_be_written():
    timeline = Timeline()
    for number in range(10):
        timeline.answer(number, number + 1, status=14, output_tokens=0)

    level = level_of(timeline, 1)

    assert (level.latencies, level.completed, level.failed) == ({}, 0, 10)
    assert level.output_tokens_per_s.value == 0
    assert drop_nonfinite(dataclasses.asdict(level))["requests_per_s"]["value"] == 0
    assert level.notes == []


def test_a_level_without_calls_is_empty():
    level = level_of(Timeline())

    assert (level.sent, level.latencies, level.waterfall, level.failures) == (0, {}, [], {})


def test_answers_with_other_numbers_of_tokens_than_asked_for_cast_doubt():
    timeline = closed_loop()
    timeline.stream(9.0, 9.5, [0.1] * 5, asked_output=7)
    timeline.stream(9.0, 9.5, [0.1] * 5, asked_output=6)

    level = level_of(timeline)

    assert level.wrong_counts == 1
    assert "1 answer had a different number of tokens" in level.problems[0]


@pytest.mark.parametrize(
    ("objectives", "share"),
    [
        ([("ttft", 0.6)], 9 / 10),
        ([("itl", 0.05)], 0.0),
        ([("itl", 0.15)], 1.0),
        ([("ttft", 0.6), ("tpot", 0.11)], 9 / 10),
        ([("e2e", 0.9)], 0.0),
    ],
)
def test_the_share_that_keeps_to_the_objectives_counts_from_the_intended_start(objectives, share):
    timeline = Timeline()
    for number in range(11):  # the first one is ramp-up
        timeline.stream(number, number + 0.5, [0.1] * 5, due_s=number - (0.3 if number == 5 else 0))

    level = level_of(timeline, 1, objectives=[Objective(*each) for each in objectives])

    assert level.completed == 10
    assert level.objective_share == pytest.approx(share)


def test_failed_calls_do_not_meet_objectives():
    timeline = Timeline()
    for number in range(11):
        timeline.answer(number, number + 1, status=8 if number % 2 else 0, output_tokens=1)

    (figure,) = (
        figure
        for figure in to_figures(level_of(timeline, 1, objectives=[Objective("e2e", 2.0)]))
        if figure.name == "objective_share"
    )

    assert (figure.estimate.value, figure.count) == (0.5, 10)


def test_a_level_of_failures_alone_meets_no_objective():
    timeline = Timeline()
    for number in range(10):
        timeline.answer(number, number + 1, status=8, output_tokens=0)

    level = level_of(timeline, 1, objectives=[Objective("e2e", 2.0)])

    by_name = {figure.name: figure.estimate for figure in to_figures(level)}
    assert (level.objective_share, by_name["objective_share"].value) == (0, 0)


def test_one_slow_gap_in_twenty_is_within_an_objective_for_gaps():
    timeline = Timeline()
    timeline.stream(0.0, 0.1)  # ramp-up
    timeline.stream(0.2, 0.3, [0.01] * 19 + [1.0])
    timeline.stream(2.0, 2.1, [0.01] * 18 + [1.0] * 2)

    assert level_of(timeline, 1, objectives=[Objective("itl", 0.05)]).objective_share == 0.5


def test_the_series_shows_the_level_second_by_second():
    timeline = Timeline()
    for sent_s in (0.05, 1.05, 2.05):
        timeline.stream(sent_s, sent_s + 0.5, [0.1] * 4)
    timeline.stream(1.05, 1.35, [0.3] * 2)

    series = level_of(timeline).series

    assert series.step_s == 1
    assert series.output_tokens_per_s == [5, 8, 5]
    assert series.in_flight == pytest.approx([0.9, 1.8, 0.9])
    assert series.ttft_p50_s == pytest.approx([0.5, 0.3, 0.5], rel=0.02)
    assert series.itl_p95_s == pytest.approx([0.1, 0.3, 0.1], rel=0.02)


def test_a_long_level_has_longer_steps():
    series = level_of(open_loop(np.arange(1300.0), np.ones(1300)), None).series

    assert series.step_s == 3
    assert len(series.errors) == 434


def test_the_waterfall_is_spread_over_the_level():
    calls = level_of(closed_loop(calls_per_stream=1000)).waterfall

    assert len(calls) == 200
    assert calls[0]["sent_s"] == 0
    assert calls[-1]["sent_s"] == pytest.approx(999)
    assert calls[0] | {"end_s": 1.0} == {
        **{"due_s": 0.0, "sent_s": 0.0, "first_s": 0.5, "end_s": 1.0},
        **{"status": "OK", "output_tokens": 6},
    }


def test_the_histogram_has_all_samples_even_gaps_of_zero():
    timeline = Timeline()
    for number in range(20):
        timeline.stream(number, number + 0.5, [0.1, 0.0, 0.2, 0.0])

    itl = level_of(timeline, 1).latencies["itl"]

    assert sum(itl.counts) == itl.count
    assert len(itl.edges) == len(itl.counts) + 1
    assert itl.counts[0] == itl.count // 2 + itl.count // 4


def test_a_server_that_falls_behind_the_rate_is_saturated():
    moments = np.arange(0, 30, 0.25)

    assert level_of(open_loop(moments, 1 + moments), None).is_saturated


def overloaded(num_answered: int, num_unfinished: int) -> Timeline:
    """Requests at 1 per second that take 0.5 s, and then some that are cancelled in the end."""
    timeline = open_loop(np.arange(num_answered), np.full(num_answered, 0.5))
    for number in range(num_unfinished):
        timeline.answer(num_answered + number, 100.0, status=CUT)
    return timeline


def test_requests_that_a_level_did_not_wait_for_are_said_and_are_no_failures():
    level = level_of(overloaded(20, 20), None, limit_s=100.0, health=healthy(num_dropped=1))

    assert (level.unfinished, level.dropped, level.failed, level.is_saturated) == (20, 1, 0, True)
    assert level.notes[-2:] == [
        "1 request that could not be sent in time had to be dropped.",
        "The latencies leave out 20 requests that the level cancelled when it ended after 100 s.",
    ]


def test_requests_that_a_level_did_not_wait_for_meet_no_objective():
    objectives = [Objective("e2e", 1.0)]

    waited, ended = (
        level_of(overloaded(20, 20), None, limit_s=100.0, is_cut=is_cut, objectives=objectives)
        for is_cut in (True, False)
    )

    assert (waited.objective_share, ended.num_judged - ended.num_good) == (1.0, 20)


def test_a_closed_loop_is_never_saturated():
    assert not level_of(closed_loop()).is_saturated


def test_a_good_generator_casts_no_doubt():
    assert level_of(closed_loop()).problems == []


@pytest.mark.parametrize(
    ("health", "sentence"),
    [
        ({"send_lag_s": np.full(100, 0.06)}, "sent one request in a hundred more than 60 ms late"),
        ({"send_lag_s": np.full(100, 0.06), "num_queued": 7}, "7 requests waited in the generator"),
        ({"loop_lag_s": np.full(100, 0.03)}, "read one answer in a hundred more than 30 ms late"),
        ({"cpu_share": 0.9, "workers": 2}, "The busiest of 2 workers of the generator used 90% of a core"),
    ],
)
def test_a_generator_that_disturbs_its_own_figures_is_named(health, sentence):
    (problem,) = level_of(closed_loop(), health=healthy(**health)).problems

    assert sentence in problem


@pytest.mark.parametrize(("workers", "advises_workers"), [(1, True), (2, False)])
def test_more_workers_than_streams_are_not_advised(workers, advises_workers):
    (problem,) = level_of(closed_loop(), 2, health=healthy(cpu_share=0.9, workers=workers)).problems

    assert ("--workers" in problem, "another machine" in problem) == (advises_workers, True)


@pytest.mark.parametrize("status", [0, 14])
def test_a_generator_is_not_blamed_where_the_server_is_gone(status):
    timeline = closed_loop()
    timeline.answer(9.0, 9.1, status=status, output_tokens=6)

    assert bool(level_of(timeline, health=healthy(cpu_share=0.9)).problems) == (status == 0)


def test_figures_are_a_flat_list_in_the_group_of_the_level():
    figures = list(to_figures(level_of(closed_loop(), objectives=[Objective("ttft", 1.0)])))

    assert {figure.group for figure in figures} == {"level"}
    by_name = {figure.name: figure for figure in figures}
    assert by_name["ttft_p50"].estimate == Estimate(0.5, 0.5, 0.5)
    assert (by_name["ttft_p50"].better, by_name["output_tokens_per_s"].better) == ("lower", "higher")
    assert by_name["failed_share"].estimate.value == 0
    assert by_name["objective_share"].estimate.value == 1


class OneWatch:
    """A server that says something."""

    def difference(self):
        return {"queue_s": 0.1, "prefill_s": 0.3}

    def series(self, step_s, num_steps, started_at):
        return {"waiting": [step_s, num_steps, started_at]}


def test_what_the_server_says_stands_beside_what_was_seen():
    timeline = closed_loop()
    timeline.started_at = 100.0

    level = level_of(timeline, watch=OneWatch())

    assert level.server == {"queue_s": 0.1, "prefill_s": 0.3}
    assert level.series.server == {"waiting": [1.0, 10, 100.0]}
    assert level.first_token_split == pytest.approx({"client": 0, "queue": 0.1, "prefill": 0.3, "rest": 0.1})
