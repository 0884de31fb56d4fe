"""The front-end as the launcher runs it: a separate process, with real shards and the fake engine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from shards import Shards, make_run, wait_until
from tgis_server.host.interpreter import make_command
from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire import shard_pb2, shard_pb2_grpc
from tgis_server.wire.generation_pb2_grpc import GenerationServiceStub

DEADLINE_S = 20


@contextlib.contextmanager
def group(tmp_path: Path, **options: object) -> Iterator[tuple[Shards, subprocess.Popen[bytes], GenerationServiceStub]]:
    """Shards and a serving front-end."""
    run = make_run(tmp_path, host="127.0.0.1", grpc_port=0, port=0, **options)
    with Shards(run) as shards:
        command = make_command("-m", "tgis_server.child", "frontend", "--run", str(run.file))
        command += ("--death-fd", str(shards.death_pipe[0]), "--parent", str(os.getpid()))
        frontend = subprocess.Popen(command, pass_fds=[shards.death_pipe[0]], process_group=0)
        try:
            with grpc.insecure_channel(f"unix:{run.frontend_socket}") as channel:
                stub = shard_pb2_grpc.FrontendStub(channel)

                def ready() -> shard_pb2.FrontendHealth | None:
                    health = stub.Health(shard_pb2.HealthRequest(), wait_for_ready=True, timeout=DEADLINE_S)
                    return health if health.state == shard_pb2.FrontendHealth.SERVING else None

                port = wait_until(ready, "the front-end to serve").grpc_port
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield shards, frontend, GenerationServiceStub(channel)
        finally:
            frontend.kill()
            frontend.wait()


def stream_of(stub: GenerationServiceStub, num_tokens: int) -> Iterator[pb.GenerationResponse]:
    stopping = pb.StoppingCriteria(max_new_tokens=num_tokens)
    return stub.GenerateStream(
        pb.SingleGenerationRequest(request=pb.GenerationRequest(text="t5"), params=pb.Parameters(stopping=stopping))
    )


def test_a_request_passes_through_all_processes_and_sigterm_ends_cleanly(tmp_path):
    with group(tmp_path) as (_, frontend, stub):
        text = "".join(frame.text for frame in stream_of(stub, 4))
        frontend.send_signal(signal.SIGTERM)

        assert text == " t6 t13 t27 t55"  # each id is the sum of all ids so far plus their number
        assert frontend.wait(DEADLINE_S) == 0


def test_the_death_of_a_shard_ends_calls_with_unavailable_and_then_ends_the_process(tmp_path):
    with group(tmp_path, rehearse_step_ms=20.0) as (shards, frontend, stub):
        frames = stream_of(stub, 400)
        next(frames)
        shards.processes[0].kill()

        with pytest.raises(grpc.RpcError) as raised:
            list(frames)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert frontend.wait(DEADLINE_S) == 5
        error = json.loads((shards.run.errors_dir / "frontend.json").read_text())
        assert (error["is_secondary"], error["is_expected"]) == (True, True)


def test_a_drain_finishes_running_streams(tmp_path):
    with group(tmp_path, rehearse_step_ms=10.0) as (_, frontend, stub):
        frames = stream_of(stub, 30)
        first = next(frames)
        frontend.send_signal(signal.SIGTERM)

        last = [first, *frames][-1]
        assert (last.generated_token_count, last.stop_reason) == (30, pb.MAX_TOKENS)
        assert frontend.wait(DEADLINE_S) == 0
