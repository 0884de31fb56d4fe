"""What the server says about a level of a load: its ``/metrics``, read once a second.

Nothing here raises while a load runs: what cannot be read is missing from the result, and a note says why. The server
renders a text in 10 ms, off its event loop, and serves the same one to all who ask within a fifth of a second.

The server counts the requests of all its clients, so these figures are those of the load only if nobody else sends any.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tgis_cli.clients.metrics import ITL, PERCENTILES, QUEUE, STEP, TTFT, WAITING, Change, Histogram, Scrape
from tgis_server.errors import TgisError

if TYPE_CHECKING:
    from tgis_cli.bench.load.records import Records

EVERY_S = 1.0


class Source(Protocol):
    """``MetricsSource``, or a fake."""

    def scrape(self) -> Scrape:
        """
        Raises:
            TgisError: there is no answer.
        """


@dataclass(slots=True)
class Sample:
    """The engine's state at one moment, and the steps since the sample before."""

    at_s: float  # monotonic clock
    waiting: float  # sequences
    rows_per_step: float | None  # None without steps
    kv_used_share: float | None


@dataclass(slots=True)
class MetricsWatch:
    """Reads ``/metrics`` within the block: at its start, every second, and at its end."""

    source: Source | None  # None: the server is not known, and nothing is read
    every_s: float = EVERY_S
    before: Scrape | None = None
    after: Scrape | None = None  # the last one of the same run of the server
    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # sentences: what could not be read, and why
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> MetricsWatch:
        if self.source is not None:
            self._read()
            self._thread = threading.Thread(target=self._run, name="metrics-watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._read()

    def difference(self) -> dict[str, Any] | None:
        """What the server did during the block, see :func:`difference`; ``None`` if it is not known."""
        if self.before is None or self.after is None or self.after is self.before:
            return None
        shares = [sample.kv_used_share for sample in self.samples if sample.kv_used_share is not None]
        return difference(self.before, self.after) | {
            "kv_used_mean_share": sum(shares) / len(shares) if shares else None,
            "kv_used_max_share": max(shares, default=None),
            "waiting_max": max((sample.waiting for sample in self.samples), default=None),
        }

    def series(self, step_s: float, num_steps: int, started_at: float) -> dict[str, list[float | None]]:
        """The server's state over a level, by bucket of ``step_s``: ``waiting``, ``rows_per_step``, ``kv_used_share``.

        A bucket without a sample has the value of the next sample, which speaks for the second before it.

        Args:
            started_at: when the level started, on the monotonic clock.
        """
        buckets = [self._pick(started_at + index * step_s, step_s) for index in range(num_steps)]
        names = ("waiting", "rows_per_step", "kv_used_share") if self.samples else ()
        return {name: [mean_of(samples, name) for samples in buckets] for name in names}

    def _pick(self, start_at: float, step_s: float) -> list[Sample]:
        inside = [sample for sample in self.samples if start_at <= sample.at_s < start_at + step_s]
        later = [sample for sample in self.samples if 0 <= sample.at_s - start_at < 2 * self.every_s]
        return inside or later[:1]

    def _run(self) -> None:
        while not self._stop.wait(self.every_s):
            self._read()

    def _read(self) -> None:
        assert self.source is not None, "a server to read"
        try:
            scrape = self.source.scrape()
        except TgisError as error:
            self._note(f"The server's metrics are incomplete: {error}")
            return
        previous = self.after
        if previous is not None and Change(previous, scrape).has_restarted:
            self._note("The server restarted: its metrics cover only the time before the restart.")
            return
        self.before, self.after = self.before or scrape, scrape
        if previous is not None:
            self.samples.append(sample_of(Change(previous, scrape)))

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)


def sample_of(change: Change) -> Sample:
    now = change.after
    return Sample(now.at_s, now.total(WAITING), change.rows_per_step, now.kv_used_share)


