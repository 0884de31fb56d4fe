"""Calls that end early, through a real front-end and a real leader: what is freed, and when."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from driving import expected_tokens, submit
from frontends import PRIVATE, Server, batch, run, serving, single, tokens, until
from links import step
from stepping import SteppedLeader, leading, stepped
from tgis_server.frontend import entry
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.generation_pb2_grpc import GenerationServiceStub
from tgis_server.wire.link import GrpcLink
from tgis_server.wire.messages import FinishReason, RequestFailure, StepResult, Submit, pack_ids


@pytest.fixture(autouse=True)
def _no_wait_for_a_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for a launcher to report why an engine is gone."""
    monkeypatch.setattr(entry, "CAUSE_WAIT_S", 0.05)


BOTH_DEPTHS = pytest.mark.parametrize("plan_ahead", [False, True], ids=["one-step", "two-steps-in-flight"])


def words(*numbers: int) -> str:
    return " ".join(f"t{number}" for number in numbers)


def expected_text(prompt: list[int], num_tokens: int) -> str:
    """The fake engine's continuation of a prompt."""
    return "".join(f" t{token}" for token in expected_tokens(submit(0, prompt, num_tokens)))


async def status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code(), raised.value.details()


async def read_all(stream: Any) -> str:
    return "".join([frame.text async for frame in stream])


def metric_lines(server: Server) -> set[str]:
    return set(server.frontend.metrics.to_text().decode().splitlines())


async def assert_nothing_left(server: Server, leader: SteppedLeader) -> None:
    """Check that no call, permit, request, slot or block is held, and that the gauges say so."""
    await until(lambda: not server.frontend.state.num_calls)
    await until(lambda: leader.is_at_rest)
    assert server.frontend._servicer._admission.num_held == 0
    assert server.frontend._router.num_running == 0
    assert (leader.scheduler.num_running, leader.scheduler.num_waiting, leader.scheduler.num_used_blocks) == (0, 0, 0)
    idle = {"tgi_kv_blocks_used 0.0", "tgi_batch_current_size 0.0", "tgi_queue_size 0.0"}
    await until(lambda: idle <= metric_lines(server))


# Cancellation, counted in steps


def begin_unary(server: Server, text: str, **params: Any) -> Any:
    return server.stub.Generate(batch(text, **params))


def begin_stream(server: Server, text: str, **params: Any) -> Any:
    return server.stub.GenerateStream(single(text, **params))


BOTH_KINDS = pytest.mark.parametrize("begin", [begin_unary, begin_stream], ids=["unary", "stream"])


@BOTH_DEPTHS
@BOTH_KINDS
def test_a_cancelled_running_call_is_in_no_later_step(begin: Callable[..., Any], plan_ahead: bool) -> None:
    async def test() -> None:
        async with stepped(plan_ahead=plan_ahead) as (server, leader):
            call = begin(server, words(1, 2, 3), **tokens(50))
            await leader.wait_for_step()
            await leader.run_steps(3)

            call.cancel()
            await leader.wait_for_message()
            await leader.run_steps(1)  # the step in progress

            await assert_nothing_left(server, leader)
            assert len(leader.runner.plans) == 4

    run(test)


@BOTH_KINDS
def test_a_call_cancelled_between_chunks_of_its_prompt_is_in_no_later_step(
    begin: Callable[..., Any],
) -> None:
    async def test() -> None:
        async with stepped(max_batch_tokens=4) as (server, leader):
            call = begin(server, words(*range(40)), **tokens(50))
            await leader.wait_for_step()
            await leader.run_steps(2)

            call.cancel()
            await leader.wait_for_message()
            await leader.run_steps(1)

            await assert_nothing_left(server, leader)
            assert [plan.num_tokens for plan in leader.runner.plans] == [[4]] * 3

    run(test)


@BOTH_KINDS
def test_a_call_cancelled_in_the_queue_is_never_in_a_step(begin: Callable[..., Any]) -> None:
    async def test() -> None:
        async with stepped(max_batch_size=1) as (server, leader):
            first = begin_stream(server, words(1), **tokens(6))
            await leader.wait_for_step()
            second = begin(server, words(2), **tokens(50))
            await leader.wait_for_message()
            await leader.run_steps(1)
            assert leader.scheduler.num_waiting == 1

            second.cancel()
            await leader.wait_for_message()
            await leader.run_steps(1)

            assert leader.scheduler.num_waiting == 0
            await leader.run_steps(4)
            assert await read_all(first) == expected_text([1], 6)
            assert sum(len(plan.new) for plan in leader.runner.plans) == 1
            await assert_nothing_left(server, leader)

    run(test)


