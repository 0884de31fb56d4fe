"""CPU time of the front-end per streamed token, compared with a bare grpc.aio server that writes the same frames.

Usage: python scripts/bench/frontend_cost.py [--streams 64] [--new-tokens 200] [--rounds 5] [--against OTHER/bin/tgis]

The engine is a rehearsal. Steps are long enough for each token to get its own frame; the savings of a loaded front-end,
which merges waiting text into one frame, are not measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import grpc
import psutil

from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.generation_pb2_grpc import GenerationServiceStub
from tgis_server.wire.grpc_channels import open_async_channel

TGIS = Path(sys.executable).parent / "tgis"
READY_S = 60.0


@dataclass(frozen=True)
class Load:
    """Equal streams, started together."""

    streams: int
    new_tokens: int
    details: bool  # request tokens with logprobs, ranks and two candidates each

    def request(self, index: int) -> pb.SingleGenerationRequest:
        wants = {"generated_tokens": True, "token_logprobs": True, "token_ranks": True, "top_n_tokens": 2}
        return pb.SingleGenerationRequest(
            request=pb.GenerationRequest(text=f"{index} cats sat on a mat"),
            params=pb.Parameters(
                stopping=pb.StoppingCriteria(max_new_tokens=self.new_tokens, min_new_tokens=self.new_tokens),
                response=pb.ResponseOptions(**wants) if self.details else None,
            ),
        )


async def stream_all(url: str, load: Load) -> int:
    """Run the load; return the number of frames received."""

    async def stream(stub: GenerationServiceStub, index: int) -> int:
        num_frames = 0
        async for frame in stub.GenerateStream(load.request(index)):
            num_frames += 1
            last = frame
        if last.generated_token_count != load.new_tokens:
            raise RuntimeError(f"{last.generated_token_count} tokens arrived instead of {load.new_tokens}")
        return num_frames

    async with open_async_channel(url) as channel:
        stub = GenerationServiceStub(channel)
        return sum(await asyncio.gather(*(stream(stub, index) for index in range(load.streams))))


def measure(url: str, server: psutil.Process, load: Load) -> tuple[float, float]:
    """Microseconds of the server's CPU time per token, and frames per token."""
    before = server.cpu_times()
    num_frames = asyncio.run(stream_all(url, load))
    after = server.cpu_times()
    num_tokens = load.streams * load.new_tokens
    return (after.user + after.system - before.user - before.system) * 1e6 / num_tokens, num_frames / num_tokens


@contextmanager
def serving(options: list[str], tgis: Path) -> Iterator[tuple[str, int]]:
    """Launch a server on free ports; yield its gRPC address and the launcher's pid."""
    with tempfile.TemporaryDirectory(prefix="tgis-bench-") as folder:
        command = [tgis, "launch", "--host", "127.0.0.1", "--grpc-port", "0", "--port", "0", "--run-dir", folder]
        server = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + READY_S
            while not (files := list(Path(folder).glob("*/ready.json"))):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{' '.join(map(str, command))} did not become ready")
                time.sleep(0.01)
            yield json.loads(files[0].read_text())["grpc"], server.pid
        finally:
            server.terminate()
            server.wait()


def find_frontend(launcher_pid: int) -> psutil.Process:
    [frontend] = [p for p in psutil.Process(launcher_pid).children() if "frontend" in p.cmdline()]
    return frontend


# The bare server


async def serve_bare(port: Connection, load: Load, step_s: float) -> None:
    """Write frames of the same size, one per stream and step, and do nothing else."""
    frame = pb.GenerationResponse(text=" tok123", generated_token_count=100)
    if load.details:
        token = frame.tokens.add(text="tok123", logprob=-1.5, rank=2)
        token.top_tokens.add(text="tok123", logprob=-1.5)
        token.top_tokens.add(text="tok124", logprob=-2.5)
    waiting: list[asyncio.Future[None]] = []

    async def answer(request: object, context: grpc.aio.ServicerContext) -> None:
        await context.read()
        for count in range(load.new_tokens + 1):
            turn = asyncio.get_running_loop().create_future()
            waiting.append(turn)
            await turn
            frame.generated_token_count = count
            await context.write(frame.SerializeToString())

    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(answer)
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("fmaas.GenerationService", {"GenerateStream": handler})]
    )
    port.send(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    while True:
        await asyncio.sleep(step_s)
        turns, waiting = waiting[:], []
        for turn in turns:
            if not turn.done():
                turn.set_result(None)


def run_bare(port: Connection, load: Load, step_s: float) -> None:
    asyncio.run(serve_bare(port, load, step_s))


@contextmanager
def serving_bare(load: Load, step_s: float) -> Iterator[tuple[str, psutil.Process]]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=run_bare, args=(theirs, load, step_s), daemon=True)
    process.start()
    try:
        yield f"127.0.0.1:{ours.recv()}", psutil.Process(process.pid)
    finally:
        process.kill()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--step-ms", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--details", action="store_true", help="request tokens with details")
    parser.add_argument("--against", type=Path, help="command of another installation to compare with")
    given = parser.parse_args()
    if given.against and not given.against.is_file():
        parser.error(f"--against: no such file: {given.against}")
    load = Load(given.streams, given.new_tokens, given.details)
    options = ["--rehearse", "--rehearse-step-ms", str(given.step_ms), "--rehearse-kv-blocks", "8192"]
    figures: dict[str, list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        servers = {"bare": stack.enter_context(serving_bare(load, given.step_ms / 1000))}
        for name, tgis in {"against": given.against, "front-end": TGIS}.items():
            if tgis:
                url, launcher = stack.enter_context(serving(options, tgis))
                servers[name] = (url, find_frontend(launcher))
                asyncio.run(stream_all(url, Load(given.streams, 20, given.details)))  # warm up
        for _ in range(given.rounds):  # interleaved, as the machine's speed varies over time
            for name, (url, process) in servers.items():
                figures.setdefault(name, []).append(measure(url, process, load))
    for name, rounds in figures.items():
        costs, frames = zip(*rounds, strict=True)
        each = " ".join(f"{cost:.0f}" for cost in costs)
        median, least = statistics.median(costs), min(costs)
        print(f"{name:>9}: {median:.1f} µs per token (lowest {least:.1f}, {each}), {min(frames):.3f} frames per token")


if __name__ == "__main__":
    main()
