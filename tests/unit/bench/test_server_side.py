"""What the server says about a level of a load, from texts that the server's own metrics make."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from metrics_texts import make_metrics, scrape, serve_one
from tgis_cli.bench.load.records import Records
from tgis_cli.bench.server_side import MetricsWatch, difference, first_token_split
from tgis_cli.clients.metrics import Change, Scrape
from tgis_server.errors import TgisError, Unavailable
from tgis_server.wire.messages import StepStats


class Played:
    """A server whose answers are given."""

    def __init__(self, *answers: Scrape | TgisError) -> None:
        self._answers: Iterator[Scrape | TgisError] = iter(answers)

    def scrape(self) -> Scrape:
        answer = next(self._answers)
        if isinstance(answer, TgisError):
            raise answer
        return answer


def watch(*answers: Scrape | TgisError) -> MetricsWatch:
    """A watch that has seen these answers, one after the other."""
    watching = MetricsWatch(Played(*answers))
    for _ in answers:
        watching._read()
    return watching


def records(due_s: list[float], sent_s: list[float], first_s: list[float]) -> Records:
    ints, doubles = np.zeros(len(due_s), np.int64), np.zeros(len(due_s))
    return Records(
        index=ints,
        due_s=np.array(due_s),
        sent_s=np.array(sent_s),
        first_s=np.array(first_s),
        end_s=doubles,
        status=ints,
        input_tokens=ints,
        output_tokens=ints,
        asked_input=ints,
        asked_output=ints,
        gap_s=np.zeros(0, np.float32),
        num_gaps=ints,
        texts={},
    )


def test_the_difference_has_only_what_happened_in_between():
    metrics = make_metrics()
    serve_one(metrics)
    metrics.count_failure("conc_limit")
    before = scrape(metrics, 10.0)
    serve_one(metrics)
    metrics.count_failure("validation", 2)

    said = difference(before, scrape(metrics, 14.0))

    exact = {name: value for name, value in said.items() if name[-6:-4] != "_p"}
    assert exact == {
        "seconds": 4.0,
        "calls": 1,
        "inputs": 1,
        "prompt_tokens": 40,
        "output_tokens": 2,
        "outcomes": {"MAX_TOKENS": 1},
        "failures": {"validation": 2},
        "queue_s": pytest.approx(0.1),
        "prefill_s": pytest.approx(0.3),
        "first_token_s": pytest.approx(0.4),
        "decode_s": pytest.approx(0.05),
        "inter_token_s": pytest.approx(0.05),
        "steps": 1,
        "step_s": pytest.approx(0.03),
        "rows_per_step": 4.0,
        "preemptions": 0,
        "prefix_hit_tokens": 10,
        "prefix_hit_share": 0.25,
        "kv_blocks": 100,
    }


def test_what_did_not_happen_has_no_mean_and_no_percentile():
    metrics = make_metrics()
    serve_one(metrics)
    idle = difference(scrape(metrics), scrape(metrics, 1.0))

    assert idle["calls"] == 0
    assert {name for name, value in idle.items() if name.endswith("_s") and value is not None} == set()
    assert idle["rows_per_step"] is idle["prefix_hit_share"] is None


@pytest.mark.parametrize("percent", [1, 50, 95, 99, 100])
def test_percentiles_are_within_the_width_of_a_bucket(percent: int):
    metrics = make_metrics()
    before = scrape(metrics)
    amounts = np.random.default_rng(1).lognormal(-3, 1, 2000)
    for amount in amounts:
        metrics.observe_queued(amount)

    histogram = Change(before, scrape(metrics)).histogram("tgi_request_queue_duration")
    estimate = histogram.estimate_percentile(percent)

    assert estimate is not None
    assert 1 / 1.5 <= estimate / np.percentile(amounts, percent) <= 1.5


def test_of_amounts_beyond_the_last_bound_only_that_bound_is_known():
    metrics = make_metrics()
    before = scrape(metrics)
    metrics.observe_queued(1000)

    histogram = Change(before, scrape(metrics)).histogram("tgi_request_queue_duration")

    assert histogram.estimate_percentile(50) == histogram.bounds[-2]


def test_a_watch_knows_what_no_difference_shows():
    metrics = make_metrics()
    first = scrape(metrics, 0.0)
    serve_one(metrics, StepStats(prefill_rows=2, forward_s=0.01, used_blocks=80, num_waiting=7))
    busy = scrape(metrics, 1.0)
    serve_one(metrics, StepStats(decode_rows=1, forward_s=0.01, used_blocks=20))

    said = watch(first, busy, scrape(metrics, 2.0)).difference()

    assert said is not None
    assert (said["kv_used_mean_share"], said["kv_used_max_share"], said["waiting_max"]) == (0.5, 0.8, 7)


def test_the_series_holds_each_sample_until_the_one_before_it():
    metrics = make_metrics()
    first = scrape(metrics, 100.0)
    serve_one(metrics, StepStats(decode_rows=2, forward_s=0.01, used_blocks=50, num_waiting=3))
    busy = scrape(metrics, 101.0)
    serve_one(metrics, StepStats(decode_rows=4, forward_s=0.01, used_blocks=100))

    series = watch(first, busy, scrape(metrics, 102.0)).series(0.5, 7, 100.0)

    assert series == {
        "waiting": [3, 3, 3, 0, 0, None, None],
        "rows_per_step": [2, 2, 2, 4, 4, None, None],
        "kv_used_share": [0.5, 0.5, 0.5, 1, 1, None, None],
    }


def test_a_level_of_a_server_that_cannot_be_read_has_a_note_and_no_figures():
    watching = watch(Unavailable("No server at h:1."), Unavailable("No server at h:1."))

    assert watching.notes == ["The server's metrics are incomplete: No server at h:1."]
    assert watching.difference() is None
    assert watching.series(1.0, 3, 0.0) == {}


def test_without_a_server_nothing_is_read():
    with MetricsWatch(None) as watching:
        pass

    assert (watching.difference(), watching.series(1.0, 2, 0.0), watching.notes) == (None, {}, [])


def test_figures_end_where_the_server_restarted():
    metrics, restarted = make_metrics(), make_metrics(startup_s=3.0)
    first = scrape(metrics, 0.0)
    serve_one(metrics)
    watching = watch(first, scrape(metrics, 1.0), scrape(restarted, 2.0), Unavailable("gone"))

    said = watching.difference()

    assert said is not None
    assert (said["calls"], said["seconds"]) == (1, 1.0)
    assert watching.notes[0] == "The server restarted: its metrics cover only the time before the restart."


def test_a_block_is_read_at_its_start_and_at_its_end():
    metrics = make_metrics()
    first = scrape(metrics, 0.0)
    serve_one(metrics)

    with MetricsWatch(Played(first, scrape(metrics, 1.0)), every_s=100.0) as watching:
        pass

    said = watching.difference()
    assert said is not None
    assert said["calls"] == 1


def test_the_time_to_a_first_token_is_split_into_what_each_part_took():
    server = {"queue_s": 0.1, "prefill_s": 0.3}
    calls = records([0.0, 1.0, 9.0], [0.02, 1.04, 9.9], [0.6, 1.5, float("nan")])  # the last one got no token

    split = first_token_split(server, calls)

    assert split == pytest.approx({"client": 0.03, "queue": 0.1, "prefill": 0.3, "rest": 0.12})


@pytest.mark.parametrize(
    ("server", "first_s"), [(None, 0.5), ({"queue_s": None, "prefill_s": None}, 0.5), ({"queue_s": 0.1}, float("nan"))]
)
def test_without_figures_of_both_sides_there_is_no_split(server: dict[str, float | None] | None, first_s: float):
    assert first_token_split(server and {"prefill_s": 0.1} | server, records([0.0], [0.1], [first_s])) is None
