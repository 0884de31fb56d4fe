"""What calls do to the metrics: each row is a value before and after a known call."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from contract_api import Api, asked_of, exactly, row
from contract_metrics import Samples, fetch_text
from contract_servers import ONE_SERVER, VARIANTS
from tgis_server.wire import generation_pb2 as pb

ASKED_OF = ONE_SERVER

TEXTS = ("One sunny day", "Hello", "Anna found a red ball")


@dataclass(frozen=True)
class Change:
    """What a call changed, and the known numbers of that call."""

    delta: Samples
    facts: dict[str, float]

    def get(self, name: str, labels: dict[str, str]) -> float:
        return self.delta.get(name, **labels)


def single(api: Api) -> None:
    api.generate(TEXTS[0], **exactly(3))


def batch(api: Api) -> None:
    api.generate(*TEXTS, **exactly(2))


def empty(api: Api) -> None:
    api.generate()


def stream(api: Api) -> None:
    api.stream(TEXTS[0], **exactly(3))


def truncated(api: Api) -> None:
    api.generate(TEXTS[0], truncate_input_tokens=2, **exactly(1))


def default(api: Api) -> None:
    api.generate(TEXTS[0], length_penalty=(0, 10.0))


def ended(api: Api) -> None:
    api.generate(TEXTS[0], length_penalty=(0, 10.0), min_new_tokens=8, max_new_tokens=9)


def stopped(api: Api) -> None:
    [answer] = api.generate(TEXTS[0], max_new_tokens=3, generated_tokens=True)
    api.generate(TEXTS[0], max_new_tokens=3, stop_sequences=[answer.text[:1]])


def refused(api: Api) -> None:
    api.refusal(*TEXTS, max_new_tokens=2**32 - 1)


def refused_stream(api: Api) -> None:
    api.refusal(TEXTS[0], kind="stream", temperature=-1.0)


def refused_adapter(api: Api) -> None:
    api.refusal(TEXTS[0], adapter_id="nowhere")


def too_long(api: Api) -> None:
    api.refusal(TEXTS[0], api.text_of(api.info.max_sequence_length), **exactly(1))


def missing(api: Api) -> None:
    with suppress(grpc.RpcError):
        list(api.stub.GenerateStream(pb.SingleGenerationRequest()))


def overloaded(api: Api) -> None:
    api.refusal(*[""] * 50_000, max_new_tokens=2**32 - 1)


def cancelled(api: Api) -> None:
    before = api.metrics().get("tgi_request_failure", err="cancelled")
    with api.running(TEXTS[0], **exactly(min(500, api.info.max_new_tokens - 50))) as frames:
        next(frames), next(frames)
    api.wait_for_metric("tgi_request_failure", before + 1, err="cancelled")


def joined(api: Api) -> None:
    with api.running(TEXTS[0], **exactly(min(500, api.info.max_new_tokens - 50))) as frames:
        next(frames), next(frames)
        api.generate(TEXTS[1], **exactly(1))


def tokenized(api: Api) -> None:
    api.tokenize(*TEXTS)


def tokenize_truncated(api: Api) -> None:
    api.tokenize(*TEXTS, truncate_input_tokens=2)


def tokenize_refused(api: Api) -> None:
    with suppress(grpc.RpcError):
        api.tokenize(*TEXTS, adapter_id="nowhere")


def asked_for_info(api: Api) -> None:
    api.stub.ModelInfo(pb.ModelInfoRequest())


CALLS = {
    call.__name__: call
    for call in (
        *(single, batch, empty, stream, truncated, default, ended, stopped),
        *(refused, refused_stream, refused_adapter, too_long, missing, overloaded, cancelled, joined),
        *(tokenized, tokenize_truncated, tokenize_refused, asked_for_info),
    )
}


@pytest.fixture(scope="module")
def change(api: Api) -> Callable[[str], Change]:
    """Make one of ``CALLS``, once, and see what it changed."""
    known: dict[str, Change] = {}
    facts: dict[str, float] = {}

    def get(name: str) -> Change:
        if not facts:
            counts = [response.token_count for response in api.tokenize(*TEXTS)]
            facts.update(first=counts[0], all=sum(counts), too_long=api.info.max_sequence_length)
        if name not in known:
            before = api.settled_metrics()
            CALLS[name](api)
            known[name] = Change(api.settled_metrics().since(before), facts)
        return known[name]

    return get


SINGLE, BATCH, STREAM = {"kind": "single"}, {"kind": "batch"}, {"kind": "stream"}
PREFILL, NEXT = {"method": "prefill"}, {"method": "next_token"}
ONLY = {"makeup": "single_only"}


def success(reason: str, kind: str) -> dict[str, str]:
    return {"stop_reason": reason, "kind": kind}


# call: [(metric, labels, expected growth: a number, or the name of a fact)]
ROWS: dict[str, list[tuple[str, dict[str, str], Any]]] = {
    "single": [
        ("tgi_request_count", SINGLE, 1),
        ("tgi_request_count", BATCH, 0),
        ("tgi_request_input_count", {}, 1),
        ("tgi_request_success", success("MAX_TOKENS", "single"), 1),
        ("tgi_request_duration_count", {}, 1),
        ("tgi_request_generated_tokens_count", {}, 1),
        ("tgi_request_generated_tokens_sum", {}, 3),
        ("tgi_request_total_tokens_count", {}, 1),
        ("tgi_request_total_tokens_sum", {}, lambda facts: facts["first"] + 3),
        ("tgi_request_inference_duration_count", {}, 1),
        ("tgi_request_mean_time_per_token_duration_count", {}, 1),
        ("tgi_request_validation_duration_count", {}, 1),
        ("tgi_request_raw_input_length_count", {}, 1),
        ("tgi_request_raw_input_length_sum", {}, "first"),
        ("tgi_request_input_length_sum", {}, "first"),
        ("tgi_request_max_new_tokens_sum", {}, 3),
        ("tgi_request_queue_duration_count", {}, 1),
        ("tgi_batch_inference_count", PREFILL, 1),
        ("tgi_batch_inference_count", NEXT, 2),
        ("tgi_batch_inference_success", PREFILL, 1),
        ("tgi_batch_inference_success", NEXT, 2),
        ("tgi_batch_inference_batch_size_sum", PREFILL, 1),
        ("tgi_batch_inference_batch_size_sum", NEXT, 2),
        ("tgi_batch_inference_duration_count", {**PREFILL, **ONLY}, 1),
        ("tgi_batch_inference_duration_count", {**NEXT, **ONLY}, 2),
        ("tgi_batch_inference_forward_duration_count", {**PREFILL, **ONLY}, 1),
        ("tgi_batch_inference_forward_duration_count", {**NEXT, **ONLY}, 2),
        ("tgi_batch_inference_tokproc_duration_count", {**PREFILL, **ONLY}, 1),
        ("tgi_batch_inference_tokproc_duration_count", {**NEXT, **ONLY}, 2),
        ("tgi_batch_next_tokens_count", {}, 1),
        ("tgi_batch_next_tokens_sum", {}, "first"),
        ("tgi_batch_concatenation_count", {}, 0),
    ],
    "batch": [
        ("tgi_request_count", BATCH, 1),
        ("tgi_request_count", SINGLE, 0),
        ("tgi_request_input_count", {}, 3),
        ("tgi_request_success", success("MAX_TOKENS", "batch"), 3),
        ("tgi_request_duration_count", {}, 3),
        ("tgi_request_generated_tokens_sum", {}, 6),
        ("tgi_request_total_tokens_sum", {}, lambda facts: facts["all"] + 6),
        ("tgi_request_validation_duration_count", {}, 1),
        ("tgi_request_raw_input_length_count", {}, 3),
        ("tgi_request_input_length_count", {}, 3),
        ("tgi_request_input_length_sum", {}, "all"),
        ("tgi_request_max_new_tokens_count", {}, 3),
        ("tgi_request_max_new_tokens_sum", {}, 6),
        ("tgi_request_queue_duration_count", {}, 3),
        ("tgi_batch_inference_batch_size_sum", PREFILL, 3),
        ("tgi_batch_inference_batch_size_sum", NEXT, 3),
        ("tgi_batch_next_tokens_sum", {}, "all"),
    ],
    "empty": [
        ("tgi_request_count", BATCH, 1),
        ("tgi_request_input_count", {}, 0),
        ("tgi_request_validation_duration_count", {}, 0),
        ("tgi_request_duration_count", {}, 0),
    ],
    "stream": [
        ("tgi_request_count", STREAM, 1),
        ("tgi_request_input_count", {}, 1),
        ("tgi_request_success", success("MAX_TOKENS", "stream"), 1),
        ("tgi_request_duration_count", {}, 1),
        ("tgi_request_generated_tokens_sum", {}, 3),
        ("tgi_request_validation_duration_count", {}, 1),
        ("tgi_request_input_length_sum", {}, "first"),
        ("tgi_request_queue_duration_count", {}, 1),
    ],
    "truncated": [
        ("tgi_request_raw_input_length_sum", {}, "first"),
        ("tgi_request_input_length_sum", {}, 2),
        ("tgi_request_total_tokens_sum", {}, 3),
        ("tgi_batch_next_tokens_sum", {}, 2),
    ],
    "default": [("tgi_request_max_new_tokens_sum", {}, 20)],
    "ended": [
        ("tgi_request_success", success("EOS_TOKEN", "single"), 1),
        ("tgi_request_success", success("MAX_TOKENS", "single"), 0),
        ("tgi_request_generated_tokens_sum", {}, 9),
        ("tgi_request_max_new_tokens_sum", {}, 9),
    ],
    "stopped": [
        ("tgi_request_success", success("STOP_SEQUENCE", "single"), 1),
        ("tgi_request_failure", {"err": "cancelled"}, 0),
    ],
    "refused": [
        ("tgi_request_count", BATCH, 1),
        ("tgi_request_input_count", {}, 3),
        ("tgi_request_failure", {"err": "validation"}, 1),
        ("tgi_request_raw_input_length_count", {}, 0),
        ("tgi_request_validation_duration_count", {}, 0),
        ("tgi_request_duration_count", {}, 0),
        ("tgi_batch_inference_count", PREFILL, 0),
    ],
    "refused_stream": [
        ("tgi_request_count", STREAM, 1),
        ("tgi_request_failure", {"err": "validation"}, 1),
    ],
    "refused_adapter": [("tgi_request_failure", {"err": "validation"}, 1)],
    "too_long": [
        ("tgi_request_failure", {"err": "validation"}, 1),
        ("tgi_request_raw_input_length_count", {}, 2),
        ("tgi_request_raw_input_length_sum", {}, lambda facts: facts["first"] + facts["too_long"]),
        ("tgi_request_input_length_count", {}, 0),
        ("tgi_request_max_new_tokens_count", {}, 0),
        ("tgi_request_validation_duration_count", {}, 0),
        ("tgi_batch_inference_count", PREFILL, 0),
    ],
    "missing": [
        ("tgi_request_count", STREAM, 1),
        ("tgi_request_input_count", {}, 1),
        ("tgi_request_failure", {"err": "validation"}, 0),
    ],
    "overloaded": [
        ("tgi_request_count", BATCH, 1),
        ("tgi_request_input_count", {}, 50_000),
        ("tgi_request_failure", {"err": "conc_limit"}, 1),
        ("tgi_request_failure", {"err": "validation"}, 0),
    ],
    "cancelled": [
        ("tgi_request_count", STREAM, 1),
        ("tgi_request_failure", {"err": "cancelled"}, 1),
        ("tgi_request_failure", {"err": "generate"}, 0),
        ("tgi_request_duration_count", {}, 0),
    ],
    "joined": [("tgi_batch_concatenation_count", {}, 1)],
    "tokenized": [
        ("tgi_tokenize_request_count", {}, 1),
        ("tgi_tokenize_request_input_count", {}, 3),
        ("tgi_tokenize_request_tokens_count", {}, 1),
        ("tgi_tokenize_request_tokens_sum", {}, "all"),
        ("tgi_tokenize_request_duration_count", {}, 1),
        ("tgi_request_count", BATCH, 0),
        ("tgi_request_input_count", {}, 0),
    ],
    "tokenize_truncated": [("tgi_tokenize_request_tokens_sum", {}, 6)],
    "tokenize_refused": [
        ("tgi_tokenize_request_count", {}, 1),
        ("tgi_tokenize_request_input_count", {}, 3),
        ("tgi_tokenize_request_tokens_count", {}, 0),
        ("tgi_tokenize_request_duration_count", {}, 0),
        ("tgi_request_failure", {"err": "validation"}, 0),
    ],
    "asked_for_info": [("tgi_request_count", SINGLE, 0)],
}


def by_row() -> list[Any]:
    cases = []
    for call, rows in ROWS.items():
        for name, labels, expected in rows:
            shown = "-".join(["metrics", name, *labels.values(), call])
            cases.append(pytest.param(call, name, labels, expected, id=shown))
    return cases


@pytest.mark.parametrize(("call", "name", "labels", "expected"), by_row())
def test_a_call_changes_each_metric_by_the_expected_amount(
    change: Callable[[str], Change], call: str, name: str, labels: dict[str, str], expected: Any
) -> None:
    seen = change(call)

    known = {str: lambda: seen.facts[expected], int: lambda: expected}
    assert seen.get(name, labels) == known.get(type(expected), lambda: expected(seen.facts))()


# Values that depend on time


def total(seen: Change, name: str, **labels: str) -> float:
    return seen.delta.get(f"{name}_sum", **labels)


@row("metrics-durations-fit-together")
def test_a_request_takes_longer_than_its_parts(change: Callable[[str], Change]) -> None:
    seen = change("single")

    parts = ["tgi_request_validation_duration", "tgi_request_queue_duration", "tgi_request_inference_duration"]
    assert 0 < sum(total(seen, part) for part in parts) <= total(seen, "tgi_request_duration") * 1.01


@row("metrics-tgi_request_mean_time_per_token_duration")
def test_the_mean_time_per_token_is_the_inference_time_divided_by_the_tokens(change: Callable[[str], Change]) -> None:
    seen = change("single")

    mean = total(seen, "tgi_request_mean_time_per_token_duration")
    assert mean == pytest.approx(total(seen, "tgi_request_inference_duration") / 3)


@row("metrics-tgi_batch_inference_forward_duration-is-a-part")
def test_the_forward_pass_is_a_part_of_the_step(change: Callable[[str], Change]) -> None:
    seen = change("single")

    forward = total(seen, "tgi_batch_inference_forward_duration", **PREFILL, **ONLY)
    assert 0 < forward <= total(seen, "tgi_batch_inference_duration", **PREFILL, **ONLY)


@row("metrics-tgi_request_generated_tokens-bucket")
def test_an_observation_lands_in_its_bucket(api: Api, change: Callable[[str], Change]) -> None:
    seen = change("single").delta
    bounds = api.metrics().buckets("tgi_request_generated_tokens")

    grown = [bound for bound in bounds if seen.get("tgi_request_generated_tokens_bucket", le=as_label(seen, bound))]

    assert grown == [bound for bound in bounds if bound >= 3]


def as_label(samples: Samples, bound: float) -> str:
    """A bound as the label spells it."""
    labels = {series["le"] for series in samples.labels_of("tgi_request_generated_tokens_bucket")}
    return next(label for label in labels if float(label) == bound)


# Names and kinds

COUNTERS = (
    *("tgi_request_count", "tgi_request_input_count", "tgi_request_failure", "tgi_request_success"),
    *("tgi_batch_inference_count", "tgi_batch_inference_success", "tgi_batch_concatenation_count"),
    *("tgi_tokenize_request_count", "tgi_tokenize_request_input_count"),
)
GAUGES = ("tgi_batch_current_size", "tgi_batch_input_tokens", "tgi_batch_max_remaining_tokens", "tgi_queue_size")
DURATIONS = (
    *("tgi_request_duration", "tgi_request_validation_duration", "tgi_request_queue_duration"),
    *("tgi_request_inference_duration", "tgi_request_mean_time_per_token_duration"),
    *("tgi_batch_inference_duration", "tgi_batch_inference_forward_duration"),
    *("tgi_batch_inference_tokproc_duration", "tgi_tokenize_request_duration"),
)
SIZES = (
    *("tgi_request_raw_input_length", "tgi_request_input_length", "tgi_request_max_new_tokens"),
    *("tgi_request_generated_tokens", "tgi_request_total_tokens", "tgi_tokenize_request_tokens"),
    *("tgi_batch_inference_batch_size", "tgi_batch_next_tokens"),
)


@pytest.fixture(scope="module")
def used(api: Api, change: Callable[[str], Change]) -> tuple[Samples, str]:
    """Metrics after calls of every kind: values and text."""
    for name in CALLS:
        change(name)
    return api.settled_metrics(), fetch_text(api.http or "")


@pytest.mark.parametrize("name", [pytest.param(name, id=f"metrics-both-names-{name}") for name in COUNTERS])
def test_a_counter_has_its_bare_name_and_one_with_total(used: tuple[Samples, str], name: str) -> None:
    samples, _ = used

    bare = {labels: value for (known, labels), value in samples.values.items() if known == name}
    with_total = {labels: value for (known, labels), value in samples.values.items() if known == f"{name}_total"}
    assert bare == with_total != {}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(pytest.param(name, "gauge", id=f"metrics-kind-{name}") for name in GAUGES),
        *(pytest.param(name, "histogram", id=f"metrics-kind-{name}") for name in (*DURATIONS, *SIZES)),
    ],
)
def test_a_metric_has_the_expected_kind(used: tuple[Samples, str], name: str, kind: str) -> None:
    _, text = used

    assert re.findall(rf"^# TYPE {name} (\w+)$", text, re.MULTILINE) == [kind]


@row("metrics-labels")
def test_labels_have_the_values_of_the_contract(used: tuple[Samples, str]) -> None:
    samples, _ = used

    values: dict[str, set[str]] = {}
    for name, labels in samples.values:
        if name.startswith(("tgi_request", "tgi_batch")):
            for label, value in labels:
                values.setdefault(label, set()).add(value)
    assert values["kind"] == {"single", "batch", "stream"}
    assert values["method"] == {"prefill", "next_token"}
    assert values["makeup"] == {"single_only"}
    assert values["err"] <= {"conc_limit", "validation", "queue_full", "generate", "unknown", "cancelled", "timeout"}
    assert values["stop_reason"] <= set(pb.StopReason.keys()) - {"NOT_FINISHED", "CANCELLED", "ERROR"}


@row("metrics-no-creation-times")
def test_there_are_no_series_for_creation_times(used: tuple[Samples, str]) -> None:
    samples, _ = used

    assert [name for name, _ in samples.values if name.endswith("_created")] == []


# Buckets


def equal_steps(highest: float) -> list[float]:
    return [pytest.approx(highest * step / 64) for step in range(1, 65)]


@pytest.mark.parametrize("name", [pytest.param(name, id=f"metrics-buckets-{name}") for name in DURATIONS])
def test_durations_have_buckets_that_grow_by_half(used: tuple[Samples, str], name: str) -> None:
    samples, _ = used

    assert samples.buckets(name) == [pytest.approx(0.0001 * 1.5**k, rel=1e-3) for k in range(1, 36)]


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        pytest.param(name, limit, id=f"metrics-buckets-{name}")
        for name, limit in {
            "tgi_request_input_length": "max_sequence_length",
            "tgi_request_total_tokens": "max_sequence_length",
            "tgi_request_generated_tokens": "max_new_tokens",
            "tgi_request_max_new_tokens": "max_new_tokens",
        }.items()
    ],
)
def test_lengths_have_64_equal_buckets_up_to_the_limit(
    api: Api, used: tuple[Samples, str], name: str, limit: str
) -> None:
    samples, _ = used

    assert samples.buckets(name) == equal_steps(getattr(api.info, limit))


@row("metrics-buckets-tgi_tokenize_request_tokens")
def test_tokenized_tokens_have_buckets_at_powers_of_two(used: tuple[Samples, str]) -> None:
    samples, _ = used

    assert samples.buckets("tgi_tokenize_request_tokens") == [2.0**k for k in range(6, 20)]


@row("metrics-buckets-tgi_batch_inference_batch_size")
def test_each_batch_size_has_a_bucket(used: tuple[Samples, str]) -> None:
    samples, _ = used

    bounds = samples.buckets("tgi_batch_inference_batch_size", **PREFILL)
    assert bounds == [float(size) for size in range(1, len(bounds) + 1)]


@row("metrics-buckets-tgi_batch_inference_batch_size-highest")
def test_the_highest_bucket_of_batch_sizes_is_the_largest_batch(slow: Api) -> None:
    slow.generate("a", max_new_tokens=1)

    assert slow.metrics().buckets("tgi_batch_inference_batch_size", **PREFILL) == [1.0]


# Gauges


@row("metrics-gauges-idle")
def test_an_idle_server_has_no_running_and_no_waiting_sequences(api: Api) -> None:
    api.settled_metrics()
    api.generate(TEXTS[0], **exactly(2))

    samples = api.settled_metrics()

    assert {name: samples.get(name) for name in GAUGES} == dict.fromkeys(GAUGES, 0)


@row("metrics-gauges-idle-after-cancellation")
def test_the_gauges_of_a_server_that_is_idle_after_a_cancellation_are_zero(api: Api) -> None:
    cancelled(api)

    samples = api.settled_metrics()

    assert {name: samples.get(name) for name in GAUGES} == dict.fromkeys(GAUGES, 0)


@asked_of(*VARIANTS)
@row("metrics-blocks-are-free-after-cancellation")
def test_a_cancelled_sequence_gives_its_blocks_back(api: Api) -> None:
    if not api.settled_metrics().has("tgi_kv_blocks_used"):
        pytest.skip("the server does not report KV blocks")
    cancelled(api)

    assert api.settled_metrics().get("tgi_kv_blocks_used") == 0


@row("metrics-gauges-busy")
def test_gauges_count_what_runs_and_what_waits(slow: Api) -> None:
    slow.settled_metrics()
    with slow.running("runs", **exactly(200)) as frames, slow.running("waits", **exactly(200)) as waiting:
        next(frames), next(frames), next(waiting)
        slow.wait_for_metric("tgi_queue_size", 1)
        samples = slow.metrics()

    generated = samples.get("tgi_batch_input_tokens") - len("runs") - 1
    assert samples.get("tgi_batch_current_size") == 1
    assert 1 <= generated < 200
    assert samples.get("tgi_batch_max_remaining_tokens") == 200 - generated


# What only a server with a queue shows


@row("metrics-timeout-in-the-queue")
def test_a_timeout_in_the_queue_is_a_failure_and_a_success(slow: Api) -> None:
    before = slow.settled_metrics()
    with slow.running("occupies the only place", **exactly(200)) as frames:
        next(frames), next(frames)
        slow.generate("Hello", time_limit_millis=40, **exactly(5))

    delta = slow.settled_metrics().since(before)

    assert delta.get("tgi_request_failure", err="timeout") == 1
    assert delta.get("tgi_request_success", stop_reason="TIME_LIMIT", kind="single") == 1
    assert delta.get("tgi_request_generated_tokens_sum") == 0


@row("metrics-timeout-while-running")
def test_a_timeout_while_running_is_not_a_failure(slow: Api) -> None:
    before = slow.settled_metrics()
    slow.generate("Hello", time_limit_millis=60, **exactly(50))

    delta = slow.settled_metrics().since(before)

    assert delta.get("tgi_request_failure", err="timeout") == 0
    assert delta.get("tgi_request_success", stop_reason="TIME_LIMIT", kind="single") == 1


@row("metrics-cancelled-batch")
def test_each_input_of_a_cancelled_batch_is_counted(slow: Api) -> None:
    before = slow.settled_metrics().get("tgi_request_failure", err="cancelled")
    request = pb.BatchedGenerationRequest(requests=[pb.GenerationRequest(text="a")] * 3)
    request.params.stopping.min_new_tokens = request.params.stopping.max_new_tokens = 200
    call = slow.stub.Generate.future(request)
    slow.wait_for_metric("tgi_queue_size", 2)

    call.cancel()

    slow.wait_for_metric("tgi_request_failure", before + 3, err="cancelled")


@row("metrics-tgi_request_queue_duration-waited")
def test_the_time_in_the_queue_is_measured(slow: Api) -> None:
    before = slow.settled_metrics()
    slow.generate("a", "b", **exactly(5))

    delta = slow.settled_metrics().since(before)

    assert delta.get("tgi_request_queue_duration_count") == 2
    assert delta.get("tgi_request_queue_duration_sum") >= 5 * 0.02


@row("metrics-tgi_request_success-TOKEN_LIMIT")
def test_a_request_that_fills_the_context_is_counted_with_the_tokens_asked_for(recital: Api) -> None:
    before = recital.settled_metrics()
    recital.generate("C", max_new_tokens=18)

    delta = recital.settled_metrics().since(before)

    assert delta.get("tgi_request_success", stop_reason="TOKEN_LIMIT", kind="single") == 1
    assert delta.get("tgi_request_max_new_tokens_sum") == 18
    assert delta.get("tgi_request_generated_tokens_sum") == 17


@row("metrics-server-says-that-it-rehearses")
def test_a_rehearsal_says_so(slow: Api, recital: Api) -> None:
    [rehearsal], [recitation] = (server.metrics().labels_of("tgi_server_info") for server in (slow, recital))

    assert "rehears" in rehearsal["mode"]
    assert "rehears" not in recitation["mode"]
