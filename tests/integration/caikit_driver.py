"""Drives the TGIS backend as a Caikit runtime does; runs in a separate environment with caikit-tgis-backend.

``python caikit_driver.py MODEL_DIR REPORT``: start the launcher as a local TGIS, generate, kill a shard, generate
again, stop, and write a report as JSON.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path

import grpc
import psutil
from caikit_tgis_backend import TGISBackend
from caikit_tgis_backend.protobufs import generation_pb2 as pb

DEADLINE_S = 40.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def generate(client) -> str:
    request = pb.BatchedGenerationRequest(
        requests=[pb.GenerationRequest(text="Once upon a time")],
        params=pb.Parameters(stopping=pb.StoppingCriteria(max_new_tokens=5)),
    )
    return client.Generate(request).responses[0].text


def generate_after_recovery(client) -> str:
    """Retry until the new server, which the backend starts after a failed call, is ready."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            return generate(client)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def main(model_dir: str, report: str) -> None:
    local = {"grpc_port": free_port(), "http_port": free_port(), "load_timeout": DEADLINE_S, "health_poll_delay": 0.1}
    backend = TGISBackend({"local": local})
    client = backend.get_client(model_dir)
    text = generate(client)

    first = backend._managed_tgis._tgis_proc
    shard = next(child for child in psutil.Process(first.pid).children() if "shard-0" in child.cmdline())
    shard.kill()
    recovered = generate_after_recovery(client)

    second = backend._managed_tgis._tgis_proc
    processes = psutil.Process(second.pid).children(recursive=True)
    backend.unload_model(model_dir)
    exit_codes = [first.wait(DEADLINE_S), second.wait(DEADLINE_S)]
    left = [process.pid for process in processes if process.is_running()]
    facts = {"text": text, "recovered": recovered, "exit_codes": exit_codes, "left": left}
    Path(report).write_text(json.dumps(facts))


main(*sys.argv[1:])