def long_words() -> Tokenizer:
    """A tokenizer with pieces of 20 kB: a few of them fill the buffers of a client that does not read."""
    tokenizer = Tokenizer(models.WordLevel({f"t{i}" + "x" * 20_000: i for i in range(100)}, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


@BOTH_DEPTHS
def test_a_client_that_does_not_read_delays_no_step_and_a_cancelled_one_is_in_no_later_step(
    plan_ahead: bool,
) -> None:
    async def test() -> None:
        async with stepped(plan_ahead=plan_ahead, library=long_words()) as (server, leader):
            options = [PRIVATE, ("grpc.http2.bdp_probe", 0)]  # keep the window from growing
            async with grpc.aio.insecure_channel(server.address, options=options) as channel:
                request = single(f"t1{'x' * 20_000}", **tokens(200))
                call = GenerationServiceStub(channel).GenerateStream(request)
                await leader.wait_for_step()
                await leader.run_steps(100)
                [output] = server.frontend._router._outputs.values()
                await until(lambda: output.num_generated >= 99)
                # If the writer could proceed, it would do so during this call.
                await server.stub.ModelInfo(pb.ModelInfoRequest())
                assert output._parts

                call.cancel()
                await leader.wait_for_message()
                await leader.run_steps(1)

                await assert_nothing_left(server, leader)
                assert len(leader.runner.plans) == 101

    run(test)


def test_a_call_past_its_deadline_is_in_no_later_step() -> None:
    async def test() -> None:
        async with stepped() as (server, leader):
            call = server.stub.Generate(batch(words(1, 2), **tokens(50)), timeout=0.3)
            await leader.wait_for_step()
            await leader.run_steps(1)
            await leader.wait_for_message()
            await leader.run_steps(1)

            assert (await status_of(call))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
            await assert_nothing_left(server, leader)
            assert len(leader.runner.plans) == 2

    run(test)


# Permits


def is_answered(server: Server, call: Any) -> None:
    server.link.give(step((1, 9, FinishReason.MAX_TOKENS), (2, 9, FinishReason.MAX_TOKENS)))


def fails_in_the_engine(server: Server, call: Any) -> None:
    server.link.give(step((1, 9, FinishReason.NOT_FINISHED), failures=[RequestFailure(2, "INTERNAL", "bad things")]))


def loses_the_engine(server: Server, call: Any) -> None:
    server.link.break_down()


def is_cancelled(server: Server, call: Any) -> None:
    call.cancel()


def runs_out_of_time(server: Server, call: Any) -> None:
    """Do nothing: the call's deadline is near."""


@pytest.mark.parametrize("end", [is_answered, fails_in_the_engine, loses_the_engine, is_cancelled, runs_out_of_time])
def test_a_call_holds_a_permit_for_each_input_until_its_end(end: Callable[[Server, Any], None]) -> None:
    async def test() -> None:
        async with serving(max_concurrent_requests=2) as server:
            admission = server.frontend._servicer._admission
            call = server.stub.Generate(batch("t1", "t2"), timeout=0.5)
            await until(lambda: len(server.link.submitted) == 2)
            assert admission.num_held == 2

            end(server, call)
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
                await call

            await until(lambda: not server.frontend.state.num_calls)
            assert admission.num_held == 0

    run(test)


@pytest.mark.parametrize(
    ("texts", "params", "code"),
    [
        (["t1", "t2"], tokens(10**6), "INVALID_ARGUMENT"),
        (["t1", ""], {}, "INVALID_ARGUMENT"),
        (["t1 " * 200, "t2"], {}, "INVALID_ARGUMENT"),
        (["t1", "t2", "t3"], {}, "RESOURCE_EXHAUSTED"),
    ],
    ids=["parameter", "tokenizer", "length", "overload"],
)
def test_a_refused_call_holds_no_permit(texts: list[str], params: dict[str, Any], code: str) -> None:
    async def test() -> None:
        async with serving(max_concurrent_requests=2) as server:
            status, _ = await status_of(server.generate(*texts, **params))

            assert status.name == code
            assert server.frontend._servicer._admission.num_held == 0

    run(test)


# Out of memory

OUT_OF_MEMORY = (grpc.StatusCode.RESOURCE_EXHAUSTED, "Request failed during generation: GPU out of memory")


@BOTH_DEPTHS
def test_a_batch_fails_if_half_of_it_does_not_fit_and_its_neighbours_get_all_their_tokens(
    plan_ahead: bool,
) -> None:
    async def test() -> None:
        async with stepped(max_batch_tokens=6, plan_ahead=plan_ahead) as (server, leader):
            neighbour = begin_stream(server, words(7, 8), **tokens(12))
            await leader.wait_for_step()
            halves = server.stub.Generate(batch(words(1, 2), words(*range(20)), **tokens(50)))
            await leader.wait_for_message()
            leader.runner.faults = {3: "oom"}
            await leader.run_steps(3)

            assert await status_of(halves) == OUT_OF_MEMORY
            await leader.wait_for_message()
            await leader.run_steps(30)

            assert await read_all(neighbour) == expected_text([7, 8], 12)
            await assert_nothing_left(server, leader)
            shapes = [plan.num_tokens for plan in leader.runner.plans]
            assert shapes[:4] == [[2], [1, 2, 2], [1, 1, 2], [1, 1]]  # the fourth repeats what is left of the third
            assert shapes[4:] == [[1]] * (len(shapes) - 4)

    run(test)


@BOTH_DEPTHS
def test_decode_rows_that_run_out_of_memory_once_still_get_the_same_tokens(plan_ahead: bool) -> None:
    async def test() -> None:
        async with stepped(plan_ahead=plan_ahead) as (server, leader):
            first = begin_stream(server, words(1), **tokens(8))
            await leader.wait_for_step()
            second = begin_stream(server, words(2), **tokens(8))
            await leader.wait_for_message()
            leader.runner.faults = {4: "oom", 6: "oom"}
            await leader.run_steps(30)

            assert (await read_all(first), await read_all(second)) == (expected_text([1], 8), expected_text([2], 8))
            await assert_nothing_left(server, leader)

    run(test)


def test_prompts_that_do_not_fit_are_refused_one_by_one_and_harm_no_other_call() -> None:
    async def test() -> None:
        async with stepped() as (server, leader):
            leader.runner.faults = {1: "oom", 2: "oom"}
            for _ in range(2):
                call = begin_unary(server, words(1, 2, 3), **tokens(3))
                await leader.wait_for_step()
                await leader.run_steps(1)
                assert await status_of(call) == OUT_OF_MEMORY
            third = begin_unary(server, words(1, 2, 3), **tokens(3))
            await leader.wait_for_step()
            await leader.run_steps(3)

            assert (await third).responses[0].text == expected_text([1, 2, 3], 3)
            assert await server.get("/health") == (200, "")
            await assert_nothing_left(server, leader)

    run(test)


# The end of the engine


@pytest.mark.parametrize("faults", [{3: "error"}, {3: "oom", 4: "oom"}], ids=["error", "out-of-memory-twice-in-a-row"])
@BOTH_DEPTHS
def test_when_the_engine_fails_a_stream_gets_its_frames_and_then_its_status(
    plan_ahead: bool, faults: dict[int, str]
) -> None:
    async def test() -> None:
        async with stepped(plan_ahead=plan_ahead) as (server, leader):
            frames: list[pb.GenerationResponse] = []

            async def read() -> None:
                async for frame in begin_stream(server, words(1), **tokens(8)):
                    frames.append(frame)  # noqa: PERF401  keeps the frames before a failure

            leader.runner.faults = faults
            reading = asyncio.create_task(read())
            await leader.wait_for_step()
            await leader.run_steps(2)
            await until(lambda: len(frames) >= 2)
            await leader.run_steps(2)

            code, text = await status_of(reading)
            assert "".join(frame.text for frame in frames) == expected_text([1], len(frames) - 1)
            assert code is grpc.StatusCode.UNAVAILABLE
            assert text.startswith("Request failed during generation: Could not connect to Text Generation server: ")
            await until(lambda: not server.frontend.state.num_calls)
            assert server.frontend._servicer._admission.num_held == 0
            assert {
                'tgi_request_failure{err="generate"} 1.0',
                'tgi_batch_inference_failure{method="next_token",reason="connection"} 1.0',
            } <= metric_lines(server)

    run(test)


def test_when_the_session_breaks_all_calls_end_and_the_leader_drops_them() -> None:
    async def test() -> None:
        async with stepped(max_batch_size=1) as (server, leader):
            calls = [begin_unary(server, words(i), **tokens(50)) for i in range(3)]
            await leader.wait_for_step()
            await until(lambda: server.frontend._router.num_running == 3)
            await server.link.close()

            assert {(await status_of(call))[0] for call in calls} == {grpc.StatusCode.UNAVAILABLE}
            await leader.wait_for_message()
            await leader.run_steps(1)
            assert leader.scheduler.num_used_blocks == 0
            assert (leader.error, len(leader.runner.plans)) == (None, 1)

    run(test)


def test_messages_between_front_end_and_leader_have_no_size_limit(tmp_path: Path) -> None:
    async def test() -> None:
        too_long = Submit(1, prompt_ids=pack_ids([1]) * 5_000_000, max_new_tokens=1)
        huge = StepResult(request_ids=[1] * 5_000_000)
        with leading(tmp_path / "leader.sock", max_batch_size=1, max_batch_tokens=1, plan_ahead=False) as leader:
            link = GrpcLink(tmp_path / "leader.sock")
            async with aclosing(link.results()) as results:
                refusal = asyncio.ensure_future(anext(results))
                await asyncio.sleep(0)
                link.submit([too_long])

                assert [failure.request_id for failure in (await refusal).failures] == [1]
                leader.leader._outbox.put(1, huge)
                assert await anext(results) == huge
            await link.close()

    run(test)
