"""GrpcLink against a server that implements the Session: what it sends together, and how it notices the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import grpc
import pytest

from frontends import run, until
from links import step
from tgis_server.errors import PeerLost, Unavailable
from tgis_server.wire import shard_pb2 as pb
from tgis_server.wire.codec import encode_step_result
from tgis_server.wire.link import EngineInfo, GrpcLink
from tgis_server.wire.messages import FinishReason, StepResult, Submit, pack_ids
from tgis_server.wire.shard_pb2_grpc import ShardServicer, add_ShardServicer_to_server


class FakeLeader(ShardServicer):
    """Records messages, and sends what the test puts in; None ends the session."""

    def __init__(self) -> None:
        self.received: list[pb.ToEngine] = []
        self.outgoing: asyncio.Queue[StepResult | None] = asyncio.Queue()
        self.num_ended = 0
        self.info: pb.InfoReply | None = pb.InfoReply(max_sequence_length=64, vocab_size=97, num_blocks=8)

    async def Info(self, request: pb.InfoRequest, context: grpc.aio.ServicerContext) -> pb.InfoReply:  # noqa: N802
        if self.info is None:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "The model is not loaded yet.")
        return self.info

    async def Session(self, requests, context: grpc.aio.ServicerContext) -> None:  # noqa: N802
        async def read() -> None:
            async for message in requests:
                self.received.append(message)

        reader = asyncio.create_task(read())
        try:
            while (result := await self.outgoing.get()) is not None:
                await context.write(encode_step_result(result))
        finally:
            reader.cancel()
            self.num_ended += 1


@asynccontextmanager
async def linked(directory: Path) -> AsyncIterator[tuple[GrpcLink, FakeLeader]]:
    leader, server = FakeLeader(), grpc.aio.server()
    add_ShardServicer_to_server(leader, server)
    server.add_insecure_port(f"unix:{directory / 'leader.sock'}")
    await server.start()
    link = GrpcLink(directory / "leader.sock")
    try:
        yield link, leader
    finally:
        await link.close()
        await server.stop(None)


def submit(request_id: int) -> Submit:
    return Submit(request_id, prompt_ids=pack_ids([1, 2]), max_new_tokens=3)


def test_results_arrive_as_they_were_sent(tmp_path):
    async def test() -> None:
        async with linked(tmp_path) as (link, leader), aclosing(link.results()) as results:
            sent = step((1, 7, FinishReason.MAX_TOKENS), started=[(1, 0.5)])
            leader.outgoing.put_nowait(sent)

            assert await anext(results) == sent

    run(test)


def test_requests_queued_during_a_write_are_sent_as_one_message(tmp_path):
    async def test() -> None:
        async with linked(tmp_path) as (link, leader), aclosing(link.results()) as results:
            reading = asyncio.create_task(anext(results))
            await asyncio.sleep(0)
            link.submit([submit(1), submit(2)])
            link.submit([submit(3)])
            link.cancel(9)
            await until(lambda: leader.received)

            [message] = leader.received
            assert [one.request_id for one in message.submits] == [1, 2, 3]
            assert list(message.cancels) == [9]
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    run(test)


def test_a_request_cancelled_before_it_was_sent_is_never_sent(tmp_path):
    async def test() -> None:
        async with linked(tmp_path) as (link, leader), aclosing(link.results()) as results:
            reading = asyncio.create_task(anext(results))
            await asyncio.sleep(0)
            link.submit([submit(1), submit(2)])
            link.cancel(1)
            await until(lambda: leader.received)

            assert [one.request_id for one in leader.received[0].submits] == [2]
            assert list(leader.received[0].cancels) == []
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    run(test)


def test_facts_about_the_model_are_passed_on(tmp_path):
    async def test() -> None:
        async with linked(tmp_path) as (link, _):
            assert await link.info() == EngineInfo(max_sequence_length=64, vocab_size=97, num_blocks=8)

    run(test)


def test_an_engine_that_is_still_loading_is_unavailable(tmp_path):
    async def test() -> None:
        async with linked(tmp_path) as (link, leader):
            leader.info = None
            with pytest.raises(Unavailable, match="FAILED_PRECONDITION The model is not loaded yet"):
                await link.info()

    run(test)


def test_requests_are_refused_without_a_connection(tmp_path):
    async def test() -> None:
        link = GrpcLink(tmp_path / "none.sock")
        with pytest.raises(Unavailable, match="not connected"):
            link.submit([submit(1)])
        link.cancel(1)

    run(test)


def test_the_end_of_the_session_means_that_the_peer_is_lost(tmp_path):
    async def test() -> None:
        async with linked(tmp_path) as (link, leader):
            leader.outgoing.put_nowait(None)
            with pytest.raises(PeerLost, match="closed its connection"):
                await anext(link.results())
            with pytest.raises(Unavailable):
                link.submit([submit(1)])

    run(test)


def test_a_missing_leader_is_a_lost_peer(tmp_path):
    async def test() -> None:
        link = GrpcLink(tmp_path / "none.sock")
        with pytest.raises(PeerLost, match="UNAVAILABLE"):
            await anext(link.results())
        await link.close()

    run(test)


def test_a_request_that_cannot_be_sent_ends_the_session(tmp_path):
    async def test() -> None:
        async with linked(tmp_path) as (link, _), aclosing(link.results()) as results:
            reading = asyncio.create_task(anext(results))
            await asyncio.sleep(0)
            link.submit([Submit(1, prompt_ids=pack_ids([1]), max_new_tokens=-3)])

            with pytest.raises(PeerLost, match="could not be sent"):
                await reading

    run(test)


def test_closing_the_results_ends_the_session(tmp_path):
    async def test() -> None:
        async with linked(tmp_path) as (link, leader):
            async with aclosing(link.results()) as results:
                leader.outgoing.put_nowait(step())
                await anext(results)

            await until(lambda: leader.num_ended == 1)

    run(test)
