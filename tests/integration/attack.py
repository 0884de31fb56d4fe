"""Attacks both ports of a server in many ways at once, and prints, as JSON, how often each attack was made.

::

    python attack.py GRPC_PORT HTTP_PORT SECONDS

An attack that the server refuses or cuts off counts too. Needs only this directory on its path.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable

from attackers import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    Attacker,
    call,
    frame,
    headers,
    message,
)
from tgis_server.wire import generation_pb2 as pb

MIB = 1 << 20
PATIENCE_S = 2.0  # how long an attack that waits for nothing lasts
NUM_AT_A_TIME = 6
GENERATE, STREAM, TOKENIZE = (f"/fmaas.GenerationService/{name}" for name in ("Generate", "GenerateStream", "Tokenize"))
ECHO = pb.SingleGenerationRequest(
    request=pb.GenerationRequest(text="a b c d " * 10_000),
    params=pb.Parameters(
        truncate_input_tokens=1,
        response=pb.ResponseOptions(input_text=True),
        stopping=pb.StoppingCriteria(max_new_tokens=100),
    ),
).SerializeToString()
PIECES = pb.BatchedTokenizeRequest(
    requests=[pb.TokenizeRequest(text="a b c d " * 500)], return_tokens=True, return_offsets=True
).SerializeToString()
TOO_LARGE = pb.ModelInfoRequest(model_id="x" * (6 * MIB)).SerializeToString()

Attack = Callable[[int, int], Awaitable[None]]  # its arguments are the gRPC port and the HTTP port


# The gRPC port


async def read_no_stream(grpc: int, http: int) -> None:
    """Open sixteen streams whose first frame does not fit into the window."""
    async with Attacker.connect(grpc, window=1000) as attacker:
        attacker.listen()
        for stream in range(1, 33, 2):
            await attacker.send(call(stream, STREAM, ECHO))
        await asyncio.sleep(PATIENCE_S)


async def read_no_answer(grpc: int, http: int) -> None:
    """Request unary answers while the window is closed."""
    async with Attacker.connect(grpc, window=0) as attacker:
        attacker.listen()
        for stream in range(1, 17, 2):
            await attacker.send(call(stream, TOKENIZE, PIECES))
        await asyncio.sleep(PATIENCE_S)


async def read_no_byte(grpc: int, http: int) -> None:
    """Let the server send everything that flow control allows, but read nothing from the socket."""
    async with Attacker.connect(grpc, window=2**31 - 1) as attacker:
        for stream in range(1, 65, 2):
            await attacker.send(call(stream, STREAM, ECHO))
        await asyncio.sleep(PATIENCE_S)


async def begin_calls(grpc: int, http: int) -> None:
    """Begin a thousand calls without a request or with half of one."""
    async with Attacker.connect(grpc) as attacker:
        attacker.listen()
        half = frame(DATA, 0, 0, message(ECHO)[:100])
        for stream in range(1, 2001, 2):
            opened = frame(HEADERS, END_HEADERS, stream, headers(GENERATE))
            await attacker.send(opened + half[:5] + stream.to_bytes(4, "big") + half[9:])
        await asyncio.sleep(PATIENCE_S)


async def trickle(grpc: int, http: int) -> None:
    """Send a request byte by byte."""
    async with Attacker.connect(grpc) as attacker:
        attacker.listen()
        await attacker.send(frame(HEADERS, END_HEADERS, 1, headers(GENERATE)))
        for byte in message(ECHO)[:40]:
            await attacker.send(frame(DATA, 0, 1, bytes([byte])))
            await asyncio.sleep(PATIENCE_S / 40)


async def say_nothing(grpc: int, http: int) -> None:
    """Open connections that send nothing or only a part of the preface."""
    async with contextlib.AsyncExitStack() as stack:
        for number in range(50):
            attacker = await stack.enter_async_context(Attacker.connect(grpc, greets=False))
            await attacker.send(PREFACE[: number % len(PREFACE)])
        await asyncio.sleep(PATIENCE_S)


async def send_too_much(grpc: int, http: int) -> None:
    """Send twenty requests above the limit at once, and one that announces a gigabyte."""
    async with Attacker.connect(grpc) as attacker:
        attacker.listen()
        for stream in range(1, 41, 2):
            await attacker.send(call(stream, GENERATE, TOO_LARGE[: random.randrange(5 * MIB, 6 * MIB)]))
        opened = frame(HEADERS, END_HEADERS, 41, headers(GENERATE))
        await attacker.send(opened + frame(DATA, 0, 41, b"\0" + (1 << 30).to_bytes(4, "big")))
        await asyncio.sleep(PATIENCE_S)


async def reset(grpc: int, http: int) -> None:
    async with Attacker.connect(grpc) as attacker:
        attacker.listen()
        await attacker.reset_calls(GENERATE, PATIENCE_S)


def flood(beginning: bytes, again: bytes) -> Attack:
    async def attack(grpc: int, http: int) -> None:
        async with Attacker.connect(grpc) as attacker:
            attacker.listen()
            await attacker.send(beginning)
            await attacker.flood(again, PATIENCE_S)

    return attack


async def greet_wrongly(grpc: int, http: int) -> None:
    """Send bytes that are not HTTP/2."""
    async with Attacker.connect(grpc, greets=False) as attacker:
        await attacker.send(random.randbytes(random.randrange(1, 10_000)))


async def come_and_go(grpc: int, http: int) -> None:
    for port in (grpc, http) * 50:
        async with Attacker.connect(port, greets=False):
            pass


# The HTTP port


async def ask_half(grpc: int, http: int) -> None:
    """Send the first half of three hundred requests."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(300):
            attacker = await stack.enter_async_context(Attacker.connect(http, greets=False))
            await attacker.send(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        await asyncio.sleep(PATIENCE_S)


async def scrape_without_reading(grpc: int, http: int) -> None:
    async with Attacker.connect(http, greets=False) as attacker:
        await attacker.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        await asyncio.sleep(PATIENCE_S)


async def ask_without_end(grpc: int, http: int) -> None:
    """Keep open ten connections that send the next requests before the previous ones are answered."""

    async def ask() -> None:
        async with Attacker.connect(http, greets=False) as attacker:
            attacker.listen()
            await attacker.flood(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 16, PATIENCE_S)

    await asyncio.gather(*(ask() for _ in range(10)))


async def send_endless_header(grpc: int, http: int) -> None:
    async with Attacker.connect(http, greets=False) as attacker:
        attacker.listen()
        await attacker.send(b"GET /health HTTP/1.1\r\n")
        await attacker.flood(b"X-Field: " + b"y" * 1000 + b"\r\n", PATIENCE_S)


async def send_endless_body(grpc: int, http: int) -> None:
    async with Attacker.connect(http, greets=False) as attacker:
        attacker.listen()
        await attacker.send(b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
        await attacker.flood(b"z" * 16_000, PATIENCE_S)


ATTACKS: dict[str, Attack] = {
    attack.__name__: attack
    for attack in (
        read_no_stream,
        read_no_answer,
        read_no_byte,
        begin_calls,
        trickle,
        say_nothing,
        send_too_much,
        reset,
        greet_wrongly,
        come_and_go,
        ask_half,
        scrape_without_reading,
        ask_without_end,
        send_endless_header,
        send_endless_body,
    )
} | {
    "flood_pings": flood(b"", frame(PING, 0, 0, b"12345678") * 500),
    "flood_settings": flood(b"", frame(SETTINGS, 0, 0) * 1000),
    "flood_header_blocks": flood(
        frame(HEADERS, 0, 1, headers(GENERATE)), frame(CONTINUATION, 0, 1, b"\0\1x\x7f\x81\x7d" + b"y" * 16_000)
    ),
    "flood_empty_data": flood(frame(HEADERS, END_HEADERS, 1, headers(GENERATE)), frame(DATA, 0, 1) * 1000),
}


async def attack_again_and_again(grpc: int, http: int, seconds: float) -> Counter[str]:
    """Make a few attacks at a time, in random order; each has been made at least once before this returns."""
    num_done: Counter[str] = Counter()
    clock = asyncio.get_running_loop().time
    until = clock() + seconds
    kinds: list[str] = []

    async def attack_on() -> None:
        while clock() < until or len(num_done) < len(ATTACKS):
            if not kinds:
                kinds.extend(random.sample(list(ATTACKS), len(ATTACKS)))
            name = kinds.pop()
            with contextlib.suppress(OSError):  # the server hung up
                await ATTACKS[name](grpc, http)
            num_done[name] += 1

    await asyncio.gather(*(attack_on() for _ in range(NUM_AT_A_TIME)))
    return num_done


if __name__ == "__main__":
    os.nice(19)  # real attackers have machines of their own: these must not take CPU time from the server
    print(json.dumps(asyncio.run(attack_again_and_again(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))))
