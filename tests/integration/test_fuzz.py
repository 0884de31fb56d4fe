"""Thousands of requests that no sane client sends: all are answered or refused, and none leaves anything behind."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, cast

import grpc
import psutil
import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from extremes import (
    CHECK,
    GENERATE,
    GENERATE_STREAM,
    METHODS,
    MODEL_INFO,
    REFLECT,
    TOKENIZE,
    calls,
    greetings,
    mutant,
)
from shards import wait_until
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.generation_pb2_grpc import GenerationServiceStub

Launch = Callable[..., Any]  # starts a Server of conftest.py
Call = tuple[str, bytes]  # method and request
Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]

ANSWER_S = 30.0  # the longest time that any answer may take
NUM_MUTANTS = 6  # mutants of each message
NUM_STRANGERS = 200  # at each port and socket
NUM_LOITERERS = 100  # at each port
PATIENCE_S = 0.2  # how long a stranger waits for an answer
MORE_BYTES = 32 << 20  # growth from one round to the next: memory varies by half of that without a leak
SMALL = ("--max-new-tokens", "16", "--max-sequence-length", "64")
FUZZING = settings(
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],  # making an example smaller takes minutes here
    suppress_health_check=list(HealthCheck),
)
REFUSAL = "INVALID_ARGUMENT: .+"
EXPECTED = {  # how a call with a request that can be decoded may end
    GENERATE: f"OK|{REFUSAL}|RESOURCE_EXHAUSTED: Model is overloaded",
    GENERATE_STREAM: f"OK|{REFUSAL}|RESOURCE_EXHAUSTED: Model is overloaded",
    TOKENIZE: f"OK|{REFUSAL}",
    MODEL_INFO: "OK",
    CHECK: "OK|NOT_FOUND: unknown service .+",
    REFLECT: "OK",
}
NO_MESSAGE = "INTERNAL: failed to decode Protobuf message: .+"
TEXT = pb.GenerationRequest(text="a")
HUGE: list[tuple[str, Message]] = [
    (GENERATE, pb.BatchedGenerationRequest(requests=[TEXT] * 1000)),
    (GENERATE, pb.BatchedGenerationRequest(requests=[TEXT] * 100_000)),
    (GENERATE_STREAM, pb.SingleGenerationRequest(request=TEXT, prefix_id="é" * 100_000)),
    (GENERATE_STREAM, pb.SingleGenerationRequest(request=pb.GenerationRequest(text="a" * 4_000_000))),
    (TOKENIZE, pb.BatchedTokenizeRequest(requests=[pb.TokenizeRequest(text="é\0 ")] * 1000)),
]


# Calls


def is_expected(end: str, method: str, body: bytes) -> bool:
    try:
        METHODS[method].FromString(body)
    except DecodeError:
        return re.fullmatch(NO_MESSAGE, end) is not None
    return re.fullmatch(EXPECTED[method], end, re.DOTALL) is not None


async def end_of(channel: grpc.aio.Channel, method: str, body: bytes) -> str:
    """The status of a call, and the text of the status if the call failed."""
    try:
        if method == GENERATE_STREAM:
            _ = [frame async for frame in channel.unary_stream(method)(body, timeout=ANSWER_S)]
        elif method == REFLECT:
            _ = [answer async for answer in channel.stream_stream(method)(iter([body]), timeout=ANSWER_S)]
        else:
            await channel.unary_unary(method)(body, timeout=ANSWER_S)
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"
    return "OK"


def make_calls(address: str, bodies: list[Call]) -> Counter[str]:
    """Make all calls at once, and check how each ends; returns how many ended with each status."""

    async def run() -> list[str]:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            return await asyncio.gather(*(end_of(channel, *one) for one in bodies))

    ends = asyncio.run(run())
    wrong = [(end, *one) for end, one in zip(ends, bodies, strict=True) if not is_expected(end, *one)]
    assert not wrong, f"{len(wrong)} of {len(bodies)} calls, the first: {wrong[0]}"
    return Counter(end.split(":")[0] for end in ends)


def fuzz(address: str, num_examples: int, num_mutants: int, *methods: str) -> Counter[str]:
    """Make calls with messages of all kinds, and with mutants of each."""
    codes: Counter[str] = Counter()

    @settings(FUZZING, max_examples=num_examples)
    @given(st.lists(calls(*methods), min_size=10, max_size=30), st.integers(0, 2**32))
    def send(valid: list[Call], seed: int) -> None:
        source = random.Random(seed)
        mutants = [(method, mutant(source, body)) for method, body in valid * num_mutants]
        codes.update(make_calls(address, valid + mutants))

    send()
    return codes


# Strangers


async def greet(open_connection: Connect, greeting: bytes, limit: asyncio.Semaphore) -> None:
    """Say something, wait a moment for an answer, and leave."""
    async with limit:
        with contextlib.suppress(OSError, TimeoutError):
            reader, writer = await open_connection()
            try:
                writer.write(greeting)
                async with asyncio.timeout(PATIENCE_S):
                    await reader.read()
            finally:
                writer.close()


def doors_of(server: Any) -> list[Connect]:
    """Ways to connect to each port and each socket of a server."""
    ports = [address.rsplit(":", 1)[1] for address in (server.facts["grpc"], server.facts["http"])]
    sockets = sorted(server.run_dir.glob("*.sock"))
    return [
        *(partial(asyncio.open_connection, "127.0.0.1", int(port)) for port in ports),
        *(partial(asyncio.open_unix_connection, str(path)) for path in sockets),
    ]


def send_strangers(server: Any) -> None:
    async def run() -> None:
        limit = asyncio.Semaphore(100)
        await asyncio.gather(
            *(
                greet(door, greeting, limit)
                for number, door in enumerate(doors_of(server))
                for greeting in islice(greetings(random.Random(number)), NUM_STRANGERS)
            )
        )

    asyncio.run(run())


@contextmanager
def loiterers(server: Any) -> Iterator[None]:
    """Connections to both ports whose requests never end."""
    with ExitStack() as stack:
        for address in (server.facts["grpc"], server.facts["http"]):
            port = int(address.rsplit(":", 1)[1])
            for greeting in islice(greetings(random.Random(1)), NUM_LOITERERS):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                connection.send(greeting[: len(greeting) // 2])
        yield


# What a server holds


@dataclass(frozen=True)
class State:
    """What extreme requests must not change."""

    answer: list[pb.GenerationResponse]
    gauges: dict[str, float]  # sequences, KV blocks in use, permits, calls in flight
    num_files: dict[int, int]  # open files and sockets by process


def state_of(server: Any) -> State:
    num_files = {process.pid: process.num_fds() for process in processes_of(server)}
    return State(answer_of(server), read_gauges(server), num_files)


def settled_state(server: Any) -> State:
    """The state that two readings in a row agree on: a single one may be taken during a probe or the end of a call."""
    last = None

    def read_again() -> State | None:
        nonlocal last
        previous, last = last, state_of(server)
        return last if last == previous else None

    return cast(State, wait_until(read_again, "two readings that agree"))


def wait_for_state(server: Any, expected: State) -> None:
    found = None

    def is_reached() -> bool:
        nonlocal found
        found = state_of(server)
        return found == expected

    with suppress(AssertionError):
        wait_until(is_reached, "everything to be as before")
    assert found == expected  # so that pytest shows the difference


def answer_of(server: Any) -> list[pb.GenerationResponse]:
    request = pb.BatchedGenerationRequest(requests=[pb.GenerationRequest(text="Once upon a time")] * 3)
    with grpc.insecure_channel(server.address) as channel:
        return list(GenerationServiceStub(channel).Generate(request, timeout=ANSWER_S).responses)


def read_gauges(server: Any) -> dict[str, float]:
    text = urllib.request.urlopen(f"{server.facts['http']}/metrics", timeout=10).read().decode()
    changing = ("tgi_process_", "tgi_prefix_cache_blocks")  # memory never rests, and answers stay in the cache
    families = text_string_to_metric_families(text)
    gauges = [each for each in families if each.type == "gauge" and not each.name.startswith(changing)]
    return {sample.name: sample.value for family in gauges for sample in family.samples}


def processes_of(server: Any) -> list[psutil.Process]:
    root = psutil.Process(server.process.pid)
    return [root, *root.children(recursive=True)]


def count_bytes(server: Any) -> int:
    return sum(process.memory_full_info().uss for process in processes_of(server))


@pytest.mark.parametrize("num_examples", [10, pytest.param(100, marks=[pytest.mark.acceptance, pytest.mark.serial])])
def test_extreme_messages_and_bytes_that_are_not_messages_leave_nothing_behind(
    launch: Launch, num_examples: int
) -> None:
    server = launch("--rehearse", "--num-shard", "2", "--max-concurrent-requests", "2000", *SMALL)
    before = settled_state(server)
    codes: Counter[str] = Counter()
    sizes = []

    for _ in range(2):  # what the first round leaves may stay for good; what the second adds is a leak
        codes += fuzz(server.address, num_examples, NUM_MUTANTS, *METHODS)
        send_strangers(server)
        with loiterers(server):
            assert answer_of(server) == before.answer
        wait_for_state(server, before)
        sizes.append(count_bytes(server))

    assert codes.total() > 200 * num_examples
    assert min(codes["OK"], codes["INVALID_ARGUMENT"], codes["INTERNAL"]) > 10 * num_examples
    assert sizes[1] < sizes[0] + MORE_BYTES
    assert "Traceback" not in server.stderr


def test_huge_messages_are_answered_or_refused(launch: Launch) -> None:
    server = launch("--rehearse", "--max-concurrent-requests", "2000", *SMALL)
    before = settled_state(server)

    make_calls(server.address, [(method, message.SerializeToString()) for method, message in HUGE])

    wait_for_state(server, before)
    assert "Traceback" not in server.stderr


@pytest.mark.parametrize("num_examples", [5, pytest.param(20, marks=pytest.mark.acceptance)])
def test_extreme_parameters_harm_no_real_sampler(launch: Launch, num_examples: int) -> None:
    server = launch("--dtype", "float32", *SMALL)
    before = settled_state(server)

    codes = fuzz(server.address, num_examples, 0, GENERATE, GENERATE_STREAM)

    assert codes["OK"] > 5 * num_examples
    wait_for_state(server, before)
    assert "Traceback" not in server.stderr
