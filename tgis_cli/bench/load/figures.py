"""Computes the figures of a level from its records, without looking at a server or a clock."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import grpc
import numpy as np
import numpy.typing as npt

from tgis_cli.bench.http2.client import UNAVAILABLE
from tgis_cli.bench.load.calls import Arrivals
from tgis_cli.bench.load.columns import CUT
from tgis_cli.bench.load.detail import Distribution, Level, Series
from tgis_cli.bench.load.honesty import check_counts, explain_unserved, find_problems
from tgis_cli.bench.load.objectives import Objective
from tgis_cli.bench.load.records import Doubles, GeneratorHealth, Ints, Records
from tgis_cli.bench.load.saturation import is_saturated
from tgis_cli.bench.load.timeline import LatencyOverTime, Tokens, find_buckets, read_tokens, sum_by_call
from tgis_cli.bench.load.windows import belongs_to, find_steady_window, find_whole_window
from tgis_cli.bench.result import Estimate, Figure
from tgis_cli.bench.server_side import first_token_split
from tgis_cli.bench.statistics.quantiles import Clusters, Samples, batch_in_time, estimate_percentiles, pick_quantile
from tgis_cli.bench.statistics.rates import NUM_PARTS, estimate_rate, estimate_share, spread

LATENCIES = ("ttft", "itl", "tpot", "e2e")
INTENDED = ("ttft_intended", "e2e_intended")  # of open loops: a closed one has no schedule that could be missed
MAX_WATERFALL = 200
MAX_STEPS = 600  # of the series: one per pixel of a wide chart
STEP_S = 1.0
NUM_BINS = 40  # of a histogram
MAX_DECADES = 6.0  # that it spans: gaps between tokens that arrived nearly together would stretch it without end


class Watch(Protocol):
    """What the server said about the level: ``MetricsWatch``."""

    def difference(self) -> dict[str, Any] | None: ...

    def series(self, step_s: float, num_steps: int, started_at: float) -> dict[str, list[float | None]]: ...


def make_level(
    records: Records,
    health: GeneratorHealth,
    arrivals: Arrivals,
    title: str,
    *,
    is_streamed: bool,
    rate: float | None = None,
    is_cut: bool = False,
    objectives: Sequence[Objective] = (),
    watch: Watch | None = None,
) -> Level:
    """
    Args:
        rate: that was asked for, in requests per second.
    """
    whole = find_whole_window(records)
    steady, note = find_steady_window(records, arrivals)
    steady_edges = np.linspace(steady.start_s, max(steady.end_s, steady.start_s + 1e-9), NUM_PARTS + 1)
    step_s = choose_step(whole.end_s)
    step_edges = np.arange(max(1, math.ceil(whole.end_s / step_s)) + 1, dtype=np.float64) * step_s
    limits = [objective.limit_s for objective in objectives if objective.metric == "itl"]
    tokens = read_tokens(records, steady, steady_edges, step_edges, limits)
    latencies = measure_calls(records)
    chosen = belongs_to(records, steady)
    is_ok = records.status == 0
    answered = is_ok & chosen
    generator = describe_generator(health)
    names = LATENCIES if arrivals.due_s is None else LATENCIES + INTENDED
    described = describe_latencies(names, latencies, answered, tokens)
    server = watch.difference() if watch is not None else None
    series = make_series(records, latencies, tokens, step_edges)
    if watch is not None:
        series.server = watch.series(step_s, len(step_edges) - 1, records.started_at)
    unfinished = dropped = 0
    if arrivals.limit_s is not None and not is_cut:  # if the run was cut, this would say nothing about the server
        unfinished, dropped = int(np.count_nonzero(records.status == CUT)), health.num_dropped
    is_behind = arrivals.due_s is not None and is_saturated(records, unfinished + dropped)
    wrong_counts = int(np.count_nonzero(has_wrong_counts(records)))
    failed = ~is_ok & (records.status != CUT)
    judged = chosen & (records.status != CUT) & bool(objectives)
    return Level(
        title=title,
        concurrency=arrivals.concurrency,
        rate=rate,
        is_streamed=is_streamed,
        whole=whole,
        steady=steady,
        sent=len(records.index),
        completed=int(np.count_nonzero(answered)),
        failed=int(np.count_nonzero(failed)),
        failures=count_failures(records.status[failed]),
        failure_texts={name_status(status): text for status, text in records.texts.items()},
        wrong_counts=wrong_counts,
        is_cut=is_cut,
        is_saturated=is_behind,
        **estimate_rates(records, tokens, steady_edges, answered, is_closed=arrivals.concurrency is not None),
        whole_output_tokens_per_s=float(tokens.by_step.sum() / whole.end_s) if whole.end_s else 0.0,
        latencies=described,
        num_judged=int(np.count_nonzero(judged)) + (unfinished + dropped if objectives else 0),
        num_good=int(np.count_nonzero(judged & is_ok & find_good(latencies, tokens, objectives))),
        generator=generator,
        server=server,
        first_token_split=first_token_split(server, records),
        series=series,
        waterfall=sample_calls(records),
        problems=[
            *(find_problems(generator, described, arrivals.concurrency) if is_judged(records) else ()),
            *check_counts(wrong_counts),
        ],
        notes=[*([note] if note and is_ok.any() else []), *explain_unserved(arrivals, unfinished, dropped)],
        unfinished=unfinished,
        dropped=dropped,
    )


def is_judged(records: Records) -> bool:
    """Whether the generator can be blamed: not if the server is gone or answers nothing, which disturbs it, too."""
    return bool((records.status == 0).any()) and not (records.status == UNAVAILABLE).any()


def choose_step(length_s: float) -> float:
    """The seconds of one step of the series: one, or more if the level is long."""
    return STEP_S * max(1, math.ceil(length_s / STEP_S / MAX_STEPS))


def measure_calls(records: Records) -> dict[str, Doubles]:
    """The latencies of each call, in seconds; NaN where a call has no such latency."""
    sums = sum_by_call(records.gap_s, records.num_gaps)
    tpot = np.divide(sums, records.num_gaps, out=np.full(len(sums), np.nan), where=records.num_gaps > 0)
    return {
        "ttft": records.first_s - records.sent_s,
        "tpot": tpot,
        "e2e": records.end_s - records.sent_s,
        "ttft_intended": records.first_s - records.due_s,
        "e2e_intended": records.end_s - records.due_s,
    }


def describe_latencies(
    names: Sequence[str], latencies: dict[str, Doubles], chosen: npt.NDArray[np.bool_], tokens: Tokens
) -> dict[str, Distribution]:
    """Each latency of the chosen calls, and all gaps in the steady window. A latency without samples is left out."""
    described = {}
    for name in names:
        if name == "itl":
            samples: Samples = tokens.gaps
            clusterings: Sequence[Clusters] = tokens.clusters
        else:
            samples = latencies[name][chosen]
            samples = samples[np.isfinite(samples)]
            clusterings = batch_in_time(len(samples))
        if len(samples):
            described[name] = describe(samples, clusterings)
    return described


def describe(samples: Samples, clusterings: Sequence[Clusters]) -> Distribution:
    edges, counts = make_histogram(samples)
    return Distribution(
        count=len(samples),
        mean=float(samples.mean(dtype=np.float64)),
        minimum=float(samples.min()),
        maximum=float(samples.max()),
        percentiles=estimate_percentiles(samples, clusterings),
        edges=edges,
        counts=counts,
    )


def make_histogram(samples: Samples) -> tuple[list[float], list[int]]:
    """Edges and counts of bins of equal ratio. What is below the first edge, such as gaps of 0, is in the first bin."""
    most = float(samples.max())
    if most <= 0:
        return [], []
    least = max(float(samples.min(initial=most, where=samples > 0)), most * 10**-MAX_DECADES)
    edges = np.geomspace(least * 0.999, most * 1.001, NUM_BINS + 1)
    counts, _ = np.histogram(samples, edges)
    counts[0] += len(samples) - counts.sum()
    return edges.tolist(), counts.tolist()


def estimate_rates(
    records: Records, tokens: Tokens, edges: Doubles, answered: npt.NDArray[np.bool_], *, is_closed: bool
) -> dict[str, Estimate]:
    """Rates over the steady window. What was in progress at its borders counts in proportion.

    Args:
        answered: which calls belong to the window and were answered.
    """
    is_ok = records.status == 0
    batch_s = float(edges[1] - edges[0])
    call_s = float((records.end_s - records.sent_s)[answered].mean()) if answered.any() else 0.0
    until = np.where(np.isnan(records.first_s), records.end_s, records.first_s)
    inputs = spread(records.sent_s, until, edges, records.input_tokens)
    answers = spread(records.sent_s[is_ok], records.end_s[is_ok], edges)
    num_tokens = int(tokens.by_batch.sum())
    # A closed loop always has as many streams, so its number of tokens hardly depends on which calls are in flight.
    token_s = 0.0 if is_closed else call_s
    return {
        "requests_per_s": estimate_rate(answers, batch_s, int(answers.sum()), call_s=call_s),
        "output_tokens_per_s": estimate_rate(tokens.by_batch, batch_s, num_tokens, call_s=token_s),
        "total_tokens_per_s": estimate_rate(tokens.by_batch + inputs, batch_s, num_tokens, call_s=call_s),
    }


def has_wrong_counts(records: Records) -> npt.NDArray[np.bool_]:
    """Which answers have other numbers of tokens than were asked for, where that is known."""
    is_wrong_input = (records.asked_input > 0) & (records.input_tokens != records.asked_input)
    is_wrong_output = (records.asked_output > 0) & (records.output_tokens != records.asked_output)
    is_wrong: npt.NDArray[np.bool_] = (records.status == 0) & (is_wrong_input | is_wrong_output)
    return is_wrong


def find_good(latencies: dict[str, Doubles], tokens: Tokens, objectives: Sequence[Objective]) -> npt.NDArray[np.bool_]:
    """Which calls meet all objectives if they were answered.

    The times to the first token and to the end count from the intended start, since a user would wait from then on.
    """
    is_good = np.ones(len(latencies["e2e"]), np.bool_)
    for objective in objectives:
        name = {"ttft": "ttft_intended", "e2e": "e2e_intended"}.get(objective.metric, objective.metric)
        is_good &= tokens.is_good[objective.limit_s] if name == "itl" else keeps(latencies[name], objective.limit_s)
    return is_good


def keeps(latencies: Doubles, limit_s: float) -> npt.NDArray[np.bool_]:
    """Calls without this latency, such as the time per output token of a single token, keep to any limit."""
    return ~(latencies > limit_s)


def count_failures(status: Ints) -> dict[str, int]:
    codes, counts = np.unique(status, return_counts=True)
    return {name_status(int(code)): int(count) for code, count in zip(codes, counts, strict=True)}


def name_status(code: int) -> str:
    """``RESOURCE_EXHAUSTED``."""
    names: dict[int, str] = {each.value[0]: each.name for each in grpc.StatusCode}
    return "CUT" if code == CUT else names.get(code, f"status {code}")


def describe_generator(health: GeneratorHealth) -> dict[str, Any]:
    return {
        "workers": health.workers,
        "send_lag_p99_s": pick(health.send_lag_s, 0.99),
        "num_queued": health.num_queued,
        "loop_lag_p99_s": pick(health.loop_lag_s, 0.99),
        "cpu_share": health.cpu_share,
        "cpu_s": health.cpu_s,
        "cpu_us_per_token": health.cpu_s / health.num_tokens * 1e6 if health.num_tokens else None,
        "num_tokens": health.num_tokens,
        "peak_bytes": health.peak_bytes,
    }


def pick(samples: Doubles, share: float) -> float | None:
    return pick_quantile(samples, share) if len(samples) else None


def make_series(records: Records, latencies: dict[str, Doubles], tokens: Tokens, edges: Doubles) -> Series:
    step_s, num_steps = float(edges[1] - edges[0]), len(edges) - 1
    ttft = LatencyOverTime(num_steps)
    has_first = np.isfinite(records.first_s)
    ttft.add(find_buckets(records.first_s[has_first], edges), latencies["ttft"][has_first])
    failed_at = records.end_s[(records.status != 0) & (records.status != CUT)]
    in_flight = spread(records.sent_s, records.end_s, edges, records.end_s - records.sent_s)
    return Series(
        step_s=step_s,
        output_tokens_per_s=(tokens.by_step / step_s).tolist(),
        in_flight=(in_flight / step_s).tolist(),
        ttft_p50_s=ttft.percentile(0.5),
        ttft_p95_s=ttft.percentile(0.95),
        itl_p50_s=tokens.itl.percentile(0.5),
        itl_p95_s=tokens.itl.percentile(0.95),
        errors=np.bincount(find_buckets(failed_at, edges), minlength=num_steps).tolist(),
    )


def sample_calls(records: Records) -> list[dict[str, Any]]:
    """Calls spread evenly over the level, in the order in which they were sent."""
    order = np.argsort(records.sent_s, kind="stable")
    picks = np.unique(np.linspace(0, max(0, len(order) - 1), min(MAX_WATERFALL, len(order))).astype(int))
    return [
        {
            "due_s": float(records.due_s[i]),
            "sent_s": float(records.sent_s[i]),
            "first_s": float(records.first_s[i]) if np.isfinite(records.first_s[i]) else None,
            "end_s": float(records.end_s[i]),
            "status": name_status(int(records.status[i])),
            "output_tokens": int(records.output_tokens[i]),
        }
        for i in order[picks]
    ]


def to_figures(level: Level) -> Iterator[Figure]:
    """What tables, CSV and comparisons have of a level."""
    group = level.title
    yield Figure(group, "output_tokens_per_s", "tokens/s", "higher", level.output_tokens_per_s, level.completed)
    yield Figure(group, "total_tokens_per_s", "tokens/s", "higher", level.total_tokens_per_s, level.completed)
    yield Figure(group, "requests_per_s", "requests/s", "higher", level.requests_per_s, level.completed)
    for name, latency in level.latencies.items():
        for percent, estimate in latency.percentiles.items():
            yield Figure(group, f"{name}_p{percent}", "s", "lower", estimate, latency.count)
        yield Figure(group, f"{name}_mean", "s", "", Estimate(latency.mean), latency.count)
    yield Figure(group, "failed_share", "", "lower", estimate_share(level.failed, level.sent), level.sent)
    if level.num_judged:
        share = estimate_share(level.num_good, level.num_judged)
        yield Figure(group, "objective_share", "", "higher", share, level.num_judged)
