"""Generate, GenerateStream, Tokenize and ModelInfo over a real socket."""

from __future__ import annotations

import asyncio

import grpc

import vocabularies
from frontends import batch, failure_of, run, serving, single, tokens, until
from links import FakeLink, count_up, step
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.messages import FinishReason, RequestFailure, SamplingParams, Wanted

GO_ON, MAX = FinishReason.NOT_FINISHED, FinishReason.MAX_TOKENS
Frame = pb.GenerationResponse
Token = pb.TokenInfo


async def frames_of(stub, request: pb.SingleGenerationRequest) -> list[Frame]:
    return [frame async for frame in stub.GenerateStream(request)]


async def rest_of(stream) -> list[Frame]:
    frames = []
    while (frame := await stream.read()) is not grpc.aio.EOF:
        frames.append(frame)
    return frames


def test_a_unary_call_returns_the_whole_output():
    async def test() -> None:
        async with serving(FakeLink(count_up)) as server:
            answer = await server.generate("t4 t5", **tokens(3))

            assert list(answer.responses) == [
                Frame(input_token_count=2, generated_token_count=3, text=" t6 t7 t8", stop_reason="MAX_TOKENS")
            ]
            assert list(server.link.submitted[0].prompt_ids) == [4, 5]
            assert server.link.cancelled == []

    run(test)


def test_a_batch_is_answered_in_the_order_of_its_inputs():
    async def test() -> None:
        async with serving() as server:
            call = asyncio.create_task(server.generate("t1", "t2", "t3", **tokens(1)))
            await until(lambda: len(server.link.submitted) == 3)
            server.link.give(step((3, 30, MAX)))
            server.link.give(step((1, 10, MAX), (2, 20, MAX)))

            assert [one.text for one in (await call).responses] == [" t10", " t20", " t30"]
            assert server.link.num_messages == 1

    run(test)


def test_a_call_without_inputs_has_no_outputs_whatever_the_parameters():
    async def test() -> None:
        async with serving() as server:
            assert await server.generate(**tokens(10**6)) == pb.BatchedGenerationResponse()

    run(test)


def test_a_stream_has_the_frames_of_the_contract():
    async def test() -> None:
        async with serving() as server:
            options = pb.ResponseOptions(
                input_text=True, generated_tokens=True, input_tokens=True, token_ranks=True, token_logprobs=False
            )
            sampling = {"method": pb.SAMPLE, "sampling": pb.SamplingParameters(seed=77)}
            stream = server.stub.GenerateStream(single("t4 t5", response=options, **sampling, **tokens(2)))
            frames = [await stream.read()]
            await until(lambda: server.link.submitted)
            server.link.give(step((1, 6, GO_ON)))
            server.link.give(step((1, 7, MAX)))
            frames += await rest_of(stream)

            assert frames == [
                Frame(input_token_count=2, seed=77, text="t4 t5"),
                Frame(input_token_count=2, input_tokens=[Token(text="t4"), Token(text="t5")]),
                Frame(generated_token_count=1, text=" t6", tokens=[Token(text="t6")]),
                Frame(
                    generated_token_count=2, text=" t7", tokens=[Token(text="t7")], stop_reason="MAX_TOKENS", seed=77
                ),
            ]

    run(test)


def test_a_stream_of_only_a_special_token_still_ends_with_a_frame():
    async def test() -> None:
        async with serving(library=vocabularies.byte_level()) as server:
            call = asyncio.create_task(frames_of(server.stub, single("at")))
            await until(lambda: server.link.submitted)
            server.link.give(step((1, 1, FinishReason.EOS_TOKEN)))

            assert await call == [
                Frame(input_token_count=1),
                Frame(generated_token_count=1, stop_reason="EOS_TOKEN"),
            ]

    run(test)


def test_the_texts_of_a_stream_add_up_to_the_unary_answer():
    async def test() -> None:
        async with serving(FakeLink(count_up)) as server:
            stop = {"stop_sequences": ["t9"], "include_stop_sequence": False}
            [unary] = (await server.generate("t4", **tokens(8, **stop))).responses
            frames = await frames_of(server.stub, single("t4", **tokens(8, **stop)))

            assert "".join(frame.text for frame in frames) == unary.text == " t5 t6 t7 t8 "
            assert (frames[-1].stop_reason, frames[-1].stop_sequence) == (pb.STOP_SEQUENCE, "t9")

    run(test)


