"""Load generator: concurrent streams over the public gRPC API, and the times that clients see.

Usage: python scripts/bench/load.py --url 127.0.0.1:8033 --streams 8 --requests 16

Every prompt starts differently, so that the prefix cache does not help, and is truncated to exactly --prompt-tokens by
the server. min_new_tokens equals max_new_tokens, so that all answers have the same length.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import time
from dataclasses import asdict, dataclass

from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire import generation_pb2_grpc
from tgis_server.wire.grpc_channels import open_async_channel

TEXT = "the cat sat on a mat while rain fell over old town and children ran home to read books by warm light"
WORDS = TEXT.split()


@dataclass(frozen=True)
class LoadResult:
    """Figures of one load; times are in seconds."""

    streams: int
    requests: int
    prompt_tokens: int
    new_tokens: int
    wall_s: float
    output_tokens_per_s: float  # over the whole run, including prefill
    first_token_s: float  # median time to first token
    inter_token_s: float  # median over all gaps
    decode_tokens_per_s: float  # median rate of a stream after its first token


def make_prompt(seed: int, num_tokens: int) -> str:
    """Enough words for ``num_tokens`` tokens with any tokenizer whose tokens are no longer than words."""
    words = random.Random(seed)  # noqa: S311  not for secrets
    return " ".join(words.choice(WORDS) for _ in range(num_tokens + 8))


async def one_stream(
    stub: generation_pb2_grpc.GenerationServiceStub, seed: int, prompt_tokens: int, new_tokens: int
) -> list[float]:
    """Send one request; return its start and the arrival time of each generated token."""
    request = pb.SingleGenerationRequest(
        request=pb.GenerationRequest(text=make_prompt(seed, prompt_tokens)),
        params=pb.Parameters(
            stopping=pb.StoppingCriteria(max_new_tokens=new_tokens, min_new_tokens=new_tokens),
            response=pb.ResponseOptions(generated_tokens=True),
            truncate_input_tokens=prompt_tokens,
        ),
    )
    times = [time.monotonic()]
    async for frame in stub.GenerateStream(request):
        times += [time.monotonic()] * len(frame.tokens)
    if len(times) != new_tokens + 1:
        raise RuntimeError(f"{len(times) - 1} tokens arrived instead of {new_tokens}")
    return times


async def run_load(
    url: str, *, streams: int, requests: int, prompt_tokens: int, new_tokens: int, seed: int = 0
) -> LoadResult:
    """Keep ``streams`` requests in flight until ``requests`` of them have been answered."""
    seeds = iter(range(seed, seed + requests))
    seen: list[list[float]] = []

    async def client(stub: generation_pb2_grpc.GenerationServiceStub) -> None:
        for request_seed in seeds:
            seen.append(await one_stream(stub, request_seed, prompt_tokens, new_tokens))  # noqa: PERF401

    async with open_async_channel(url) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        started_at = time.monotonic()
        await asyncio.gather(*(client(stub) for _ in range(streams)))
        wall_s = time.monotonic() - started_at
    gaps = [late - early for times in seen for early, late in itertools.pairwise(times[1:])]
    return LoadResult(
        streams=streams,
        requests=requests,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        wall_s=wall_s,
        output_tokens_per_s=requests * new_tokens / wall_s,
        first_token_s=statistics.median(times[1] - times[0] for times in seen),
        inter_token_s=statistics.median(gaps) if gaps else 0.0,
        decode_tokens_per_s=statistics.median((len(t) - 2) / (t[-1] - t[1]) for t in seen) if gaps else 0.0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="127.0.0.1:8033")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    result = asyncio.run(
        run_load(
            given.url,
            streams=given.streams,
            requests=given.requests,
            prompt_tokens=given.prompt_tokens,
            new_tokens=given.new_tokens,
            seed=given.seed,
        )
    )
    print(json.dumps(asdict(result), indent=1))


if __name__ == "__main__":
    main()
