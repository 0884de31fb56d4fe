"""Remarks printed with a load's figures: problems that make them untrustworthy, and notes on what they mean."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tgis_cli.bench.load.detail import Level
from tgis_cli.bench.load.levels import DEFAULT_STREAMS, GOODPUT_SHARE, DefaultLevels, GoodputSearch, Outcome, Sweep
from tgis_cli.bench.load.prompt_file import PromptFile
from tgis_cli.bench.statistics.quantiles import can_bound
from tgis_server.words.sizes import format_count

if TYPE_CHECKING:
    from tgis_cli.bench.load.run import LoadRun

MEDIAN_SAMPLES = next(num for num in itertools.count(1) if can_bound(num, 0.5))  # fewer give no percentile
MAX_HIT_SHARE = 0.05  # of prompts that all begin differently; short ones may share a block by chance


def list_problems(run: LoadRun) -> Iterator[str]:
    for level in run.levels:
        yield from (say_of(level.title, problem) for problem in level.problems)
    if run.levels and not run.is_cut and not any(level.completed for level in run.levels):
        reasons = [f"{status}: {text}" for level in run.levels for status, text in level.failure_texts.items()]
        yield f"No request was completed{f' ({reasons[0]})' if reasons else ''}."


def say_of(title: str, sentence: str) -> str:
    return f"{title}: {sentence[:1].lower()}{sentence[1:]}"


def list_notes(run: LoadRun, knee: Outcome | None) -> Iterator[str]:
    if run.target.note:
        yield run.target.note
    yield from run.notes
    for level in run.levels:
        yield from (say_of(level.title, note) for note in [*level.notes, *list_missing_percentiles(run, level)])
        if level.is_saturated:
            yield say_of(level.title, "the server did not keep up, so latencies grow with the length of the level.")
    if knee is not None:
        yield f"The knee is at {knee.plan.title}: with more, latency grows faster than throughput."
    if isinstance(run.feed, PromptFile) and run.num_sent > run.feed.num_distinct:
        yield (
            f"The file has {format_count(run.feed.num_distinct, 'prompt')}, which the load sent more than once, so a "
            "prefix cache may have helped."
        )
    if isinstance(run.options.strategy, Sweep) and run.levels and not run.is_cut:
        last = run.levels[-1]
        if last.is_short and last.completed:
            yield f"The sweep ended with {last.title}, as the level is too short to compare: give a longer --duration."
    hits = max(((level.server or {}).get("prefix_hit_share") or 0.0 for level in run.levels), default=0.0)
    if hits > MAX_HIT_SHARE and not run.options.shared_prefix and not run.options.prompts:
        yield (
            f"Up to {hits:.0%} of the prompt tokens were already in the server's prefix cache, from an earlier run "
            "with the same --seed."
        )
    if isinstance(run.options.strategy, DefaultLevels) and not run.is_cut and run.outcomes:
        yield from list_left_out(run)
    yield from list_goodput_notes(run)


def list_missing_percentiles(run: LoadRun, level: Level) -> Iterator[str]:
    """A sentence, if there were too few answers for the percentiles of whole requests."""
    latency = level.latencies.get("e2e")
    is_replayed = level.concurrency is None and level.rate is None  # a trace lasts as long as it lasts
    if run.is_cut or is_replayed or latency is None or not latency.count or latency.percentiles:
        return
    # The samples of a median, and half as many again for ramp-up and tail. Samples that are alike count less.
    factor = max(2.0, 1.5 * MEDIAN_SAMPLES / latency.count)
    if "requests" in run.options.given:
        remedy = f"--requests {math.ceil(factor * level.sent)}"
    else:
        remedy = f"--duration {math.ceil(factor * level.whole.end_s)}"
    yield (
        f"{format_count(latency.count, 'answer')} {'is' if latency.count == 1 else 'are'} too few for percentiles, "
        f"which need at least {MEDIAN_SAMPLES} answers that are not alike: {remedy} would be enough."
    )


def list_left_out(run: LoadRun) -> Iterator[str]:
    left = DEFAULT_STREAMS[len(run.outcomes) :]
    if left and not (isinstance(run.feed, PromptFile) and run.feed.is_trace):
        streams = ",".join(map(str, left))
        yield f"More streams were left out so that the run ends within 30 s: measure them with --concurrency {streams}."


def describe_goodput(run: LoadRun) -> dict[str, Any] | None:
    strategy = run.options.strategy
    if not isinstance(strategy, GoodputSearch):
        return None
    held, failed = strategy.find_bracket(run.outcomes)
    return {
        "objectives": [str(objective) for objective in run.options.objectives],
        "share": GOODPUT_SHARE,
        "rate": held,
        "lowest_rate_that_failed": failed,
        "rates": [
            {"rate": one.plan.rate, "share": one.objective_share, "held": strategy.holds(one)}
            for one in run.outcomes
            if one.plan.rate is not None
        ],
    }


def list_goodput_notes(run: LoadRun) -> Iterator[str]:
    goodput = describe_goodput(run)
    if goodput is None:
        return
    limits = ", ".join(goodput["objectives"])
    share = f"{goodput['share']:.0%} of the requests"
    min_rate = run.options.strategy.min_rate if isinstance(run.options.strategy, GoodputSearch) else 0.0
    if not goodput["rates"] and not run.is_cut:
        yield f"With a single stream, fewer than {share} meet {limits}, so no rate was tried."
    elif goodput["rate"] is None and (goodput["lowest_rate_that_failed"] or math.inf) < 2 * min_rate:
        yield (
            f"Down to {goodput['lowest_rate_that_failed']:g} requests/s, fewer than {share} meet {limits}; at lower "
            "rates a level has too few requests to judge: give a longer --duration."
        )
    elif goodput["rate"] is None:
        yield f"No rate was found at which {share} meet {limits}."
    elif goodput["lowest_rate_that_failed"] is None:
        yield f"At every rate that was tried, up to {goodput['rate']:g} requests/s, {share} meet {limits}."
    else:
        yield (
            f"Up to {goodput['rate']:g} requests/s, {share} meet {limits}; at "
            f"{goodput['lowest_rate_that_failed']:g} requests/s they do not."
        )
