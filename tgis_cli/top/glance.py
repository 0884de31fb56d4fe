"""What `tgis top` knows of a server at one moment, and how scripts and logs read it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tgis_cli.clients.answer import format_latency, format_rate
from tgis_cli.clients.metrics import ITL, PERCENTILES, QUEUE, RUNNING, STEP, TTFT, WAITING, Change, Histogram, Scrape
from tgis_cli.top.processes import ServerProcess
from tgis_cli.top.window import RATE_S, WINDOW_S, Point, Window, read_rates
from tgis_server.words.control_characters import escape_controls

READY, NO_ANSWER = "ready", "no answer"
STATES = {"serving": READY}  # other states keep the server's names


@dataclass(frozen=True, slots=True)
class Latency:
    """One latency in seconds; ``None`` if nothing was observed."""

    p50_s: float | None = None
    p95_s: float | None = None
    p99_s: float | None = None
    mean_s: float | None = None


@dataclass(frozen=True, slots=True)
class Glance:
    """``None`` is unknown. Rates cover the last few seconds; latencies, steps and failures cover ``window_s``."""

    at: float  # seconds since the epoch
    url: str
    model: str
    mode: str  # "rehearsal", "demo model" or empty
    state: str  # "ready", "starting", "draining", "failed", "no answer"
    reason: str = ""  # why it is not ready, or why its metrics cannot be read
    up_s: float | None = None
    restarted_at: float | None = None  # if that was seen; since the epoch
    requests_per_s: float | None = None
    output_tokens_per_s: float | None = None
    prompt_tokens_per_s: float | None = None
    running: int | None = None
    waiting: int | None = None
    calls_in_flight: int | None = None
    kv_blocks_used: int | None = None
    kv_blocks_total: int | None = None
    window_s: float | None = None
    queue: Latency = Latency()
    first_token: Latency = Latency()
    inter_token: Latency = Latency()
    step_s: float | None = None
    rows_per_step: float | None = None
    prefix_hit_share: float | None = None
    preemptions: int | None = None
    failures: dict[str, int] | None = None
    processes: Sequence[ServerProcess] = ()
    history: Sequence[Point] = ()  # one for each update; oldest first

    @property
    def kv_share(self) -> float | None:
        if self.kv_blocks_used is None or not self.kv_blocks_total:
            return None
        return self.kv_blocks_used / self.kv_blocks_total

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the history, which a script can keep itself."""
        return {name: round_all(value) for name, value in asdict(self).items() if name != "history"}

    def as_line(self) -> str:
        """For logs: a line without colours or graphs."""
        clock = time.strftime("%H:%M:%S", time.localtime(self.at))
        if self.running is None:
            return escape_controls(f"{clock} {self.state}{f': {self.reason}' if self.reason else ''}")
        parts = [
            f"{clock} {self.state}",
            f"{or_dash(self.requests_per_s, format_rate)} requests/s",
            f"{or_dash(self.output_tokens_per_s, format_rate)} tokens/s",
            f"{self.running} running",
            f"{self.waiting} waiting",
            f"KV {or_dash(self.kv_share, format_share)}",
            f"first token {show_pair(self.first_token)}",
            f"between tokens {show_pair(self.inter_token)}",
        ]
        return escape_controls("  ".join(parts))


def make_glance(
    url: str, facts: Mapping[str, Any], window: Window | None, processes: Sequence[ServerProcess], **more: Any
) -> Glance:
    """
    Args:
        facts: the answer of the live probe, or ``{"error": why}``.
        window: with the newest metrics; ``None`` if there are none now.
        more: fields of the glance, which may replace others.
    """
    state = str(facts.get("status", "failed" if "error" in facts else NO_ANSWER))
    known: dict[str, Any] = {
        "at": time.time(),
        "url": url,
        "model": str(facts.get("model", "")),
        "mode": str(facts.get("mode", "")),
        "state": STATES.get(state, state),
        "up_s": up_s if isinstance(up_s := facts.get("up_s"), int | float) else None,
        "processes": processes,
    }
    if window is not None and window.scrapes:
        known |= read_gauges(window.scrapes[-1])
        if (recent := window.over(RATE_S)) is not None:
            known |= read_rates(recent)
        if (minute := window.over(WINDOW_S)) is not None:
            known |= read_latencies(minute)
    return Glance(**known | more)


def read_gauges(now: Scrape) -> dict[str, Any]:
    names = {
        "running": RUNNING,
        "waiting": WAITING,
        "calls_in_flight": "tgi_calls_in_flight",
        "kv_blocks_used": "tgi_kv_blocks_used",
        "kv_blocks_total": "tgi_kv_blocks_total",
    }
    return {field: round(now.total(name)) for field, name in names.items()}


def read_latencies(change: Change) -> dict[str, Any]:
    return {
        "window_s": change.seconds,
        "queue": to_latency(change.histogram(QUEUE)),
        "first_token": to_latency(change.histogram(TTFT)),
        "inter_token": to_latency(change.histogram(ITL)),
        "step_s": change.histogram(STEP).mean,
        "rows_per_step": change.rows_per_step,
        "prefix_hit_share": change.prefix_hit_share,
        "preemptions": round(change.count("tgi_preemption_count")),
        "failures": change.by_label("tgi_request_failure", "err"),
    }


def to_latency(histogram: Histogram) -> Latency:
    p50, p95, p99 = map(histogram.estimate_percentile, PERCENTILES)
    return Latency(p50, p95, p99, histogram.mean)


def round_all(value: Any) -> Any:
    """Six decimals, which are microseconds, are more precise than any bucket."""
    if isinstance(value, dict):
        return {key: round_all(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [round_all(each) for each in value]
    return round(value, 6) if isinstance(value, float) else value


def or_dash(value: float | None, form: Any) -> str:
    return "-" if value is None else str(form(value))


def show_pair(latency: Latency) -> str:
    return f"p50 {or_dash(latency.p50_s, format_latency)} p95 {or_dash(latency.p95_s, format_latency)}"


def format_share(share: float) -> str:
    return f"{share:.0%}"
