"""Values of metrics after known calls: what is counted when, and what a scrape of a real server shows."""

from __future__ import annotations

import asyncio
import math
import re
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from frontends import batch, run, serving, single, tokens, until
from links import FakeLink, count_up, step
from shards import wait_until
from tgis_server.frontend.metrics import SPECS
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.generation_pb2_grpc import GenerationServiceStub
from tgis_server.wire.messages import FinishReason, RequestFailure

Start = Callable[..., Any]  # starts a Server of conftest.py

GO_ON, MAX = FinishReason.NOT_FINISHED, FinishReason.MAX_TOKENS
REHEARSAL = ("--rehearse", "--host", "127.0.0.1")
PROCESSES = ("launcher", "frontend", "shard-0")
NEXT_TOKEN = "makeup=single_only,method=next_token"


def parse(text: str) -> dict[str, float]:
    """``name{label=value,...}`` -> value, as Prometheus' own client reads them."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def bounds(found: dict[str, float], name: str) -> list[float]:
    """The finite upper bounds of a histogram, whatever its other labels."""
    series = [key.removeprefix(f"{name}_bucket{{le=") for key in found if key.startswith(f"{name}_bucket")]
    return sorted({bound for key in series if (bound := float(key.rstrip("}").split(",")[0])) < math.inf})


# What is counted when: an engine that the test plays


async def metrics_of(server) -> dict[str, float]:
    return parse((await server.get("/metrics"))[1])


class LeavesAtTheEnd:
    """The context of a stream whose client goes away when the last frame is written."""

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def set_trailing_metadata(self, metadata: object) -> None:
        pass

    async def write(self, raw: bytes) -> None:
        if pb.GenerationResponse.FromString(raw).stop_reason:
            raise asyncio.CancelledError


def test_a_stream_whose_client_left_after_everything_was_generated_is_a_success():
    async def test() -> None:
        async with serving(FakeLink(count_up)) as server:
            with suppress(asyncio.CancelledError):
                await server.frontend._servicer.GenerateStream(single("t1", **tokens(3)), LeavesAtTheEnd())

            found = await metrics_of(server)
            assert found["tgi_request_success{kind=stream,stop_reason=MAX_TOKENS}"] == 1
            assert found["tgi_request_generated_tokens_sum"] == 3
            assert "tgi_request_failure{err=cancelled}" not in found

    run(test)


def test_a_cancelled_batch_counts_its_unfinished_inputs_and_no_success():
    async def test() -> None:
        async with serving() as server:
            call = server.stub.Generate(batch("t1", "t2", "t3", **tokens(2)))
            await until(lambda: len(server.link.submitted) == 3)
            server.link.give(step((1, 9, GO_ON), (2, 9, MAX)))
            await until(lambda: server.frontend._router.num_running == 2)
            call.cancel()
            await until(lambda: not server.frontend.state.num_calls)

            found = await metrics_of(server)
            assert found["tgi_request_failure{err=cancelled}"] == 2
            assert not [name for name in found if name.startswith("tgi_request_success")]
            assert found["tgi_request_duration_count"] == 0

    run(test)


def test_a_cancelled_stream_counts_once_and_as_no_success():
    async def test() -> None:
        async with serving() as server:
            stream = server.stub.GenerateStream(single("t1", **tokens(9)))
            await stream.read()
            await until(lambda: server.link.submitted)
            server.link.give(step((1, 2, GO_ON)))
            await stream.read()
            stream.cancel()
            await until(lambda: not server.frontend.state.num_calls)

            found = await metrics_of(server)
            assert found["tgi_request_failure{err=cancelled}"] == 1
            assert not [name for name in found if name.startswith("tgi_request_success")]

    run(test)


def test_a_failure_counts_once_per_call_with_the_inference_time_of_the_input_that_failed():
    async def test() -> None:
        async with serving() as server:
            call = asyncio.create_task(server.generate("t1", "t2", **tokens(3)))
            await until(lambda: len(server.link.submitted) == 2)
            now = server.frontend._router._clock()
            server.link.give(step((1, 9, GO_ON), (2, 9, GO_ON), started=[(1, now - 1.0), (2, now)]))
            server.link.give(step((2, 9, GO_ON), failures=[RequestFailure(1, "INTERNAL", "broken")]))
            with pytest.raises(grpc.aio.AioRpcError, match="broken"):
                await call

            found = await metrics_of(server)
            assert found["tgi_request_failure{err=generate}"] == 1
            assert found["tgi_request_inference_duration_count"] == 1
            assert found["tgi_request_inference_duration_sum"] >= 1.0
            assert found["tgi_request_mean_time_per_token_duration_count"] == 1
            assert found["tgi_request_duration_count"] == 0

    run(test)


def test_calls_that_are_refused_unread_are_neither_counted_in_nor_out():
    async def test() -> None:
        async with serving(is_ready=False) as server:
            with pytest.raises(grpc.aio.AioRpcError, match="still loading"):
                await server.generate("t1", "t2")

            found = await metrics_of(server)
            assert not [name for name in found if name.startswith(("tgi_request_count{", "tgi_request_failure{"))]

    run(test)


# What a scrape shows: real processes with the fake engine


def scrape(server) -> dict[str, float]:
    return parse(urllib.request.urlopen(server.facts["http"] + "/metrics", timeout=10).read().decode())


def wait_until_idle(server) -> dict[str, float]:
    """The metrics once nothing is running: the last result may come just after the last answer."""
    gauges = ("tgi_batch_current_size", "tgi_queue_size", "tgi_calls_in_flight")
    return wait_until(
        lambda: found if not any((found := scrape(server))[name] for name in gauges) else None, "idleness"
    )


def stopping(num_tokens: int) -> pb.Parameters:
    return pb.Parameters(stopping=pb.StoppingCriteria(max_new_tokens=num_tokens))


def generate(stub: GenerationServiceStub, *texts: str, num_tokens: int) -> list[pb.GenerationResponse]:
    inputs = [pb.GenerationRequest(text=text) for text in texts]
    request = pb.BatchedGenerationRequest(requests=inputs, params=stopping(num_tokens))
    return list(stub.Generate(request, timeout=20).responses)


def stream(stub: GenerationServiceStub, text: str, num_tokens: int) -> Any:
    request = pb.SingleGenerationRequest(request=pb.GenerationRequest(text=text), params=stopping(num_tokens))
    return stub.GenerateStream(request, timeout=20)


@dataclass(frozen=True)
class Loaded:
    """A server after calls of every kind."""

    found: dict[str, float]
    num_input: int  # tokens of all inputs that were answered
    num_tokenized: int
    max_sequence_length: int


@pytest.fixture(scope="module")
def loaded(start_shared: Start) -> Loaded:
    """Five inputs are answered: three with five tokens, one with four, one with six."""
    options = ("--rehearse-step-ms", "2", "--max-batch-size", "7", "--max-new-tokens", "320")
    server = start_shared(*REHEARSAL, *options).wait_until_ready()
    with grpc.insecure_channel(server.address) as channel:
        stub = GenerationServiceStub(channel)
        answers = generate(stub, "One", "Two trees", "Three old trees", num_tokens=5)
        answers += generate(stub, "Four", num_tokens=4)
        answers += generate(stub, num_tokens=1)
        answers += list(stream(stub, "Five", 6))[:1]
        for refused in (pb.SingleGenerationRequest(), pb.SingleGenerationRequest(request={}, params=stopping(2**31))):
            with suppress(grpc.RpcError):
                list(stub.GenerateStream(refused, timeout=20))
        texts = pb.BatchedTokenizeRequest(requests=[pb.TokenizeRequest(text=text) for text in ("One", "Two trees")])
        tokenized = stub.Tokenize(texts).responses
    return Loaded(
        found=wait_until_idle(server),
        num_input=sum(answer.input_token_count for answer in answers),
        num_tokenized=sum(one.token_count for one in tokenized),
        max_sequence_length=server.facts["max_sequence_length"],
    )


def test_a_known_load_has_known_counts_and_sums(loaded: Loaded):
    num_generated, num_decoded = 3 * 5 + 4 + 6, 3 * 4 + 3 + 5
    expected = {
        "tgi_request_count{kind=single}": 1,
        "tgi_request_count{kind=batch}": 2,
        "tgi_request_count{kind=stream}": 3,
        "tgi_request_input_count": 3 + 1 + 3,
        "tgi_request_failure{err=validation}": 1,
        "tgi_request_success{kind=batch,stop_reason=MAX_TOKENS}": 3,
        "tgi_request_success{kind=single,stop_reason=MAX_TOKENS}": 1,
        "tgi_request_success{kind=stream,stop_reason=MAX_TOKENS}": 1,
        "tgi_request_duration_count": 5,
        "tgi_request_validation_duration_count": 3,
        "tgi_request_queue_duration_count": 5,
        "tgi_request_inference_duration_count": 5,
        "tgi_request_mean_time_per_token_duration_count": 5,
        "tgi_time_to_first_token_duration_count": 5,
        "tgi_inter_token_duration_count": num_decoded,
        "tgi_request_raw_input_length_sum": loaded.num_input,
        "tgi_request_input_length_sum": loaded.num_input,
        "tgi_request_max_new_tokens_sum": num_generated,
        "tgi_request_generated_tokens_sum": num_generated,
        "tgi_request_generated_tokens_bucket{le=5.0}": 4,
        "tgi_request_generated_tokens_bucket{le=10.0}": 5,
        "tgi_request_total_tokens_sum": loaded.num_input + num_generated,
        "tgi_batch_inference_batch_size_sum{method=prefill}": 5,
        "tgi_batch_inference_batch_size_sum{method=next_token}": num_decoded,
        "tgi_batch_next_tokens_sum": loaded.num_input,
        "tgi_tokenize_request_count": 1,
        "tgi_tokenize_request_input_count": 2,
        "tgi_tokenize_request_tokens_sum": loaded.num_tokenized,
        "tgi_tokenize_request_duration_count": 1,
        "tgi_preemption_count": 0,
        "tgi_prefix_cache_hit_tokens": 0,
    }

    assert {name: loaded.found.get(name) for name in expected} == expected


def test_each_step_has_its_times(loaded: Loaded):
    found = loaded.found
    num_steps = found["tgi_step_device_duration_count"]

    assert found["tgi_step_device_duration_sum"] == pytest.approx(0.002 * num_steps)
    assert found["tgi_step_scheduler_duration_count"] == num_steps
    assert found["tgi_step_scheduler_duration_sum"] > 0
    num_decode_steps = found["tgi_batch_inference_count{method=next_token}"]
    assert {
        "tgi_batch_inference_success{method=next_token}": num_decode_steps,
        f"tgi_batch_inference_duration_count{{{NEXT_TOKEN}}}": num_decode_steps,
        f"tgi_batch_inference_forward_duration_count{{{NEXT_TOKEN}}}": num_decode_steps,
        f"tgi_batch_inference_forward_duration_sum{{{NEXT_TOKEN}}}": pytest.approx(0.002 * num_decode_steps),
        f"tgi_batch_inference_tokproc_duration_count{{{NEXT_TOKEN}}}": num_decode_steps,
    }.items() <= found.items()


def test_every_counter_has_both_names(loaded: Loaded):
    counters = {spec.name for spec in SPECS if spec.kind == "counter"}

    bare = {name: value for name, value in loaded.found.items() if name.split("{")[0] in counters}
    assert {name.split("{")[0] for name in bare} == counters - {
        "tgi_batch_inference_failure",
        "tgi_abort_count",
    }  # nothing failed
    assert {name: loaded.found.get(re.sub(r"^\w+", r"\g<0>_total", name)) for name in bare} == bare


def test_gauges_of_an_idle_server_are_zero(loaded: Loaded):
    facts = (
        "tgi_server_info",
        "tgi_ready",
        "tgi_max",
        "tgi_kv_blocks_total",
        "tgi_prefix_cache_blocks",
        "tgi_startup",
        "tgi_tls",
        "tgi_process",
    )
    gauges = {spec.name for spec in SPECS if spec.kind == "gauge" and not spec.name.startswith(facts)}

    assert {name: loaded.found[name] for name in gauges} == dict.fromkeys(gauges, 0)


def test_limits_and_readiness_are_reported_beside_what_is_in_use(loaded: Loaded):
    expected = {"tgi_ready": 1, "tgi_max_batch_size": 7, "tgi_max_concurrent_requests": 512}

    assert {name: loaded.found[name] for name in expected} == expected


def test_every_process_of_the_server_reports_what_it_uses(loaded: Loaded):
    for kind in ("resident_memory_bytes", "cpu_seconds_total", "start_time_seconds"):
        used = {name: loaded.found.get(f"tgi_process_{kind}{{process={name}}}") for name in PROCESSES}
        assert all(used.values()), (kind, used)


def test_the_phases_of_the_start_are_reported(loaded: Loaded):
    seconds = {name: value for name, value in loaded.found.items() if name.startswith("tgi_startup_phase_seconds")}

    assert {f"tgi_startup_phase_seconds{{phase=starting,process={name}}}" for name in ("frontend", "shard-0")} <= set(
        seconds
    )
    assert 0 < max(seconds.values()) < loaded.found["tgi_startup_seconds"]


def test_buckets_are_those_of_the_contract(loaded: Loaded):
    durations = [pytest.approx(0.0001 * 1.5**k) for k in range(1, 36)]
    context = [pytest.approx(loaded.max_sequence_length * k / 64) for k in range(1, 65)]
    new_tokens = [5.0 * k for k in range(1, 65)]

    expected = {
        "tgi_request_duration": durations,
        "tgi_batch_inference_duration": durations,
        "tgi_tokenize_request_tokens": [2.0**k for k in range(6, 20)],
        "tgi_request_input_length": context,
        "tgi_request_total_tokens": context,
        "tgi_request_generated_tokens": new_tokens,
        "tgi_request_max_new_tokens": new_tokens,
        "tgi_batch_inference_batch_size": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
    }
    assert {name: bounds(loaded.found, name) for name in expected} == expected


BLOCKS = ("--kv-block-size", "4", "--rehearse-kv-blocks", "10")


def test_a_running_stream_shows_in_gauges_and_a_cancelled_one_does_not(launch: Start):
    server = launch(*REHEARSAL, *BLOCKS, "--rehearse-step-ms", "100")
    with grpc.insecure_channel(server.address) as channel:
        call = stream(GenerationServiceStub(channel), "Anna runs", 30)
        running = wait_until(lambda: found if (found := scrape(server))["tgi_batch_current_size"] else None, "a step")
        call.cancel()
        idle = wait_until_idle(server)

    assert (running["tgi_calls_in_flight"], running["tgi_permits_held"], running["tgi_kv_blocks_total"]) == (1, 1, 10)
    # The last token of a running sequence is known, but not computed yet: it has no block.
    assert running["tgi_kv_blocks_used"] == math.ceil((running["tgi_batch_input_tokens"] - 1) / 4)
    assert (idle["tgi_permits_held"], idle["tgi_kv_blocks_used"], idle["tgi_kv_blocks_total"]) == (0, 0, 10)
    assert idle["tgi_request_failure{err=cancelled}"] == 1


def test_a_prompt_that_is_sent_again_hits_the_prefix_cache(launch: Start):
    server = launch(*REHEARSAL, *BLOCKS)
    with grpc.insecure_channel(server.address) as channel:
        stub = GenerationServiceStub(channel)
        [first] = generate(stub, "One sunny day Anna found a red ball", num_tokens=1)
        [again] = generate(stub, "One sunny day Anna found a red ball", num_tokens=1)
    found = wait_until_idle(server)

    num_cached = (first.input_token_count - 1) // 4 * 4  # only whole blocks, and never the last token
    assert found["tgi_prefix_cache_blocks"] == first.input_token_count // 4
    assert (again.text, found["tgi_prefix_cache_hit_tokens"]) == (first.text, num_cached)
    assert found["tgi_batch_next_tokens_sum"] == 2 * first.input_token_count - num_cached


def test_sequences_that_outgrow_the_pool_are_preempted_and_counted(launch: Start):
    server = launch(*REHEARSAL, *BLOCKS)
    with grpc.insecure_channel(server.address) as channel:
        answers = generate(GenerationServiceStub(channel), "Anna", "Ben", num_tokens=30)
    found = wait_until_idle(server)

    assert [answer.generated_token_count for answer in answers] == [30, 30]
    assert found["tgi_preemption_count"] == 1
    assert found["tgi_request_queue_duration_count"] == 2  # resuming after a preemption does not count
    assert found["tgi_kv_blocks_used"] == 0
