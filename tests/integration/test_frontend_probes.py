"""The answers to each probe in every state of the front-end, over HTTP and gRPC, and the matching answers to calls."""

from __future__ import annotations

import asyncio
import json
import os
import re

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from frontends import Server, failure_of, run, serving, single, tokens, until
from links import FakeLink, count_up
from tgis_server.frontend import entry, launcher_socket
from tgis_server.wire import shard_pb2 as pb
from tgis_server.wire.shard_pb2_grpc import FrontendStub

PROBES = ("startup", "live", "ready")
LOADING = "The model is still loading; shard-0: reading weights. Try again when the health service says SERVING."
KILLED = "shard-1 was killed by SIGKILL."
AS_THE_ORIGINAL = "Request failed during generation: Could not connect to Text Generation server: "


async def failing_probes(server: Server) -> dict[str, str]:
    """The sentences of failing probes; gRPC must agree with HTTP."""
    failures = {}
    for probe in PROBES:
        status, body = await server.get(f"/health/{probe}")
        reply = await HealthStub(server.channel).Check(HealthCheckRequest(service=probe))
        assert (status, reply.status) in [(200, HealthCheckResponse.SERVING), (503, HealthCheckResponse.NOT_SERVING)]
        if status == 503:
            failures[probe] = json.loads(body)["error"]
    return failures


async def tell_end(server: Server, cause: str) -> None:
    async with grpc.aio.insecure_channel(f"unix:{server.run.frontend_socket}") as channel:
        await FrontendStub(channel).End(pb.EndRequest(cause=cause))


def test_probes_and_calls_report_the_progress_of_loading_shards():
    async def test() -> None:
        async with serving(is_ready=False) as server:
            assert await failing_probes(server) == {"startup": LOADING, "ready": LOADING}
            assert await failure_of(server.generate("t1")) == (grpc.StatusCode.UNAVAILABLE, LOADING)

    run(test)


def test_a_serving_server_passes_every_probe_and_describes_itself():
    async def test() -> None:
        async with serving() as server:
            assert await failing_probes(server) == {}
            status, body = await server.get("/health/live")
            facts = json.loads(body)
            assert facts.pop("up_s") > 0
            assert (status, facts.pop("grpc_port")) == (200, server.frontend.state.grpc_port)
            assert facts == {"status": "serving", "model": "words", "mode": "", "calls_in_flight": 0}

    run(test)


def test_a_draining_server_is_started_and_alive_but_not_ready():
    async def test() -> None:
        async with serving() as server:
            call = asyncio.create_task(server.generate("t1"))
            await until(lambda: server.frontend.state.num_calls)
            server.frontend.request_stop()
            await until(lambda: server.frontend.state.is_draining)

            assert await failing_probes(server) == {"ready": "The server is shutting down; use another one."}
            server.frontend.request_immediate_stop()
            assert (await failure_of(call))[0] is grpc.StatusCode.UNAVAILABLE

    run(test)


def test_a_launcher_that_stops_polling_is_frozen_until_it_polls_again(monkeypatch, caplog):
    monkeypatch.setattr(launcher_socket, "CHECK_S", 0.02)

    async def test() -> None:
        async with serving() as server:
            watched = HealthStub(server.channel).Watch(HealthCheckRequest(service="live"))
            assert (await watched.read()).status == HealthCheckResponse.SERVING

            monkeypatch.setattr(launcher_socket, "MAX_SILENCE_S", 0.1)
            assert (await watched.read()).status == HealthCheckResponse.NOT_SERVING
            failures = await failing_probes(server)
            assert list(failures) == ["live"]
            pid = os.getppid()
            assert re.match(rf"The launcher \(pid {pid}\) is frozen.* `kill -CONT {pid}`\.$", failures["live"])

            assert (await server.health(is_onlooker=True)).state == pb.FrontendHealth.SERVING
            assert list(await failing_probes(server)) == ["live"]  # `tgis ps` is no sign of life of the launcher

            monkeypatch.setattr(launcher_socket, "MAX_SILENCE_S", 60)
            await server.health()
            assert (await watched.read()).status == HealthCheckResponse.SERVING

    run(test)
    messages = [record.getMessage() for record in caplog.records if record.name == launcher_socket.__name__]
    assert [message.split(" (")[0] for message in messages] == ["The launcher", "the launcher has resumed"]


def test_the_cause_of_the_groups_end_is_reported_until_the_process_is_stopped():
    async def test() -> None:
        async with serving() as server:
            unary = asyncio.create_task(server.generate("t1"))
            stream = server.stub.GenerateStream(single("t2"))
            await stream.read()
            await until(lambda: len(server.link.submitted) == 2)

            await tell_end(server, KILLED)

            for call in (unary, stream.read()):
                assert await failure_of(call) == (grpc.StatusCode.UNAVAILABLE, AS_THE_ORIGINAL + KILLED)
            assert await failure_of(server.generate("t3")) == (grpc.StatusCode.UNAVAILABLE, KILLED)
            assert await failing_probes(server) == dict.fromkeys(PROBES, KILLED)
            assert await server.get("/health") == (503, json.dumps({"error": KILLED}))
            health = await server.health()
            assert (health.state, health.text) == (pb.FrontendHealth.FAILED, KILLED)

            server.frontend.request_stop()
            await server.life

    run(test)


@pytest.mark.parametrize("is_draining", [False, True])
def test_calls_wait_for_the_cause_when_a_shard_is_lost(is_draining: bool):
    async def test() -> None:
        async with serving() as server:
            call = asyncio.create_task(server.generate("t1"))
            await until(lambda: server.link.submitted)
            if is_draining:
                server.frontend.request_stop()
                await until(lambda: server.frontend.state.is_draining)
            server.link.break_down()
            await until(lambda: server.frontend.state.text == "The engine closed its connection.")

            await tell_end(server, KILLED)
            await tell_end(server, "Only the root cause counts.")

            assert await failure_of(call) == (grpc.StatusCode.UNAVAILABLE, AS_THE_ORIGINAL + KILLED)
            assert await failing_probes(server) == dict.fromkeys(PROBES, KILLED)
            assert not server.life.done()

    run(test)


def test_the_end_is_also_reported_while_shards_load():
    async def test() -> None:
        async with serving(is_ready=False) as server:
            await tell_end(server, KILLED)

            assert await failing_probes(server) == dict.fromkeys(PROBES, KILLED)
            assert await failure_of(server.generate("t1")) == (grpc.StatusCode.UNAVAILABLE, KILLED)

    run(test)


def test_an_error_of_the_front_end_itself_waits_for_no_cause(monkeypatch):
    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(entry, "MAX_LINGER_S", 60)
    monkeypatch.setattr(entry.Router, "_dispatch", fail)

    async def test() -> None:
        async with serving(FakeLink(count_up)) as server:
            code, text = await failure_of(server.generate("t1", **tokens(1)))
            assert (code, text) == (grpc.StatusCode.UNAVAILABLE, AS_THE_ORIGINAL + "AssertionError")
            with pytest.raises(AssertionError):
                await server.life

    run(test)
