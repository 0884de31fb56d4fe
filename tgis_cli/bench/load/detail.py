"""The details of a load result, as the JSON file has them and the HTML page draws them."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from tgis_cli.bench.result import Estimate
from tgis_server.errors import UsageError


@dataclass(slots=True)
class Window:
    """Seconds after the start of the level."""

    start_s: float
    end_s: float


@dataclass(slots=True)
class Distribution:
    """One latency over the steady window, in seconds."""

    count: int
    mean: float
    minimum: float
    maximum: float
    percentiles: dict[str, Estimate]  # "50", "90", "95", "99", "99.9"; only those with enough samples
    edges: list[float] = field(default_factory=list)  # of a histogram with logarithmic bins; one more than its counts
    counts: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Series:
    """Over the whole level, one element per bucket of ``step_s`` seconds. ``None`` where nothing is known."""

    step_s: float
    output_tokens_per_s: list[float]
    in_flight: list[float]
    ttft_p50_s: list[float | None]
    ttft_p95_s: list[float | None]
    itl_p50_s: list[float | None]
    itl_p95_s: list[float | None]
    errors: list[int]
    server: dict[str, list[float | None]] = field(default_factory=dict)  # waiting, rows_per_step, kv_used_share


@dataclass(slots=True)
class Level:
    """One load: a number of streams, or a rate."""

    title: str  # "8 streams", "4 requests/s"; also the group of its figures
    concurrency: int | None
    rate: float | None  # requests per second that were asked for
    is_streamed: bool
    whole: Window
    steady: Window  # without ramp-up and tail; the figures are those of this window
    sent: int
    completed: int  # in the steady window
    failed: int  # over the whole level
    failures: dict[str, int]  # gRPC status -> calls
    failure_texts: dict[str, str]  # gRPC status -> the server's explanation of the first
    wrong_counts: int  # answers with more or fewer tokens than requested
    is_cut: bool  # the run was ended during the level
    is_saturated: bool  # the server did not keep up with the rate
    requests_per_s: Estimate
    output_tokens_per_s: Estimate
    total_tokens_per_s: Estimate
    whole_output_tokens_per_s: float  # of the whole level, ramp-up and tail included
    latencies: dict[str, Distribution]  # ttft, itl, tpot, e2e; of open loops also ttft_intended, e2e_intended
    num_judged: int  # requests that should have met the objectives: those of the steady window, and all unserved ones
    num_good: int  # of these: answered, and they met all
    generator: dict[str, Any]  # workers, send_lag_p99_s, loop_lag_p99_s, cpu_share, cpu_us_per_token, ...
    server: dict[str, Any] | None  # differences of /metrics over the level; None without it
    first_token_split: dict[str, float] | None  # mean seconds: client, queue, prefill, rest
    series: Series
    waterfall: list[dict[str, Any]]  # at most 200 calls: due_s, sent_s, first_s, end_s, status, output_tokens
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unfinished: int = 0  # requests that were cancelled because the level had reached its limit of time
    dropped: int = 0  # requests that were due, but could not be sent in time; not in ``sent``

    @property
    def objective_share(self) -> float | None:
        """``None`` if no request was judged."""
        return self.num_good / self.num_judged if self.num_judged else None

    @property
    def is_short(self) -> bool:
        """It has no steady state, so its figures are those of the whole level."""
        return self.steady == self.whole


@dataclass(slots=True)
class LoadDetail:
    """``Result.detail`` of a load."""

    levels: list[Level]
    knee: str | None = None  # title of the level beyond which latency grows faster than throughput
    goodput: dict[str, Any] | None = None  # objectives, share, highest rate that held, rates that were tried


def read_detail(facts: Mapping[str, Any]) -> LoadDetail:
    """The details of a load result that was read from JSON, where null stands for a number that is not finite.

    Raises:
        UsageError: parts are missing.
    """
    try:
        levels = [read_level(level) for level in facts["levels"]]
        return LoadDetail(levels=levels, **pick(LoadDetail, facts, but=("levels",)))
    except (KeyError, TypeError, AttributeError):
        raise UsageError("The result is damaged: parts of its details are missing.") from None


def read_level(facts: Mapping[str, Any]) -> Level:
    rates = ("requests_per_s", "output_tokens_per_s", "total_tokens_per_s")
    read: dict[str, Any] = {name: read_estimate(facts[name]) for name in rates}
    read |= {name: Window(**pick(Window, facts[name])) for name in ("whole", "steady")}
    read["latencies"] = {name: read_distribution(each) for name, each in facts["latencies"].items()}
    read["series"] = Series(**pick(Series, facts["series"]))
    read["whole_output_tokens_per_s"] = read_number(facts["whole_output_tokens_per_s"])
    return Level(**read, **pick(Level, facts, but=read))


def read_distribution(facts: Mapping[str, Any]) -> Distribution:
    read: dict[str, Any] = {name: read_number(facts[name]) for name in ("mean", "minimum", "maximum")}
    read["percentiles"] = {name: read_estimate(each) for name, each in facts["percentiles"].items()}
    return Distribution(**read, **pick(Distribution, facts, but=read))


def read_estimate(facts: Mapping[str, Any]) -> Estimate:
    return Estimate(read_number(facts["value"]), facts.get("low"), facts.get("high"))


def read_number(value: float | None) -> float:
    return math.nan if value is None else value


def pick(of: type[Any], facts: Mapping[str, Any], but: Container[str] = ()) -> dict[str, Any]:
    """Those facts that are fields of a class; a later version may have written more."""
    return {name: facts[name] for name in of.__dataclass_fields__ if name in facts and name not in but}