def test_a_stop_sequence_cancels_the_request_in_the_engine():
    async def test() -> None:
        async with serving() as server:
            call = asyncio.create_task(server.generate("t1", stopping=pb.StoppingCriteria(stop_sequences=["t3"])))
            await until(lambda: server.link.submitted)
            server.link.give(step((1, 2, GO_ON)))
            server.link.give(step((1, 3, GO_ON)))

            assert (await call).responses[0].stop_sequence == "t3"
            assert server.link.cancelled == [1]

    run(test)


def test_the_request_to_the_engine_follows_the_parameters():
    async def test() -> None:
        async with serving(FakeLink(count_up, max_sequence_length=10), max_new_tokens=8) as server:
            await server.generate(
                "t1 t2 t3 t4 t5",
                method=pb.SAMPLE,
                sampling=pb.SamplingParameters(temperature=0.5, top_k=4, seed=9),
                stopping=pb.StoppingCriteria(max_new_tokens=8, min_new_tokens=2, time_limit_millis=5000),
                response=pb.ResponseOptions(generated_tokens=True, token_logprobs=True, top_n_tokens=2),
                truncate_input_tokens=3,
            )

            [submit] = server.link.submitted
            assert list(submit.prompt_ids) == [3, 4, 5]
            assert submit.max_new_tokens == 7
            assert submit.sampling == SamplingParams(temperature=0.5, top_k=4, min_new_tokens=2)
            assert submit.seed == 9
            assert submit.wanted == Wanted(logprobs=True, top_n=2, generated_tokens=True)
            assert submit.deadline is not None

    run(test)


def test_inputs_get_different_seeds_unless_the_client_sends_one():
    async def test() -> None:
        async with serving(FakeLink(count_up)) as server:
            drawn = await server.generate("t1", "t1", method=pb.SAMPLE, **tokens(1))
            given = await server.generate(
                "t1", "t1", method=pb.SAMPLE, sampling=pb.SamplingParameters(seed=2**40), **tokens(1)
            )

            first, second = (one.seed for one in drawn.responses)
            assert first != second
            assert max(first, second) < 2**32
            assert [one.seed for one in given.responses] == [2**40, 2**40]
            assert [submit.seed for submit in server.link.submitted] == [first, second, 2**40, 2**40]

    run(test)


def test_one_bad_input_rejects_the_whole_call_before_anything_is_queued():
    async def test() -> None:
        async with serving(FakeLink(max_sequence_length=4), max_new_tokens=2) as server:
            failure = await failure_of(server.generate("t1", "t1 t2 t3 t4", "t1 t2 t3 t4 t5"))

            assert failure == (
                grpc.StatusCode.INVALID_ARGUMENT,
                "input tokens (4) plus prefix length (0) must be < 4",
            )
            assert server.link.submitted == []

    run(test)


def test_a_token_that_the_model_lacks_is_refused():
    async def test() -> None:
        async with serving(FakeLink(vocab_size=5)) as server:
            failure = await failure_of(server.generate("t1 t5"))

            assert failure == (grpc.StatusCode.INVALID_ARGUMENT, "tokenizer error the model has no token 't5' (id 5)")
            assert server.link.submitted == []

    run(test)


def test_a_stream_without_its_input_is_refused():
    async def test() -> None:
        async with serving() as server:
            failure = await failure_of(server.stub.GenerateStream(pb.SingleGenerationRequest()).read())

            assert failure == (grpc.StatusCode.INVALID_ARGUMENT, "missing request")

    run(test)


def test_a_failing_input_fails_its_call_and_cancels_its_siblings_at_once():
    async def test() -> None:
        async with serving() as server:
            call = asyncio.create_task(server.generate("t1", "t2", **tokens(5)))
            await until(lambda: len(server.link.submitted) == 2)
            other = asyncio.create_task(server.generate("t3", **tokens(1)))
            await until(lambda: len(server.link.submitted) == 3)
            server.link.give(
                step((1, 9, GO_ON), failures=[RequestFailure(2, "RESOURCE_EXHAUSTED", "GPU out of memory")])
            )

            assert await failure_of(call) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "Request failed during generation: GPU out of memory",
            )
            assert server.link.cancelled == [1]
            server.link.give(step((3, 9, MAX)))
            assert (await other).responses[0].text == " t9"

    run(test)


def test_a_failure_in_the_middle_of_a_stream_follows_its_frames():
    async def test() -> None:
        async with serving() as server:
            stream = server.stub.GenerateStream(single("t1"))
            await stream.read()
            await until(lambda: server.link.submitted)
            server.link.give(step((1, 2, GO_ON)))
            frame = await stream.read()
            server.link.give(step(failures=[RequestFailure(1, "INTERNAL", "bad things")]))

            assert frame.text == " t2"
            assert await failure_of(stream.read()) == (
                grpc.StatusCode.INTERNAL,
                "Request failed during generation: Error after generating 1 tokens: bad things",
            )

    run(test)


