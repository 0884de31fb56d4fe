"""All metrics of the server: one table of their names, kinds, units, labels and help, and the events that update them.

Existing dashboards query these names and labels; each counter is exported under its bare name and with ``_total``. The
front-end owns the only instance and learns of the engine from the statistics of its steps. ``docs/metrics.md`` is
generated from the table.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import mul
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tgis_server.host.processes import read_usage
from tgis_server.wire import shard_pb2 as pb
from tgis_server.wire.messages import StepStats
from tgis_server.words.processes import LAUNCHER

Kind = Literal["counter", "gauge", "histogram"]

NUM_LENGTH_STEPS = 64
# Seconds: 0.15 ms to 146 s. Multiplied step by step as in the original, whose series' names contain the last digits.
DURATION_BUCKETS = tuple(accumulate([0.0001, *[1.5] * 35], mul))[1:]
TOKEN_SUM_BUCKETS = tuple(float(2**k) for k in range(6, 20))
WIDE_TOKEN_BUCKETS = tuple(float(2**k) for k in range(20))


@dataclass(frozen=True, slots=True)
class Spec:
    """One metric as dashboards and the documentation see it."""

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...] = ()

    @property
    def help_with_unit(self) -> str:
        return f"{self.help} ({self.unit})" if self.unit else self.help


SPECS = (
    # Requests
    Spec("tgi_request_count", "counter", "calls", "Generate and GenerateStream calls.", ("kind",)),
    Spec("tgi_request_input_count", "counter", "inputs", "Inputs of these calls."),
    Spec("tgi_request_failure", "counter", "calls", "Failed calls; inputs if cancelled or timed out.", ("err",)),
    Spec("tgi_request_success", "counter", "inputs", "Inputs that were answered.", ("stop_reason", "kind")),
    Spec("tgi_request_duration", "histogram", "seconds", "From call to answer."),
    Spec("tgi_request_validation_duration", "histogram", "seconds", "Checking parameters and tokenizing."),
    Spec("tgi_request_queue_duration", "histogram", "seconds", "From submission to the first step."),
    Spec("tgi_request_inference_duration", "histogram", "seconds", "From the first step to the last token."),
    Spec("tgi_request_mean_time_per_token_duration", "histogram", "seconds", "Inference time per generated token."),
    Spec("tgi_time_to_first_token_duration", "histogram", "seconds", "From submission to the first token."),
    Spec("tgi_inter_token_duration", "histogram", "seconds", "Between tokens of one output."),
    Spec("tgi_request_raw_input_length", "histogram", "tokens", "Inputs before truncation."),
    Spec("tgi_request_input_length", "histogram", "tokens", "Accepted inputs after truncation."),
    Spec("tgi_request_max_new_tokens", "histogram", "tokens", "Limit on the new tokens of each input."),
    Spec("tgi_request_generated_tokens", "histogram", "tokens", "Tokens of each output."),
    Spec("tgi_request_total_tokens", "histogram", "tokens", "Tokens of each input and its output together."),
    # Steps of the engine
    Spec("tgi_batch_inference_count", "counter", "steps", "Steps, by what they computed.", ("method",)),
    Spec("tgi_batch_inference_success", "counter", "steps", "Steps that returned tokens.", ("method",)),
    Spec("tgi_batch_inference_failure", "counter", "steps", "Steps that failed.", ("method", "reason")),
    Spec("tgi_batch_inference_batch_size", "histogram", "sequences", "Sequences per step.", ("method",)),
    Spec("tgi_batch_inference_duration", "histogram", "seconds", "Whole steps.", ("method", "makeup")),
    Spec("tgi_batch_inference_forward_duration", "histogram", "seconds", "Model and sampling.", ("method", "makeup")),
    Spec("tgi_batch_inference_tokproc_duration", "histogram", "seconds", "Tokens to text.", ("method", "makeup")),
    Spec("tgi_batch_next_tokens", "histogram", "tokens", "Prompt tokens computed by a step."),
    Spec("tgi_batch_current_size", "gauge", "sequences", "Running sequences."),
    Spec("tgi_max_batch_size", "gauge", "sequences", "The most sequences that may run: --max-batch-size."),
    Spec("tgi_batch_input_tokens", "gauge", "tokens", "Tokens of running sequences, generated ones included."),
    Spec("tgi_batch_max_remaining_tokens", "gauge", "tokens", "The most tokens a running sequence may still get."),
    Spec("tgi_batch_concatenation_count", "counter", "steps", "Steps in which new sequences joined running ones."),
    Spec("tgi_queue_size", "gauge", "sequences", "Sequences waiting for a slot: new and preempted ones."),
    Spec("tgi_step_scheduler_duration", "histogram", "seconds", "Time spent deciding what a step computes."),
    Spec("tgi_step_device_duration", "histogram", "seconds", "Time a step spends in the model and in sampling."),
    Spec("tgi_kv_blocks_used", "gauge", "blocks", "KV blocks used by running sequences."),
    Spec("tgi_kv_blocks_total", "gauge", "blocks", "KV blocks of the engine."),
    Spec("tgi_prefix_cache_blocks", "gauge", "blocks", "KV blocks in the prefix cache, used ones included."),
    Spec("tgi_prefix_cache_hit_tokens", "counter", "tokens", "Prompt tokens found in the prefix cache."),
    Spec("tgi_preemption_count", "counter", "sequences", "Sequences preempted because KV blocks ran out."),
    # Tokenize
    Spec("tgi_tokenize_request_count", "counter", "calls", "Tokenize calls."),
    Spec("tgi_tokenize_request_input_count", "counter", "inputs", "Texts of these calls."),
    Spec("tgi_tokenize_request_tokens", "histogram", "tokens", "Tokens of all texts of a call."),
    Spec("tgi_tokenize_request_duration", "histogram", "seconds", "Tokenize calls that succeeded."),
    # The server
    Spec(
        "tgi_abort_count",
        "counter",
        "",
        "Calls and connections ended to protect the server from their clients.",
        ("reason",),
    ),
    Spec("tgi_calls_in_flight", "gauge", "calls", "Calls of any kind that have no answer yet."),
    Spec("tgi_permits_held", "gauge", "inputs", "Inputs in progress."),
    Spec("tgi_max_concurrent_requests", "gauge", "inputs", "The most inputs that may be in progress."),
    Spec("tgi_bytes_held", "gauge", "bytes", "Requests in progress and unary answers being sent."),
    Spec("tgi_calls_unread", "gauge", "calls", "Calls whose requests are not received until memory is free."),
    Spec("tgi_ready", "gauge", "", "1 while the server is ready, otherwise 0."),
    Spec("tgi_draining", "gauge", "", "1 while the server drains, otherwise 0."),
    Spec("tgi_startup_seconds", "gauge", "seconds", "From the start of the launcher until requests were served."),
    Spec("tgi_startup_phase_seconds", "gauge", "seconds", "Time of each startup phase.", ("process", "phase")),
    Spec("tgi_startup_phase_bytes", "gauge", "bytes", "Bytes read in each startup phase.", ("process", "phase")),
    Spec(
        "tgi_tls_certificate_expiry_timestamp_seconds",
        "gauge",
        "seconds",
        "When the certificate in use expires, counted from 1970; only with TLS.",
        ("path",),
    ),
    Spec(
        "tgi_server_info",
        "gauge",
        "",
        "Always 1; mode marks rehearsals and the demo model.",
        ("model", "mode", "version"),
    ),
    # Every process of the server: launcher, front-end and shards
    Spec(
        "tgi_process_resident_memory_bytes",
        "gauge",
        "bytes",
        "Memory of each process; shared pages count in each.",
        ("process",),
    ),
    Spec("tgi_process_cpu_seconds", "counter", "seconds", "CPU time of each process.", ("process",)),
    Spec(
        "tgi_process_start_time_seconds", "gauge", "seconds", "Start of each process, counted from 1970.", ("process",)
    ),
)


class EqualHistogram(Histogram):
    """A histogram that can observe many equal amounts at once."""

    def observe_equal(self, amount: float, number: int) -> None:
        self._sum.inc(amount * number)
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(number)


Value = Counter | Gauge | EqualHistogram


class Metrics:
    """The metrics of one server. Methods are named after events; all are called on the event loop."""

    def __init__(self, *, max_sequence_length: int, max_new_tokens: int, max_batch_size: int) -> None:
        """The limits determine the ranges of the length histograms."""
        self._max_batch_size = max_batch_size
        self._values: dict[str, Value] = {}
        self._ranges = (max_sequence_length, max_new_tokens)
        self._get_pids: Callable[[], Mapping[str, int]] = dict
        self._starts: dict[str, float] = {}  # of processes
        self._cpu_s: dict[str, float] = {}  # of processes, as counted so far
        for spec in SPECS:
            self._values[spec.name] = self._make(spec)
        self._gauge("tgi_max_batch_size").set(max_batch_size)

    def use_limits(self, *, max_sequence_length: int, max_new_tokens: int, num_blocks: int) -> None:
        """Adopt the limits of the loaded engine. Lengths observed before are dropped."""
        self._gauge("tgi_kv_blocks_total").set(num_blocks)
        self._ranges = (max_sequence_length, max_new_tokens)
        for spec in SPECS:
            if spec.unit == "tokens" and spec.kind == "histogram":
                self._values[spec.name] = self._make(spec)

    def take_snapshot(self) -> Callable[[], bytes]:
        """Read all gauges, on the event loop. The returned function renders the Prometheus text in any thread."""
        self._observe_processes()
        gauges = {spec.name: list(self._values[spec.name].collect()) for spec in SPECS if spec.kind == "gauge"}

        def render() -> bytes:
            registry = CollectorRegistry(auto_describe=False)
            registry.register(_Exposition(self._values, gauges))
            return generate_latest(registry)

        return render

    def to_text(self) -> bytes:
        return self.take_snapshot()()

    # Calls

    def name_server(self, *, model: str, mode: str, version: str) -> None:
        self._gauge("tgi_server_info", model=model, mode=mode, version=version).set(1)

    def read_processes(self, get_pids: Callable[[], Mapping[str, int]]) -> None:
        """Register the function that returns the process id of each process by name. Every scrape calls it."""
        self._get_pids = get_pids

    def read_state(
        self,
        *,
        num_calls: Callable[[], int],
        num_permits: Callable[[], int],
        num_bytes_held: Callable[[], int],
        num_unread: Callable[[], int],
        is_ready: Callable[[], bool],
        is_draining: Callable[[], bool],
        max_permits: int,
    ) -> None:
        """Register the functions that every scrape calls."""
        self._gauge("tgi_calls_in_flight").set_function(num_calls)
        self._gauge("tgi_permits_held").set_function(num_permits)
        self._gauge("tgi_bytes_held").set_function(num_bytes_held)
        self._gauge("tgi_calls_unread").set_function(num_unread)
        self._gauge("tgi_ready").set_function(is_ready)
        self._gauge("tgi_draining").set_function(is_draining)
        self._gauge("tgi_max_concurrent_requests").set(max_permits)

    def read_certificate(self, path: str, get_expiry: Callable[[], float]) -> None:
        """Register the function that returns the expiry of the TLS certificate."""
        self._gauge("tgi_tls_certificate_expiry_timestamp_seconds", path=path).set_function(get_expiry)

    def observe_start(self, launcher: Sequence[tuple[str, float]], children: Mapping[str, Sequence[pb.Phase]]) -> None:
        """Record a finished startup.

        Each phase lasts until the next one begins; the launcher's last phase lasts until its children start.
        """
        forked_at = min(phases[0].started_at_s for phases in children.values())
        serving_at = max(phases[-1].started_at_s for phases in children.values())
        own = [pb.Phase(name=name, started_at_s=started_at) for name, started_at in (*launcher, ("", forked_at))]
        self._gauge("tgi_startup_seconds").set(serving_at - own[0].started_at_s)
        for process, phases in {LAUNCHER: own, **children}.items():
            for phase, following in pairwise(phases):
                labels = {"process": process, "phase": phase.name}
                duration_s = following.started_at_s - phase.started_at_s
                self._gauge("tgi_startup_phase_seconds", **labels).set(duration_s)
                if phase.bytes:
                    self._gauge("tgi_startup_phase_bytes", **labels).set(phase.bytes)

    def count_call(self, kind: str, num_inputs: int) -> None:
        self._counter("tgi_request_count", kind=kind).inc()
        self._counter("tgi_request_input_count").inc(num_inputs)

    def count_failure(self, err: str, num: int = 1) -> None:
        if num:  # a count of 0 would create the labelled series
            self._counter("tgi_request_failure", err=err).inc(num)

    def count_abort(self, reason: str) -> None:
        """Count a client that was too slow or too greedy, or that flooded the server."""
        self._counter("tgi_abort_count", reason=reason).inc()

    def observe_raw_input(self, num_tokens: int) -> None:
        self._histogram("tgi_request_raw_input_length").observe(num_tokens)

    def observe_validated(self, input_lengths: Iterable[int], max_new_tokens: int, duration_s: float) -> None:
        """Record a call that has passed validation as a whole."""
        self._histogram("tgi_request_validation_duration").observe(duration_s)
        for length in input_lengths:
            self._histogram("tgi_request_input_length").observe(length)
            self._histogram("tgi_request_max_new_tokens").observe(max_new_tokens)

    def observe_answer(
        self,
        *,
        kind: str,
        stop_reason: str,
        num_input: int,
        num_generated: int,
        total_s: float,
        inference_s: float | None,
    ) -> None:
        """Record an answered input. ``inference_s`` is None if the input never ran."""
        self._counter("tgi_request_success", stop_reason=stop_reason, kind=kind).inc()
        self._histogram("tgi_request_duration").observe(total_s)
        self._histogram("tgi_request_generated_tokens").observe(num_generated)
        self._histogram("tgi_request_total_tokens").observe(num_input + num_generated)
        if inference_s is not None:
            self.observe_inference(inference_s, num_generated)

    def observe_inference(self, duration_s: float, num_generated: int) -> None:
        """Record an input that ran, whether it was answered or failed."""
        self._histogram("tgi_request_inference_duration").observe(duration_s)
        mean_s = duration_s / num_generated if num_generated else 0.0
        self._histogram("tgi_request_mean_time_per_token_duration").observe(mean_s)

    def observe_queued(self, waited_s: float) -> None:
        self._histogram("tgi_request_queue_duration").observe(waited_s)

    def observe_first_token(self, waited_s: float) -> None:
        """``waited_s`` is the time since submission."""
        self._histogram("tgi_time_to_first_token_duration").observe(waited_s)

    def observe_further_tokens(self, gap_s: float, number: int) -> None:
        """``number`` outputs got a token, each ``gap_s`` after its previous one."""
        self._histogram("tgi_inter_token_duration").observe_equal(gap_s, number)

    def count_tokenize(self, num_inputs: int) -> None:
        self._counter("tgi_tokenize_request_count").inc()
        self._counter("tgi_tokenize_request_input_count").inc(num_inputs)

    def observe_tokenized(self, num_tokens: int, duration_s: float) -> None:
        self._histogram("tgi_tokenize_request_tokens").observe(num_tokens)
        self._histogram("tgi_tokenize_request_duration").observe(duration_s)

    # Steps

    def observe_step(self, stats: StepStats, *, processing_s: float) -> None:
        """Record an engine step; a mixed step is counted under both methods, each with its own rows."""
        for method, num_rows in (("prefill", stats.prefill_rows), ("next_token", stats.decode_rows)):
            if num_rows:
                self._observe_part(method, num_rows, stats, processing_s)
        if stats.prefill_tokens:
            self._histogram("tgi_batch_next_tokens").observe(stats.prefill_tokens)
        if stats.num_started and stats.decode_rows:
            self._counter("tgi_batch_concatenation_count").inc()
        if (stats.prefill_rows or stats.decode_rows) and not stats.out_of_memory:
            self._histogram("tgi_step_scheduler_duration").observe(stats.plan_s)
            self._histogram("tgi_step_device_duration").observe(stats.forward_s)
        self._gauge("tgi_batch_current_size").set(stats.num_running)
        self._gauge("tgi_batch_input_tokens").set(stats.running_tokens)
        self._gauge("tgi_batch_max_remaining_tokens").set(stats.remaining_tokens)
        self._gauge("tgi_queue_size").set(stats.num_waiting)
        self._gauge("tgi_kv_blocks_used").set(stats.used_blocks)
        self._gauge("tgi_prefix_cache_blocks").set(stats.cached_blocks)
        self._counter("tgi_prefix_cache_hit_tokens").inc(stats.cached_tokens)
        self._counter("tgi_preemption_count").inc(stats.preemptions)

    def count_lost_connection(self) -> None:
        """The engine was lost in the middle of a step of unknown kind."""
        self._counter("tgi_batch_inference_count", method="next_token").inc()
        self._counter("tgi_batch_inference_failure", method="next_token", reason="connection").inc()

    def _observe_part(self, method: str, num_rows: int, stats: StepStats, processing_s: float) -> None:
        self._counter("tgi_batch_inference_count", method=method).inc()
        self._histogram("tgi_batch_inference_batch_size", method=method).observe(num_rows)
        if stats.out_of_memory:
            self._counter("tgi_batch_inference_failure", method=method, reason="oom").inc()
            return
        self._counter("tgi_batch_inference_success", method=method).inc()
        for name, duration_s in (
            ("tgi_batch_inference_duration", stats.step_s),
            ("tgi_batch_inference_forward_duration", stats.forward_s),
            ("tgi_batch_inference_tokproc_duration", processing_s),
        ):
            self._histogram(name, method=method, makeup="single_only").observe(duration_s)

    def _observe_processes(self) -> None:
        for process, pid in self._get_pids().items():
            if usage := read_usage(pid):
                self._gauge("tgi_process_resident_memory_bytes", process=process).set(usage.resident_bytes)
                # Computed from the wall clock: when that is adjusted, it must not look as if the process had restarted.
                started_at_s = self._starts.setdefault(process, usage.started_at_s)
                self._gauge("tgi_process_start_time_seconds", process=process).set(started_at_s)
                used_s = usage.cpu_s - self._cpu_s.get(process, 0.0)  # negative if another process has got the pid
                self._counter("tgi_process_cpu_seconds", process=process).inc(max(used_s, 0.0))
                self._cpu_s[process] = usage.cpu_s

    # Values by name

    def _make(self, spec: Spec) -> Value:
        if spec.kind == "counter":
            return Counter(spec.name, spec.help_with_unit, spec.labels, registry=None)
        if spec.kind == "gauge":
            return Gauge(spec.name, spec.help_with_unit, spec.labels, registry=None)
        return EqualHistogram(
            spec.name, spec.help_with_unit, spec.labels, registry=None, buckets=self._buckets(spec.name)
        )

    def _buckets(self, name: str) -> tuple[float, ...]:
        max_sequence_length, max_new_tokens = self._ranges
        if name.endswith("duration"):
            return DURATION_BUCKETS
        if name in ("tgi_request_generated_tokens", "tgi_request_max_new_tokens"):
            return equal_steps(max_new_tokens)
        if name in ("tgi_request_input_length", "tgi_request_total_tokens"):
            return equal_steps(max_sequence_length)
        if name == "tgi_batch_inference_batch_size":
            return tuple(float(size) for size in range(1, self._max_batch_size + 1))
        return TOKEN_SUM_BUCKETS if name == "tgi_tokenize_request_tokens" else WIDE_TOKEN_BUCKETS

    def _counter(self, name: str, **labels: str) -> Counter:
        value = self._values[name]
        assert isinstance(value, Counter), name
        return value.labels(**labels) if labels else value

    def _gauge(self, name: str, **labels: str) -> Gauge:
        value = self._values[name]
        assert isinstance(value, Gauge), name
        return value.labels(**labels) if labels else value

    def _histogram(self, name: str, **labels: str) -> EqualHistogram:
        value = self._values[name]
        assert isinstance(value, EqualHistogram), name
        return value.labels(**labels) if labels else value


@dataclass(frozen=True, slots=True, eq=False)
class _Exposition(Collector):
    """Exports each value without its creation time, and counters under both names."""

    values: Mapping[str, Value]
    gauges: Mapping[str, Sequence[Metric]]  # a snapshot

    def collect(self) -> Iterable[Metric]:
        for spec in SPECS:
            for family in self.gauges.get(spec.name) or self.values[spec.name].collect():
                family.samples = [s for s in family.samples if not s.name.endswith("_created")]
                yield family
                if spec.kind == "counter":
                    # Untyped: client libraries would append ``_total`` to a counter's name.
                    bare = Metric(spec.name, spec.help_with_unit, "unknown")
                    bare.samples = [sample._replace(name=spec.name) for sample in family.samples]
                    yield bare


def equal_steps(highest: int) -> tuple[float, ...]:
    return tuple(highest * step / NUM_LENGTH_STEPS for step in range(1, NUM_LENGTH_STEPS + 1))
