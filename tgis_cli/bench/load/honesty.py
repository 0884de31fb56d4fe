"""Whether the generator did its own work well enough for the figures to be those of the server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tgis_cli.bench.load.calls import Arrivals
from tgis_cli.bench.load.detail import Distribution
from tgis_server.words.sizes import format_count

# The generator may add a tenth to a slow latency. Where it shares the cores with the server, it cannot always send
# within a hundredth of a second.
MAX_SEND_LAG_SHARE = 0.1
MIN_SEND_LAG_S = 0.01
# A late event loop makes one gap longer and the next one shorter; it must not be the reason why gaps are slow.
MAX_LOOP_LAG_SHARE = 0.25
MIN_LOOP_LAG_S = 0.01
# In a worker that is busier than this, answers wait for each other.
MAX_CPU_SHARE = 0.85
NAMES = {"ttft": "first token", "itl": "gap between tokens", "e2e": "answer"}


def find_problems(
    generator: Mapping[str, Any], latencies: Mapping[str, Distribution], concurrency: int | None = None
) -> list[str]:
    """Sentences that say why the generator has spoilt the figures of a level.

    Args:
        generator: see ``Level``.
        concurrency: that of a closed loop, in which no more workers than streams have something to do.
    """
    can_grow = concurrency is None or generator["workers"] < concurrency
    remedy = "more --workers, or another machine" if can_grow else "another machine"
    return [
        *check_send_lag(generator["send_lag_p99_s"] or 0.0, latencies, generator["num_queued"], remedy),
        *check_loop_lag(generator["loop_lag_p99_s"] or 0.0, latencies, remedy),
        *check_cpu(generator["cpu_share"], generator["workers"], remedy),
    ]


def check_send_lag(lag_s: float, latencies: Mapping[str, Distribution], num_queued: int, remedy: str) -> Iterator[str]:
    name = "ttft" if "ttft" in latencies else "e2e"
    if lag_s <= max(MIN_SEND_LAG_S, MAX_SEND_LAG_SHARE * find_slow(latencies, name)):
        return
    if num_queued:
        yield (
            f"{format_count(num_queued, 'request')} waited in the generator, because the server limits how many a "
            "connection may have in flight: use more --workers, each of which has its own connection."
        )
    else:
        yield (
            f"The generator sent one request in a hundred more than {lag_s * 1000:.0f} ms late, which is too much "
            f"compared with {describe_slow(latencies, name)}: use {remedy}, or lower the load."
        )


def check_loop_lag(lag_s: float, latencies: Mapping[str, Distribution], remedy: str) -> Iterator[str]:
    name = "itl" if "itl" in latencies else "e2e"
    if lag_s > max(MIN_LOOP_LAG_S, MAX_LOOP_LAG_SHARE * find_slow(latencies, name)):
        yield (
            f"The generator read one answer in a hundred more than {lag_s * 1000:.0f} ms late, which is too much "
            f"compared with {describe_slow(latencies, name)}: use {remedy}."
        )


def check_cpu(share: float, workers: int, remedy: str) -> Iterator[str]:
    if share > MAX_CPU_SHARE:
        yield (
            f"The busiest of {format_count(workers, 'worker')} of the generator used {share:.0%} of a core, so answers "
            f"may have waited in the generator: use {remedy}."
        )


def check_counts(wrong_counts: int) -> Iterator[str]:
    if wrong_counts:
        yield (
            f"{format_count(wrong_counts, 'answer')} had a different number of tokens than requested, so the figures "
            "are not those of the intended load."
        )


def explain_unserved(arrivals: Arrivals, unfinished: int, dropped: int) -> Iterator[str]:
    """
    Args:
        unfinished: requests that were cancelled at the level's limit of time.
        dropped: requests that were due and could not be sent in time.
    """
    if dropped:
        yield f"{format_count(dropped, 'request')} that could not be sent in time had to be dropped."
    if unfinished:
        remedy = " With --duration, a level waits for all answers." if arrivals.due_s is None else ""
        yield (
            f"The latencies leave out {format_count(unfinished, 'request')} that the level cancelled when it ended "
            f"after {arrivals.limit_s:.0f} s.{remedy}"
        )


def find_slow(latencies: Mapping[str, Distribution], name: str) -> float:
    """How long slow ones take, in seconds: the 99th percentile, or the slowest of a few; 0 if there are none."""
    latency = latencies.get(name)
    if latency is None:
        return 0.0
    return latency.percentiles["99"].value if "99" in latency.percentiles else latency.maximum


def describe_slow(latencies: Mapping[str, Distribution], name: str) -> str:
    slow_s = find_slow(latencies, name)
    return f"a slow {NAMES[name]} of {slow_s * 1000:.0f} ms" if slow_s else "the latencies"
