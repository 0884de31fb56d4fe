"""Both ports are attacked in all ways that we know, while clients who behave hardly notice.

Takes some seconds; TGIS_ATTACK_S=3600 makes it an hour. ``-s`` shows what was done and measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from attack import ATTACKS
from frontends import PRIVATE, single, tokens
from shards import wait_until
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.generation_pb2_grpc import GenerationServiceStub

ATTACK_S = float(os.environ.get("TGIS_ATTACK_S", "6"))
NUM_STREAMS = 32
NUM_TOKENS = 200
TICK_S = 0.1  # shorter freezes of this process are not told apart from the server's
MAX_DELAY_S = 5.0  # the longest delay between two frames, as stated in docs/security.md
MAX_MORE_BYTES = 384 << 20  # growth of the front-end's memory
MIB = 1 << 20


@dataclass
class Measured:
    """What the clients who behave observed."""

    delays_s: list[float] = field(default_factory=list)
    late_s: list[tuple[float, float]] = field(
        default_factory=list
    )  # when this process itself was late, and by how much
    failures: list[str] = field(default_factory=list)
    num_streams: int = 0
    probes: list[int] = field(default_factory=list)

    def add_delay(self, before: float, now: float) -> None:
        """Record the time between two frames, without the time for which this process itself was held up."""
        delay_s = now - before
        if delay_s > 10 * TICK_S:
            delay_s -= sum(late for at, late in self.late_s if at - late >= before and at <= now)
        self.delays_s.append(delay_s)

    def __str__(self) -> str:
        late = max((late for _, late in self.late_s), default=0.0) * 1000
        ordered = sorted(self.delays_s)
        half, most, worst = (ordered[int(share * (len(ordered) - 1))] * 1000 for share in (0.5, 0.99, 1))
        return (
            f"{self.num_streams} streams, delays p50 {half:.0f} ms, p99 {most:.0f} ms, longest {worst:.0f} ms; "
            f"these clients themselves were late by up to {late:.0f} ms"
        )


async def behave(address: str, health: str, until: Callable[[], bool]) -> Measured:
    """Read streams of tokens, and probe, until ``until`` is true."""
    measured = Measured()

    async def stream_again(stub: GenerationServiceStub) -> None:
        while not until():
            measured.num_streams += 1
            try:
                before = time.monotonic()
                reason = pb.NOT_FINISHED
                async for frame in stub.GenerateStream(single("Once upon a time", **tokens(NUM_TOKENS))):
                    reason, now = frame.stop_reason, time.monotonic()
                    measured.add_delay(before, now)
                    before = now
                if reason != pb.MAX_TOKENS:
                    measured.failures.append(pb.StopReason.Name(reason))
            except grpc.aio.AioRpcError as error:
                measured.failures.append(f"{error.code().name}: {error.details()}")

    async def probe_again() -> None:
        while not until():
            measured.probes.append(await asyncio.to_thread(probe, health))
            await asyncio.sleep(0.5)

    async def measure_lateness() -> None:
        while not until():
            due = time.monotonic() + TICK_S
            await asyncio.sleep(TICK_S)
            if (now := time.monotonic()) - due > TICK_S:
                measured.late_s.append((now, now - due))

    async with grpc.aio.insecure_channel(address, options=[PRIVATE]) as channel:
        stub = GenerationServiceStub(channel)
        await asyncio.gather(probe_again(), measure_lateness(), *(stream_again(stub) for _ in range(NUM_STREAMS)))
    return measured


def probe(url: str) -> int:
    """The status, or 0 if there was no answer."""
    try:
        return int(urllib.request.urlopen(url, timeout=5).status)
    except OSError:
        return 0


def start_attack(server: Any) -> subprocess.Popen[str]:
    ports = [address.rsplit(":", 1)[1] for address in (server.facts["grpc"], server.facts["http"])]
    script = Path(__file__).with_name("attack.py")
    return subprocess.Popen([sys.executable, str(script), *ports, str(ATTACK_S)], stdout=subprocess.PIPE, text=True)


def wait_for_calm(server: Any, num_files: int) -> psutil.Process:
    """Wait until no attacker is connected to the front-end; returns its process."""
    process = psutil.Process(server.facts["pids"]["frontend"])
    wait_until(lambda: process.num_fds() <= num_files + 2, "the connections of the attackers to be gone")
    return process


@pytest.mark.serial
def test_clients_who_behave_hardly_notice_an_attack_on_both_ports(launch: Callable[..., Any]):
    server = launch("--rehearse", "--rehearse-step-ms", "20", "--send-timeout", "5")
    health = server.facts["http"] + "/health/ready"
    frontend = psutil.Process(server.facts["pids"]["frontend"])
    calm_until = time.monotonic() + min(2.0, ATTACK_S)
    calm = asyncio.run(behave(server.address, health, lambda: time.monotonic() > calm_until))
    before, num_files = frontend.memory_info().rss, frontend.num_fds()

    attack = start_attack(server)
    attacked = asyncio.run(behave(server.address, health, lambda: attack.poll() is not None))
    during = frontend.memory_info().rss
    output, _ = attack.communicate()
    num_done = json.loads(output)
    wait_for_calm(server, num_files)
    after = frontend.memory_info().rss

    print(f"\ncalm: {calm}\nattacked: {attacked}\nattacks: {num_done}")
    print(f"front-end: {before // MIB} MiB before, {during // MIB} at the end, {after // MIB} after, {num_files} files")
    assert attack.returncode == 0
    assert set(num_done) == set(ATTACKS)
    assert attacked.failures == []
    assert set(attacked.probes) == {200}
    assert max(attacked.delays_s) < MAX_DELAY_S
    assert after < before + MAX_MORE_BYTES
    assert "Traceback" not in server.stderr
    assert server.stop() == 0
