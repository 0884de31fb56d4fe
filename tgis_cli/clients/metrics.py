"""The text of ``/metrics`` as numbers: at one moment, and what changed between two.

docs/metrics.md lists what each metric means. prometheus_client's parser would take 40 ms of CPU time for the whole
text. It takes 5 ms for the lines that are kept here, so reading them once a second disturbs nobody.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Labels = tuple[tuple[str, str], ...]  # sorted
Samples = Mapping[str, Mapping[Labels, float]]  # by name and labels

RUNNING, WAITING = "tgi_batch_current_size", "tgi_queue_size"  # sequences
QUEUE = "tgi_request_queue_duration"
TTFT = "tgi_time_to_first_token_duration"
ITL = "tgi_inter_token_duration"  # between tokens
STEP = "tgi_step_device_duration"
ROWS = "tgi_batch_inference_batch_size"  # of a step
PROMPT_TOKENS = "tgi_batch_next_tokens_sum"  # computed by prefill, not found in the prefix cache
PERCENTILES = (50, 95, 99)  # that can be estimated from buckets
WITH_BUCKETS = tuple(f"{name}_bucket" for name in (QUEUE, TTFT, ITL, STEP))


@dataclass(frozen=True, slots=True)
class Histogram:
    """Amounts counted in buckets, over all time or between two moments."""

    count: float
    sum: float
    bounds: tuple[float, ...]  # upper ones, ascending; the last may be infinite
    cumulative: tuple[float, ...]  # amounts up to each bound

    @property
    def mean(self) -> float | None:
        return self.sum / self.count if self.count > 0 else None

    def estimate_percentile(self, percent: float) -> float | None:
        """Interpolated within its bucket; of the last, endless bucket only the start is known. ``None`` if empty."""
        rank = self.count * percent / 100
        index = bisect_left(self.cumulative, rank)
        if self.count <= 0 or index == len(self.bounds):
            return None
        low, before = (self.bounds[index - 1], self.cumulative[index - 1]) if index else (0.0, 0.0)
        high, number = self.bounds[index], self.cumulative[index] - before
        if high == float("inf") or number <= 0:
            return low
        return low + (high - low) * (rank - before) / number


@dataclass(frozen=True, slots=True)
class Scrape:
    """What ``/metrics`` said at one moment. A missing metric is 0: series with labels appear once they count."""

    at_s: float  # monotonic clock
    samples: Samples

    @property
    def kv_used_share(self) -> float | None:
        total = self.total("tgi_kv_blocks_total")
        return self.total("tgi_kv_blocks_used") / total if total else None

    def total(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that have these labels."""
        wanted = labels.items()
        return sum(value for key, value in self.samples.get(name, {}).items() if wanted <= dict(key).items())

    def by_label(self, name: str, label: str) -> dict[str, float]:
        totals: dict[str, float] = {}
        for key, value in self.samples.get(name, {}).items():
            of = dict(key).get(label, "")
            totals[of] = totals.get(of, 0.0) + value
        return totals

    def cumulative(self, name: str) -> dict[float, float]:
        """A histogram's counts by their upper bounds, over all its series."""
        return {float(bound): count for bound, count in self.by_label(f"{name}_bucket", "le").items()}


@dataclass(frozen=True, slots=True)
class Change:
    """What happened between two scrapes of one run of a server."""

    before: Scrape
    after: Scrape

    @property
    def seconds(self) -> float:
        return self.after.at_s - self.before.at_s

    @property
    def has_restarted(self) -> bool:
        """Whether the server has been started again in between, so that its counters began at 0."""
        duration_s = self.before.total("tgi_startup_seconds")
        return duration_s not in (0, self.after.total("tgi_startup_seconds"))

    @property
    def num_output_tokens(self) -> int:
        """Generated in between, those of unfinished answers included."""
        return round(self.count(f"{TTFT}_count") + self.count(f"{ITL}_count"))

    @property
    def rows_per_step(self) -> float | None:
        steps = self.count(f"{STEP}_count")
        return self.count(f"{ROWS}_sum") / steps if steps else None

    @property
    def prefix_hit_share(self) -> float | None:
        """The share of prompt tokens that were found in the prefix cache."""
        hits = self.count("tgi_prefix_cache_hit_tokens")
        all_tokens = hits + self.count(PROMPT_TOKENS)
        return hits / all_tokens if all_tokens else None

    def count(self, name: str, **labels: str) -> float:
        """By how much a counter has grown."""
        return self.after.total(name, **labels) - self.before.total(name, **labels)

    def by_label(self, name: str, label: str) -> dict[str, int]:
        """By how much a counter has grown, for each value of a label for which it has."""
        before = self.before.by_label(name, label)
        grown = {of: round(value - before.get(of, 0.0)) for of, value in self.after.by_label(name, label).items()}
        return {of: number for of, number in sorted(grown.items()) if number}

    def histogram(self, name: str) -> Histogram:
        """The amounts observed in between. Without buckets in the text there are a count and a mean only."""
        before, after = self.before.cumulative(name), self.after.cumulative(name)
        bounds = tuple(sorted(after))
        return Histogram(
            self.count(f"{name}_count"),
            self.count(f"{name}_sum"),
            bounds,
            tuple(after[bound] - before.get(bound, 0.0) for bound in bounds),
        )


def parse_scrape(text: str, at_s: float) -> Scrape:
    """
    Raises:
        ValueError: the text has another form.
    """
    from prometheus_client.parser import text_string_to_metric_families

    samples: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families("\n".join(keep_lines(text))):
        for sample in family.samples:
            if math.isfinite(sample.value):
                samples.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return Scrape(at_s, samples)


def keep_lines(text: str) -> Iterator[str]:
    """The samples, without buckets that nobody needs."""
    for line in text.split("\n"):
        name = line.partition("{")[0].partition(" ")[0]
        if line[:1] != "#" and (name[-7:] != "_bucket" or name in WITH_BUCKETS):
            yield line