def test_tokenize_counts_and_returns_tokens():
    async def test() -> None:
        async with serving(library=vocabularies.metaspace()) as server:
            texts = [pb.TokenizeRequest(text=text) for text in ("été cat", "dog")]
            counts = await server.stub.Tokenize(pb.BatchedTokenizeRequest(requests=texts))
            full = await server.stub.Tokenize(
                pb.BatchedTokenizeRequest(
                    requests=texts, return_tokens=True, return_offsets=True, truncate_input_tokens=2
                )
            )

            assert list(counts.responses) == [pb.TokenizeResponse(token_count=3), pb.TokenizeResponse(token_count=2)]
            offset = pb.TokenizeResponse.Offset
            assert full.responses[0] == pb.TokenizeResponse(
                token_count=2, tokens=["▁cat", "</s>"], offsets=[offset(start=5, end=9), offset()]
            )

    run(test)


def test_model_info_reports_the_effective_limits():
    async def test() -> None:
        async with serving(FakeLink(max_sequence_length=64), max_new_tokens=1024) as server:
            info = await server.stub.ModelInfo(pb.ModelInfoRequest(model_id="anything"))

            assert info == pb.ModelInfoResponse(model_kind="DECODER_ONLY", max_sequence_length=64, max_new_tokens=63)

    run(test)


# Cancellation and overload


def test_a_client_that_leaves_cancels_its_requests_and_releases_its_permits():
    async def test() -> None:
        async with serving(max_concurrent_requests=2) as server:
            call = server.stub.Generate(batch("t1", "t2"))
            await until(lambda: len(server.link.submitted) == 2)
            call.cancel()
            await until(lambda: server.link.cancelled == [1, 2])
            await until(lambda: not server.frontend.state.num_calls)

            again = asyncio.create_task(server.generate("t3", "t4", **tokens(1)))
            await until(lambda: len(server.link.submitted) == 4)
            server.link.give(step((3, 1, MAX), (4, 1, MAX)))
            assert len((await again).responses) == 2
            assert 'tgi_request_failure{err="cancelled"} 2.0' in (await server.get("/metrics"))[1]

    run(test)


def test_a_client_that_leaves_its_stream_cancels_it():
    async def test() -> None:
        async with serving() as server:
            stream = server.stub.GenerateStream(single("t1"))
            await stream.read()
            await until(lambda: server.link.submitted)
            server.link.give(step((1, 2, GO_ON)))
            await stream.read()
            stream.cancel()

            await until(lambda: server.link.cancelled == [1])

    run(test)


def test_a_clients_deadline_ends_its_call_and_its_generation():
    async def test() -> None:
        async with serving() as server:
            code, _ = await failure_of(server.stub.Generate(batch("t1"), timeout=0.2))

            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: server.link.cancelled == [1])

    run(test)


def test_a_call_without_permits_is_refused_at_once():
    async def test() -> None:
        async with serving(max_concurrent_requests=2) as server:
            call = asyncio.create_task(server.generate("t1", "t2", **tokens(1)))
            await until(lambda: len(server.link.submitted) == 2)

            assert await failure_of(server.generate("t3")) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "Model is overloaded",
            )
            assert await server.stub.ModelInfo(pb.ModelInfoRequest())
            server.link.give(step((1, 1, MAX), (2, 1, MAX)))
            await call

    run(test)


def test_a_burst_of_calls_on_one_channel_succeeds_or_is_overloaded():
    async def test() -> None:
        async with serving(FakeLink(count_up), max_concurrent_requests=64) as server:
            calls = [server.stub.Generate(batch("t1", **tokens(2))) for _ in range(1500)]
            codes = [await call.code() for call in calls]

            assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
            assert grpc.StatusCode.OK in codes

    run(test)


def test_a_slow_client_gets_its_text_in_few_frames_and_delays_no_other_client():
    async def test() -> None:
        async with serving() as server:
            slow = server.stub.GenerateStream(single("t1", **tokens(50)))
            await slow.read()
            quick = asyncio.create_task(server.generate("t2", **tokens(50)))
            await until(lambda: len(server.link.submitted) == 2)
            for i in range(49):
                server.link.give(step((1, i, GO_ON), (2, i, GO_ON)))
            server.link.give(step((1, 49, MAX), (2, 49, MAX)))

            [answer] = (await quick).responses
            frames = await rest_of(slow)
            assert "".join(frame.text for frame in frames) == answer.text
            assert len(frames) < 50

    run(test)