def mean_of(samples: list[Sample], name: str) -> float | None:
    values = [value for sample in samples if (value := getattr(sample, name)) is not None]
    return sum(values) / len(values) if values else None


def difference(before: Scrape, after: Scrape) -> dict[str, Any]:
    """What the server did between two scrapes of one run. What did not happen has no mean: ``None``.

    Seconds are means per input, and ``_p50_s``, ``_p95_s``, ``_p99_s`` are interpolated in buckets, each 1.5 times as
    wide as the one before:

    - ``queue_s``: from submission to the first step; ``prefill_s``: from there to the first token; ``first_token_s``:
      both; ``decode_s``: from the first token to the last, of the inputs that ended; ``inter_token_s``.
    - ``steps``; ``step_s``: model and sampling; ``rows_per_step``.
    - ``calls``, ``inputs``, ``prompt_tokens``, ``output_tokens``; ``outcomes``: answered inputs by stop reason;
      ``failures``: by the label ``err`` of docs/metrics.md.
    - ``preemptions``; ``prefix_hit_tokens`` and ``prefix_hit_share`` of all prompt tokens; ``kv_blocks``.
    """
    change = Change(before, after)
    queue, first, gaps, steps = (change.histogram(name) for name in (QUEUE, TTFT, ITL, STEP))
    inference = change.histogram("tgi_request_inference_duration")
    prefill_s = minus(first.mean, queue.mean)
    return {
        "seconds": change.seconds,
        "calls": round(change.count("tgi_request_count")),
        "inputs": round(change.count("tgi_request_input_count")),
        "prompt_tokens": round(change.count("tgi_request_input_length_sum")),
        "output_tokens": change.num_output_tokens,
        "outcomes": change.by_label("tgi_request_success", "stop_reason"),
        "failures": change.by_label("tgi_request_failure", "err"),
        **name_percentiles("queue", queue),
        "prefill_s": prefill_s,
        **name_percentiles("first_token", first),
        "decode_s": minus(inference.mean, prefill_s),
        **name_percentiles("inter_token", gaps),
        "steps": round(steps.count),
        **name_percentiles("step", steps),
        "rows_per_step": change.rows_per_step,
        "preemptions": round(change.count("tgi_preemption_count")),
        "prefix_hit_tokens": round(change.count("tgi_prefix_cache_hit_tokens")),
        "prefix_hit_share": change.prefix_hit_share,
        "kv_blocks": round(after.total("tgi_kv_blocks_total")),
    }


def name_percentiles(name: str, histogram: Histogram) -> dict[str, float | None]:
    return {f"{name}_s": histogram.mean} | {
        f"{name}_p{percent}_s": histogram.estimate_percentile(percent) for percent in PERCENTILES
    }


def minus(whole: float | None, part: float | None) -> float | None:
    return None if whole is None or part is None else max(0.0, whole - part)


def first_token_split(server: Mapping[str, Any] | None, records: Records) -> dict[str, float] | None:
    """Where the mean time to the first token went, in seconds, counted from the intended start of each call.

    ``client``: until the generator had handed the request to its socket; ``queue`` and ``prefill``: as the server
    says; ``rest``: the network, gRPC, checking and tokenizing. Their sum is the mean that the generator saw, unless the
    server says more than that, as it may if others use it, too.

    Args:
        server: what :func:`difference` says of the same calls.

    Returns:
        ``None`` if the server says nothing, or no call was streamed.
    """
    import numpy as np

    has_token = np.isfinite(records.first_s)
    if server is None or server["queue_s"] is None or server["prefill_s"] is None or not has_token.any():
        return None
    client = float(np.mean((records.sent_s - records.due_s)[has_token]))
    seen = float(np.mean((records.first_s - records.due_s)[has_token]))
    queue, prefill = server["queue_s"], server["prefill_s"]
    return {"client": client, "queue": queue, "prefill": prefill, "rest": max(0.0, seen - client - queue - prefill)}
