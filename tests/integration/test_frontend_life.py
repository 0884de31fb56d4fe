"""Ports, readiness, probes, metrics, drain and the death of the engine."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from frontends import batch, failure_of, run, serving, single, tokens, until
from links import FakeLink, count_up, step
from tgis_server.errors import PeerLost, UsageError
from tgis_server.frontend import entry
from tgis_server.wire import shard_pb2, shard_pb2_grpc
from tgis_server.wire.messages import FinishReason

SERVICE = "fmaas.GenerationService"
GO_ON, MAX = FinishReason.NOT_FINISHED, FinishReason.MAX_TOKENS
Health = health_pb2.HealthCheckResponse


async def health_of(server, service: str = SERVICE) -> int:
    stub = health_pb2_grpc.HealthStub(server.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


# Start


def test_probes_and_calls_report_loading_until_the_engine_is_ready():
    async def test() -> None:
        async with serving(is_ready=False) as server:
            code, text = await failure_of(server.generate("t1"))
            http = await server.get("/health")
            launcher = await server.health()

            assert (code, await health_of(server)) == (grpc.StatusCode.UNAVAILABLE, Health.NOT_SERVING)
            assert text.startswith("The model is still loading")
            assert http == (503, json.dumps({"error": text}))
            assert (launcher.state, launcher.text) == (shard_pb2.FrontendHealth.STARTING, text)
            assert (await server.get("/metrics"))[0] == 200

    run(test)


def test_a_ready_server_reports_it_everywhere():
    async def test() -> None:
        async with serving() as server:
            launcher = await server.health()

            assert await server.get("/health") == (200, "")
            assert [await health_of(server, name) for name in ("", SERVICE)] == [Health.SERVING] * 2
            assert launcher == shard_pb2.FrontendHealth(
                state="SERVING",
                grpc_port=server.frontend.state.grpc_port,
                http_port=server.frontend.state.http_port,
                phases=launcher.phases,
                loop_age_s=launcher.loop_age_s,
            )
            assert [phase.name for phase in launcher.phases] == ["starting", "waiting for the shards", "serving"]
            assert stat.S_IMODE(server.run.frontend_socket.stat().st_mode) == 0o600

    run(test)


def test_while_the_event_loop_is_stuck_the_launcher_is_told_for_how_long():
    def ask_until_old(path: Path) -> list[float]:
        ages = [0.0]
        with grpc.insecure_channel(f"unix:{path}") as channel:
            stub = shard_pb2_grpc.FrontendStub(channel)
            while ages[-1] < 1.5:
                ages.append(stub.Health(shard_pb2.HealthRequest(), timeout=5).loop_age_s)
        return ages

    async def test() -> None:
        async with serving() as server:
            with ThreadPoolExecutor(1) as pool:
                ages = pool.submit(ask_until_old, server.run.frontend_socket).result(10)  # blocks the event loop
            assert ages == sorted(ages)
            await until(lambda: server.frontend.state.launcher_silence == "")
            while (await server.health()).loop_age_s >= 1.5:
                pass

    run(test)


def test_reflection_lists_the_service():
    async def test() -> None:
        async with serving() as server:
            stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
            call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
            [answer] = [answer async for answer in call]

            names = {service.name for service in answer.list_services_response.service}
            assert {SERVICE, "grpc.health.v1.Health"} <= names

    run(test)


@pytest.mark.parametrize(("option", "flag"), [("grpc_port", "--grpc-port"), ("port", "--port")])
def test_a_port_in_use_ends_startup_at_once_with_advice(option, flag):
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            with pytest.raises(UsageError, match=rf"Port {port} is already in use by .*{flag}"):
                async with serving(is_ready=False, **{option: port}):
                    pass

    run(test)


def test_an_address_of_another_machine_is_refused():
    async def test() -> None:
        with pytest.raises(UsageError, match=r"--host 192\.0\.2\.1 is not an address of this machine"):
            async with serving(is_ready=False, host="192.0.2.1"):
                pass

    run(test)


def test_metrics_can_be_scraped_and_count_the_calls():
    async def test() -> None:
        async with serving(FakeLink(count_up)) as server:
            await server.generate("t1", "t2", **tokens(2))
            await failure_of(server.generate("t1", **tokens(10**6)))
            status, text = await server.get("/metrics")

            assert status == 200
            assert list(text_string_to_metric_families(text))
            lines = text.splitlines()
            for line in (
                'tgi_request_count{kind="batch"} 1.0',
                'tgi_request_count_total{kind="batch"} 1.0',
                'tgi_request_count{kind="single"} 1.0',
                "tgi_request_input_count 3.0",
                'tgi_request_success{kind="batch",stop_reason="MAX_TOKENS"} 2.0',
                'tgi_request_failure{err="validation"} 1.0',
                "tgi_request_generated_tokens_sum 4.0",
                "tgi_inter_token_duration_count 2.0",
            ):
                assert line in lines

    run(test)


def test_the_entry_is_imported_quickly_and_without_torch():
    code = "import sys; import tgis_server.frontend.entry; print('torch' in sys.modules or 'aiohttp' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert output.stdout.strip() == "False"


# End


def test_a_drain_finishes_calls_in_flight_and_refuses_new_ones():
    async def test() -> None:
        async with serving() as server:
            call = asyncio.create_task(server.generate("t1", **tokens(1)))
            await until(lambda: server.link.submitted)
            server.frontend.request_stop()
            await until(lambda: not server.frontend.state.is_accepting)

            refused = await failure_of(server.generate("t2"))
            health = await server.health()
            http, _ = await server.get("/health")
            assert refused == (grpc.StatusCode.UNAVAILABLE, "The server is shutting down; use another one.")
            assert (health.state, health.in_flight, http) == (shard_pb2.FrontendHealth.DRAINING, 1, 503)
            assert await health_of(server) == Health.NOT_SERVING

            server.link.give(step((1, 9, MAX)))
            assert (await call).responses[0].text == " t9"
            await server.life

    run(test)


def test_during_the_drain_delay_calls_are_still_accepted():
    async def test() -> None:
        async with serving(FakeLink(count_up), drain_delay=0.3) as server:
            server.frontend.request_stop()
            await until(lambda: not server.frontend.state.is_serving)

            assert len((await server.generate("t1", **tokens(1))).responses) == 1
            assert await health_of(server) == Health.NOT_SERVING
            await server.life

    run(test)


@pytest.mark.parametrize("is_hurried", [False, True])
def test_calls_that_outlast_the_drain_end_with_unavailable(is_hurried):
    async def test() -> None:
        async with serving(drain_timeout=60 if is_hurried else 0.2) as server:
            call = asyncio.create_task(server.generate("t1"))
            await until(lambda: server.link.submitted)
            server.frontend.request_stop()
            if is_hurried:
                server.frontend.request_immediate_stop()

            assert await failure_of(call) == (
                grpc.StatusCode.UNAVAILABLE,
                "The server is shutting down; use another one.",
            )
            await server.life

    run(test)


def test_a_signal_before_the_engine_is_ready_ends_the_server():
    async def test() -> None:
        async with serving(is_ready=False) as server:
            server.frontend.request_stop()
            await server.life

    run(test)


@pytest.fixture
def _no_cause_arrives(monkeypatch):
    """The launcher sends no cause, and the wait for it is short."""
    monkeypatch.setattr(entry, "CAUSE_WAIT_S", 0.05)
    monkeypatch.setattr(entry, "MAX_LINGER_S", 0.1)


@pytest.mark.serial
@pytest.mark.usefixtures("_no_cause_arrives")
def test_a_broken_link_ends_every_call_with_unavailable_and_ends_the_process():
    async def test() -> None:
        async with serving() as server:
            unary = asyncio.create_task(server.generate("t1", "t2"))
            stream = server.stub.GenerateStream(single("t3"))
            await stream.read()
            await until(lambda: len(server.link.submitted) == 3)
            began = time.monotonic()
            server.link.break_down()

            for call in (unary, stream.read()):
                code, text = await failure_of(call)
                assert code is grpc.StatusCode.UNAVAILABLE
                assert "Could not connect to Text Generation server" in text
            with pytest.raises(PeerLost, match="closed its connection"):
                await server.life
            assert time.monotonic() - began < 1.0

    run(test)


@pytest.mark.usefixtures("_no_cause_arrives")
def test_a_dead_shard_ends_every_call_with_unavailable_and_ends_the_process():
    async def test() -> None:
        async with serving() as server:
            call = asyncio.create_task(server.stub.Generate(batch("t1")).code())
            await until(lambda: server.link.submitted)
            server.shards.die()

            assert await call is grpc.StatusCode.UNAVAILABLE
            with pytest.raises(PeerLost, match="Shard 0 no longer answers"):
                await server.life
            assert server.frontend.state.serving_state.name == "FAILED"

    run(test)
