"""Clients that do not read, do not finish what they begin, or flood: they lose what is theirs, and nobody else does."""

from __future__ import annotations

import asyncio
import logging

import grpc
import pytest

from attackers import END_HEADERS, HEADERS, Attacker, call, frame, headers
from frontends import PRIVATE, batch, failure_of, run, serving, single, tokens, until
from links import FakeLink, count_up, step
from tgis_server.frontend import patience
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.generation_pb2_grpc import GenerationServiceStub
from tgis_server.wire.messages import FinishReason

GENERATE = "/fmaas.GenerationService/Generate"
LONG = " ".join(["t1"] * 100_000)  # does not fit in a window
ECHO = {"response": pb.ResponseOptions(input_text=True), "truncate_input_tokens": 1}


async def count_aborts(server) -> dict[str, float]:
    """By reason."""
    _, text = await server.get("/metrics")
    lines = [line for line in text.splitlines() if line.startswith("tgi_abort_count{")]
    return {line.split('"')[1]: float(line.split()[-1]) for line in lines}


def start_stalled(channel: grpc.aio.Channel, **params: object) -> grpc.aio.UnaryStreamCall:
    """A stream whose first frame does not fit in the window, and which nobody reads."""
    return GenerationServiceStub(channel).GenerateStream(single(LONG, **ECHO, **params))


def no_reader(server) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(server.address, options=[PRIVATE, ("grpc.http2.bdp_probe", 0)])


def test_a_stream_that_nobody_reads_loses_its_call_and_its_sequence():
    async def test() -> None:
        async with serving(send_timeout=0.3) as server, no_reader(server) as channel:
            stalled = start_stalled(channel)
            await until(lambda: server.link.submitted)
            await until(lambda: server.link.cancelled == [1])
            await until(lambda: not server.frontend.state.num_calls)

            assert await count_aborts(server) == {"send_timeout": 1}
            code, text = await failure_of(stalled.read())
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert text.startswith("The client did not take the answer in time")

    run(test)


def test_a_permit_is_free_when_the_answer_is_complete_also_if_nobody_reads_it():
    async def test() -> None:
        link = FakeLink(count_up)
        async with serving(link, max_concurrent_requests=1) as server, no_reader(server) as channel:
            start_stalled(channel, **tokens(1))
            await until(lambda: link.submitted)

            assert len((await server.generate("t1", **tokens(1))).responses) == 1
            assert server.frontend.state.num_calls == 1

    run(test)


def test_an_own_deadline_of_the_request_bounds_its_writes_too(monkeypatch):
    monkeypatch.setattr(patience, "DEADLINE_GRACE_S", 0.1)
    monkeypatch.setattr(patience, "MIN_BYTES_PER_S", 1 << 30)

    async def test() -> None:
        async with serving() as server, no_reader(server) as channel:
            start_stalled(channel, stopping=pb.StoppingCriteria(time_limit_millis=200))
            await until(lambda: server.link.cancelled == [1])

            assert await count_aborts(server) == {"send_timeout": 1}

    run(test)


@pytest.mark.parametrize("method", ["Generate", "Tokenize", "ModelInfo"])
def test_unary_answers_that_nobody_reads_are_given_up_without_a_line(method, caplog):
    caplog.set_level(logging.WARNING)
    body = (batch("t1", **tokens(1)) if method == "Generate" else pb.ModelInfoRequest()).SerializeToString()

    async def test() -> None:
        async with serving(FakeLink(count_up), send_timeout=0.2, max_concurrent_requests=1) as server:
            attacker = (await Attacker.connect(server.frontend.state.grpc_port, window=0)).listen()
            await attacker.send(call(1, f"/fmaas.GenerationService/{method}", body))
            await until(lambda: b"did not take the answer" in attacker.said)

            assert len((await server.generate("t1", **tokens(1))).responses) == 1
            assert (await count_aborts(server))["send_timeout"] == 1
            await attacker.close()

    run(test)
    assert not [record for record in caplog.records if record.name.startswith("grpc")]


def test_a_request_that_does_not_arrive_is_given_up(monkeypatch):
    monkeypatch.setattr(patience, "RECEIVE_TIMEOUT_S", 0.2)

    async def test() -> None:
        async with serving() as server:
            attacker = (await Attacker.connect(server.frontend.state.grpc_port)).listen()
            await attacker.send(frame(HEADERS, END_HEADERS, 1, headers(GENERATE)))
            await until(lambda: b"The request did not arrive within 0.2 s." in attacker.said)

            assert await count_aborts(server) == {"receive_timeout": 1}
            await attacker.close()

    run(test)


def test_a_call_without_a_request_is_refused():
    async def test() -> None:
        async with serving() as server:
            requests = server.channel.stream_unary(GENERATE)
            code, text = await failure_of(requests(iter([])))

            assert (code, text) == (grpc.StatusCode.INTERNAL, "failed to decode Protobuf message: there is none")

    run(test)


def test_bytes_of_requests_in_work_are_bounded_and_later_ones_wait():
    async def test() -> None:
        async with serving() as server:
            server.frontend._patience.max_bytes_held = 1000
            big = asyncio.create_task(server.generate(" ".join(["t1"] * 400), truncate_input_tokens=1, **tokens(1)))
            await until(lambda: len(server.link.submitted) == 1)
            waiting = asyncio.create_task(server.generate("t2", **tokens(1)))
            probe = await server.channel.unary_unary("/grpc.health.v1.Health/Check")(b"")

            assert probe == b"\x08\x01"
            assert len(server.link.submitted) == 1
            server.link.give(step((1, 2, FinishReason.MAX_TOKENS)))
            await big
            await until(lambda: len(server.link.submitted) == 2)
            server.link.give(step((2, 3, FinishReason.MAX_TOKENS)))
            assert (await waiting).responses[0].text == " t3"
            await until(lambda: not server.frontend._patience.num_bytes_held)

    run(test)
