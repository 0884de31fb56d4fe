"""Many streams, many of them abandoned: nothing stays behind in the server."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import sys
import urllib.request

import grpc
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from frontends import run, serving, single, tokens, until
from links import FakeLink, count_up
from shards import wait_until
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.generation_pb2_grpc import GenerationServiceStub

pytestmark = pytest.mark.serial

NUM_STREAMS = 200
NUM_ROUNDS = 40
ALLOCATOR_STEP_BYTES = 4 << 20  # what malloc takes at once when memory use reaches a new peak


async def stream(stub, seed: int) -> str:
    """Read a stream to its end, or leave it after a random number of frames."""
    patience = random.Random(seed)
    leaves_after = patience.randrange(0, 40) if patience.random() < 0.5 else None
    call = stub.GenerateStream(
        pb.SingleGenerationRequest(
            request=pb.GenerationRequest(text=f"{seed} once upon a time"),
            params=pb.Parameters(stopping=pb.StoppingCriteria(max_new_tokens=patience.randrange(1, 60))),
        )
    )
    num_frames, reason = 0, pb.NOT_FINISHED
    async for frame in call:
        num_frames, reason = num_frames + 1, frame.stop_reason
        if leaves_after is not None and num_frames > leaves_after:
            call.cancel()
            return "left"
    return pb.StopReason.Name(reason)


async def run_round(address: str, number: int) -> list[str]:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = GenerationServiceStub(channel)
        return await asyncio.gather(*(stream(stub, number * NUM_STREAMS + i) for i in range(NUM_STREAMS)))


def read_metrics(server) -> dict[str, float]:
    text = urllib.request.urlopen(server.facts["http"] + "/metrics", timeout=10).read().decode()
    return {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}


def tree_bytes(server) -> int:
    root = psutil.Process(server.process.pid)
    return sum(process.memory_full_info().uss for process in [root, *root.children(recursive=True)])


@pytest.mark.acceptance
def test_rounds_of_streams_with_random_cancels_leave_no_block_no_permit_and_no_memory_behind(launch):
    server = launch(
        "--rehearse", "--rehearse-step-ms", "1", "--num-shard", "2", "--max-concurrent-requests", str(NUM_STREAMS)
    )
    sizes = []
    for number in range(NUM_ROUNDS):
        ends = asyncio.run(run_round(server.address, number))

        assert set(ends) <= {"left", "MAX_TOKENS"}
        assert ends.count("left") > NUM_STREAMS / 10
        wait_until(lambda: read_metrics(server)["tgi_kv_blocks_used"] == 0, "every KV block to return")
        wait_until(lambda: read_metrics(server)["tgi_batch_current_size"] == 0, "every slot to return")
        sizes.append(tree_bytes(server))

    # Every permit is back: a call that needs all of them is accepted.
    with grpc.insecure_channel(server.address) as channel:
        inputs = [pb.GenerationRequest(text="a") for _ in range(NUM_STREAMS)]
        answer = GenerationServiceStub(channel).Generate(pb.BatchedGenerationRequest(requests=inputs), timeout=20)
    assert len(answer.responses) == NUM_STREAMS
    half_way = sizes[NUM_ROUNDS // 2]  # until then, pools and caches fill up
    assert sizes[-1] < half_way * 1.02 + ALLOCATOR_STEP_BYTES, f"bytes of the process tree after each round: {sizes}"
    assert server.stop() == 0


def test_calls_leave_no_object_behind_in_the_front_end(caplog):
    """Counts the blocks that Python has allocated: unlike a process's memory, their number does not grow in steps."""
    caplog.set_level(logging.ERROR, "tgis_server")  # because pytest keeps every record
    blocks = []

    async def test() -> None:
        async with serving(FakeLink(count_up)) as server:

            async def call(number: int) -> None:
                answer = server.stub.GenerateStream(single("t1", **tokens(5)))
                await answer.read()
                if number % 2:
                    answer.cancel()
                else:
                    while await answer.read() is not grpc.aio.EOF:
                        pass

            for _ in range(4):
                await asyncio.gather(*(call(number) for number in range(NUM_STREAMS)))
                await until(lambda: not server.frontend.state.num_calls)
                server.link.submitted.clear(), server.link.cancelled.clear()
                gc.collect()
                blocks.append(sys.getallocatedblocks())

    run(test)
    assert blocks[3] < max(blocks[:2]) + NUM_STREAMS, f"allocated blocks after each round: {blocks}"
