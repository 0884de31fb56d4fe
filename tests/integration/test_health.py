"""Answers to probes in every state of a server: `grpc.health.v1`, `/health` and `/metrics` of real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from prometheus_client.parser import text_string_to_metric_families

from frontends import run, serving, until
from shards import wait_until

Start = Callable[..., Any]  # starts a Server of conftest.py

REHEARSAL = ("--rehearse", "--host", "127.0.0.1")
SERVICES = ("", "fmaas.GenerationService")
ANSWER_S = 2.0  # until a probe is answered, on a busy machine
END_S = 10.0  # from the freeze of a shard to the end of the group
SHUTTING_DOWN = (503, '{"error": "The server is shutting down; use another one."}')


class Probes:
    """A client that only probes."""

    def __init__(self, grpc_address: str, http_address: str) -> None:
        self._http = http_address
        self._channel = grpc.insecure_channel(grpc_address)
        self._stub = HealthStub(self._channel)
        self.watched: list[str] = []  # the statuses that Watch has sent
        self._watches: list[threading.Thread] = []

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self._http + path, timeout=ANSWER_S) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def check(self, service: str = "") -> str:
        reply = self._stub.Check(HealthCheckRequest(service=service), timeout=ANSWER_S)
        return HealthCheckResponse.ServingStatus.Name(reply.status)

    def metrics(self) -> dict[str, float]:
        families = text_string_to_metric_families(self.get("/metrics")[1])
        return {sample.name: sample.value for family in families for sample in family.samples}

    def ask_all(self) -> tuple[tuple[int, str], list[str]]:
        """HTTP and gRPC health; also checks that metrics can be read."""
        assert self.metrics()["tgi_server_info"] == 1
        return self.get("/health"), [self.check(service) for service in SERVICES]

    def watch(self, service: str = "") -> grpc.Call:
        """Start a Watch that records every status, and wait for the first one."""
        call = self._stub.Watch(HealthCheckRequest(service=service))

        def read() -> None:
            try:
                for reply in call:
                    self.watched.append(HealthCheckResponse.ServingStatus.Name(reply.status))
            except grpc.RpcError:
                pass  # the call or the server has ended

        num_known = len(self.watched)
        self._watches.append(threading.Thread(target=read))
        self._watches[-1].start()
        wait_until(lambda: len(self.watched) > num_known, "the first status")
        return call

    def wait_for_ends(self) -> None:
        """Wait until every Watch has ended."""
        for thread in self._watches:
            thread.join(END_S)
            assert not thread.is_alive(), "a Watch has not ended"

    def close(self) -> None:
        self._channel.close()
        self.wait_for_ends()


@contextmanager
def probing(grpc_address: str, http_address: str) -> Iterator[Probes]:
    probes = Probes(grpc_address, http_address)
    try:
        yield probes
    finally:
        probes.close()


def probes_of(server: Any) -> Any:
    return probing(server.address, server.facts["http"])


def test_a_loading_server_reports_its_progress(start: Start):
    server = start(*REHEARSAL, "--fault", "shard0:hang@load")
    server.wait_for_line(r"listening: gRPC")
    grpc_address, http_address = re.findall(r"127\.0\.0\.1:\d+", server.stderr)[-2:]

    with probing(grpc_address, f"http://{http_address}") as probes:
        wait_until(lambda: "pretending" in probes.get("/health")[1], "the shard's progress")
        (status, body), serving = probes.ask_all()

    assert (status, serving) == (503, ["NOT_SERVING"] * 2)
    assert json.loads(body) == {
        "error": "The model is still loading; shard-0: pretending to read weights. "
        "Try again when the health service says SERVING."
    }


def test_an_idle_server_is_serving_and_knows_its_services(launch: Start):
    with probes_of(launch(*REHEARSAL)) as probes:
        assert probes.ask_all() == ((200, ""), ["SERVING"] * 2)
        with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
            probes.check("fmaas.NoSuchService")
        probes.watch("fmaas.NoSuchService")
        assert probes.watched == ["SERVICE_UNKNOWN"]


@pytest.mark.serial
def test_probes_of_a_busy_server_are_answered_promptly(launch: Start):
    server = launch(*REHEARSAL, "--rehearse-step-ms", "100", "--num-shard", "2")
    load = server.start_load(num_streams=64, max_new_tokens=30)

    with probes_of(server) as probes:
        answers = [probes.ask_all() for _ in range(5)]
        num_running = probes.metrics()["tgi_batch_current_size"]

    assert answers == [((200, ""), ["SERVING"] * 2)] * 5
    assert num_running > 0
    assert load.join() == ["MAX_TOKENS"] * 64


def test_a_draining_server_is_not_ready_and_says_why_and_finishes_running_calls(launch: Start):
    server = launch(*REHEARSAL, "--rehearse-step-ms", "50")
    load = server.start_load(num_streams=4, max_new_tokens=60)

    with probes_of(server) as probes:
        leaver = probes.watch()
        probes.watch()
        leaver.cancel()  # does not affect the other Watch
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: probes.watched[-1] == "NOT_SERVING", "the change")
        answers = probes.ask_all()
        is_draining = probes.metrics()["tgi_draining"]
        ends = load.join()

    assert probes.watched == ["SERVING", "SERVING", "NOT_SERVING"]
    assert (answers, is_draining) == ((SHUTTING_DOWN, ["NOT_SERVING"] * 2), 1)
    assert ends == ["MAX_TOKENS"] * 4
    assert server.wait() == 0


def answers_until_the_end(server: Any, probes: Probes) -> list[tuple[int, str]]:
    """The distinct answers of ``/health`` in order, until the front-end or its port is gone."""
    answers: list[tuple[int, str]] = []
    while server.process.poll() is None:
        try:
            answer = probes.get("/health")
        except OSError:
            break
        if answers[-1:] != [answer]:
            answers.append(answer)
        time.sleep(0.02)
    return answers


def assert_the_end_was_announced(answers: list[tuple[int, str]], probes: Probes, cause: str) -> None:
    """Check that Watch got the change before the end and HTTP at most got the cause, and neither saw a recovery.

    Between the end of a shard and the launcher's message, the front-end knows only that the connection broke.
    """
    assert answers[0] == (200, "")
    assert {status for status, _ in answers[1:]} <= {503}
    errors = [json.loads(body)["error"] for _, body in answers[1:]]
    if errors and errors[0].startswith("The connection to the engine broke: "):
        del errors[0]
    assert errors in ([], [cause])
    probes.wait_for_ends()
    assert probes.watched == ["SERVING", "NOT_SERVING"]


@pytest.mark.serial
@pytest.mark.parametrize(("victim", "num_streams"), [("shard-0", 0), ("shard-1", 4)])
def test_a_frozen_shard_ends_the_group_in_time_and_is_named(launch: Start, victim: str, num_streams: int):
    server = launch(*REHEARSAL, "--rehearse-step-ms", "20", "--num-shard", "2")
    load = server.start_load(num_streams, max_new_tokens=900)
    with probes_of(server) as probes:
        probes.watch()
        frozen_at = time.monotonic()
        os.kill(server.pids[victim], signal.SIGSTOP)
        answers = answers_until_the_end(server, probes)
        exit_code, took_s = server.wait(), time.monotonic() - frozen_at

        assert exit_code == 5
        assert server.last_line.startswith(f"{victim} was stopped by a signal")
        assert took_s < END_S
        server.wait_until_gone(within_s=0)
        assert_the_end_was_announced(answers, probes, server.last_line)
    assert load.join() == ["UNAVAILABLE"] * num_streams


def test_probes_get_the_cause_while_calls_get_their_status():
    async def test() -> None:
        async with serving() as server:
            with server.frontend.state.call():
                server.shards.die("Shard 1 no longer answers.")
                await until(lambda: not server.frontend.state.is_serving)

                assert await server.get("/health") == (503, '{"error": "Shard 1 no longer answers."}')
                assert (await server.get("/metrics"))[0] == 200
                reply = await HealthStub(server.channel).Check(HealthCheckRequest())
                assert reply.status == HealthCheckResponse.NOT_SERVING

    run(test)


def test_a_step_that_hangs_on_a_follower_ends_the_group_and_is_reported(launch: Start):
    server = launch(*REHEARSAL, "--num-shard", "2", "--fault", "shard1:hang@step2", "--step-timeout", "1")
    with probes_of(server) as probes:
        probes.watch()
        server.run("generate", "Once upon a time")
        answers = answers_until_the_end(server, probes)

        assert server.wait() == 5
        [cause] = re.findall(r"^frontend: (Shard 1 is hung: its current step has run for .*)$", server.last_line)
        assert_the_end_was_announced(answers, probes, cause)
