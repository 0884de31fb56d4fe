"""What the load generator itself costs and adds, measured against the null server: the floor of all its figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tgis_cli.bench.load.calls import Arrivals
from tgis_cli.bench.load.workers import Workers
from tgis_cli.bench.null_feed import NullFeed
from tgis_cli.bench.null_server import run_null_server
from tgis_cli.bench.result import Estimate, Figure, Result
from tgis_cli.clients.address import THIS_MACHINE, Address

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from tgis_cli.bench.load.records import GeneratorHealth, Records

RATE = 50  # requests per second of the steady load
STEADY_TOKENS = 50  # with the interval: as many streams at a time as the rate
INTERVAL_S = 0.02
FLOOD_STREAMS, FLOOD_TOKENS = 32, 500
STEADY = f"{RATE} requests/s, {INTERVAL_S * 1000:g} ms between tokens"
FLOOD = f"{FLOOD_STREAMS} streams, as fast as possible"
MAX_DELAY_S = 0.001  # beyond it the generator would be seen in the latencies of fast servers


@dataclass(frozen=True, slots=True)
class SelfTestOptions:
    workers: int = 1
    seconds: float = 5.0  # of each of the two loads


def run_self_test(options: SelfTestOptions, fingerprint: dict[str, Any]) -> Result:
    """
    Args:
        fingerprint: that of the machine and the versions.

    Raises:
        GroupFailed: the null server or a worker ended.
    """
    due_s = tuple(number / RATE for number in range(int(RATE * options.seconds)))
    steady = run_against_null_server(NullFeed(STEADY_TOKENS), Arrivals(due_s=due_s), options.workers, INTERVAL_S)
    flood_arrivals = Arrivals(concurrency=FLOOD_STREAMS, max_s=options.seconds)
    flood = run_against_null_server(NullFeed(FLOOD_TOKENS), flood_arrivals, options.workers, 0.0)
    result = Result(
        kind="self",
        options={"workers": options.workers, "seconds": options.seconds},
        shape={"rate": RATE, "interval_s": INTERVAL_S, "output_tokens": STEADY_TOKENS, "workers": options.workers},
        fingerprint=fingerprint,
        figures=[*describe_steady(steady[1]), *describe_flood(*flood)],
    )
    result.problems.extend(find_problems(result, (steady, flood)))
    return result


def run_against_null_server(
    feed: NullFeed, arrivals: Arrivals, num_workers: int, interval_s: float
) -> tuple[Records, GeneratorHealth]:
    with run_null_server(interval_s) as port:
        address = Address(THIS_MACHINE, port, is_tls=False, source="the null server")
        with Workers.open(address, None, feed, num_workers, has_stamps=True) as workers:
            return workers.run_level(arrivals)


def describe_steady(health: GeneratorHealth) -> list[Figure]:
    return [
        *percentiles("added_delay", health.stamp_delay_s, (50, 95, 99)),
        *percentiles("send_lag", health.send_lag_s, (50, 99)),
        *percentiles("loop_lag", health.loop_lag_s, (50, 99)),
        cost(STEADY, health),
    ]


def describe_flood(records: Records, health: GeneratorHealth) -> list[Figure]:
    rate = health.num_tokens / float(records.end_s.max(initial=1e-9))
    return [
        Figure(FLOOD, "output_tokens_per_s", "tokens/s", "higher", Estimate(rate), health.num_tokens),
        cost(FLOOD, health),
    ]


def percentiles(name: str, samples: npt.NDArray[np.float64], ranks: tuple[int, ...]) -> list[Figure]:
    """Of the steady load."""
    from tgis_cli.bench.statistics.quantiles import pick_quantile  # imports numpy

    return [
        Figure(STEADY, f"{name}_p{rank}", "s", "lower", Estimate(pick_quantile(samples, rank / 100)), len(samples))
        for rank in ranks
        if len(samples)
    ]


def cost(group: str, health: GeneratorHealth) -> Figure:
    """CPU time of the workers for each token."""
    per_token = health.cpu_s / max(1, health.num_tokens)
    return Figure(group, "cpu", "us/token", "lower", Estimate(per_token * 1e6), health.num_tokens)


def find_problems(result: Result, loads: tuple[tuple[Records, GeneratorHealth], ...]) -> list[str]:
    """Why the generator on this machine, as busy as it is now, would falsify what it measures."""
    problems = [
        f"{int((records.status != 0).sum())} of {len(records.status)} requests failed: "
        f"{'; '.join(records.texts.values())}"
        for records, _ in loads
        if (records.status != 0).any()
    ]
    late = [
        f"{figure.estimate.value * 1000:.3g} ms at {figure.name.rpartition('_')[2]}"
        for figure in result.figures
        if figure.name in ("added_delay_p50", "added_delay_p95") and figure.estimate.value > MAX_DELAY_S
    ]
    if late:
        problems.append(
            f"The generator reads frames too late, by {' and '.join(late)} ({MAX_DELAY_S * 1000:g} ms is allowed): the "
            "machine is too busy or too slow to measure latencies."
        )
    return problems
