"""A front-end in this process: real gRPC and HTTP on free ports, with an engine played by the test."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import grpc
import pytest
from tokenizers import Tokenizer as Library

import vocabularies
from links import FakeLink
from tgis_server.errors import PeerLost
from tgis_server.frontend.entry import Frontend
from tgis_server.frontend.state import ServerState
from tgis_server.frontend.text import PieceDecoder, Tokenizer
from tgis_server.options import ServeConfig
from tgis_server.run import Run
from tgis_server.run.phases import Phases
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire import shard_pb2, shard_pb2_grpc
from tgis_server.wire.generation_pb2_grpc import GenerationServiceStub

DEADLINE_S = 10.0


class FakeShards:
    """Reports what the test sets: that all shards serve, or that one is dead."""

    def __init__(self) -> None:
        self.serving = asyncio.Event()
        self.death: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait_until_serving(self) -> None:
        await self.serving.wait()

    async def run(self) -> None:
        await self.death

    def describe(self) -> str:
        return "shard-0: reading weights"

    def pids(self) -> dict[str, int]:
        return {}

    def phases(self) -> dict[str, list[shard_pb2.Phase]]:
        return {
            "shard-0": [
                shard_pb2.Phase(name="reading weights", started_at_s=1.0, bytes=1000),
                shard_pb2.Phase(name="serving", started_at_s=3.0),
            ]
        }

    def die(self, text: str = "Shard 0 no longer answers.") -> None:
        self.death.set_exception(PeerLost(text))


@dataclass
class Server:
    """A running front-end and ways to call it."""

    frontend: Frontend
    link: FakeLink
    shards: FakeShards
    run: Run
    life: asyncio.Task[None]
    channel: grpc.aio.Channel

    @property
    def stub(self) -> GenerationServiceStub:
        return GenerationServiceStub(self.channel)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.frontend.state.grpc_port}"

    async def get(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.frontend.state.http_port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status, await response.text()

    async def health(self, *, is_onlooker: bool = False) -> shard_pb2.FrontendHealth:
        """The health reply to the launcher, or to a command of its user."""
        async with grpc.aio.insecure_channel(f"unix:{self.run.frontend_socket}") as channel:
            return await shard_pb2_grpc.FrontendStub(channel).Health(shard_pb2.HealthRequest(is_onlooker=is_onlooker))

    async def generate(self, *texts: str, **params: object) -> pb.BatchedGenerationResponse:
        return await self.stub.Generate(batch(*texts, **params))


def make_run(directory: Path, **options: object) -> Run:
    config = ServeConfig(**{"host": "127.0.0.1", "grpc_port": 0, "port": 0, **options})
    return Run(
        config=config,
        run_dir=directory,
        model_id="words",
        model_dir=directory,
        engine="fake",
        device="cpu",
        dtype="float32",
        num_shard=1,
        max_sequence_length=100,
        is_max_sequence_length_explicit=False,
        max_batch_tokens=64,
        tokenization_workers=2,
    )


@asynccontextmanager
async def serving(
    link: FakeLink | None = None, *, library: Library | None = None, is_ready: bool = True, **options: object
) -> AsyncIterator[Server]:
    """A front-end whose vocabulary is the words t0 … t99, ready unless ``is_ready`` is False; stopped at the end."""
    with tempfile.TemporaryDirectory() as directory:
        run = make_run(Path(directory), **options)
        link, shards = link or FakeLink(), FakeShards()
        tokenizer = Tokenizer(library or vocabularies.words())
        pieces = PieceDecoder(tokenizer.inner, output_special_tokens=run.config.output_special_tokens)
        frontend = Frontend(run, ServerState(Phases(), shards.describe), tokenizer, pieces, link, shards)
        life = asyncio.create_task(frontend.run())
        await until(lambda: life.done() or frontend.state.http_port)
        if life.done():
            await life
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{frontend.state.grpc_port}", options=[PRIVATE])
        try:
            if is_ready:
                shards.serving.set()
                await until(lambda: frontend.state.is_serving)
            yield Server(frontend, link, shards, run, life, channel)
        finally:
            await channel.close()
            frontend.request_immediate_stop()
            await asyncio.gather(life, return_exceptions=True)
            tokenizer.close()


PRIVATE = ("grpc.use_local_subchannel_pool", 1)  # each channel gets a connection of its own


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine for at most ten seconds."""

    async def within_deadline() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await test()

    asyncio.run(within_deadline())


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition; the test's own deadline bounds it."""
    while not condition():  # noqa: ASYNC110  there is no event to wait for
        await asyncio.sleep(0.005)


def batch(*texts: str, **params: object) -> pb.BatchedGenerationRequest:
    requests = [pb.GenerationRequest(text=text) for text in texts]
    return pb.BatchedGenerationRequest(requests=requests, params=pb.Parameters(**params))


def single(text: str, **params: object) -> pb.SingleGenerationRequest:
    return pb.SingleGenerationRequest(request=pb.GenerationRequest(text=text), params=pb.Parameters(**params))


def tokens(number: int, **values: object) -> dict[str, object]:
    """Parameters for ``number`` new tokens."""
    return {"stopping": pb.StoppingCriteria(max_new_tokens=number, **values)}


async def failure_of(call: Awaitable[object]) -> tuple[grpc.StatusCode, str | None]:
    """The status of a failed call, and its text."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code(), raised.value.details()
