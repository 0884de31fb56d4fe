"""At the default log level, neither request texts nor secrets are in anything that a run writes or shows.

A run gets marked words and is made to fail; then everything it left is searched for them.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.generation_pb2_grpc import GenerationServiceStub

Start = Callable[..., Any]  # starts a Server of conftest.py

PROMPT, STOP, PREFIX, ADAPTER, GARBAGE = (f"canary-{name}" for name in ("prompt", "stop", "prefix", "adapter", "bytes"))
TOKEN, USER, WORD = "canary-token", "canary-user", "canary-word"
ID = "a-correlation-id"  # not secret: it shows that the search works
TIMEOUT_S = 20.0


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="t-") as path:
        yield Path(path)


@pytest.mark.parametrize(
    "arguments", [("--rehearse", "--num-shard", "2", "--rehearse-step-ms", "5"), ("--json-output",)]
)
def test_no_request_text_and_no_secret_is_written_or_shown(launch: Start, folder: Path, arguments: tuple[str, ...]):
    server = launch(
        *arguments,
        *("--log-file", str(folder / "log"), "--termination-log", str(folder / "termination-log")),
        HF_TOKEN=TOKEN,
        HUGGING_FACE_HUB_TOKEN=TOKEN,
        OTLP_ENDPOINT=f"http://{USER}:{WORD}@127.0.0.1:9",
    )
    processes = [psutil.Process(pid) for pid in server.pids.values()]
    # The launcher, which is the last, has the user's environment.
    environs = [value for one in processes[:-1] for value in one.environ().values()]
    with grpc.insecure_channel(server.address) as channel:
        outputs = make_calls(GenerationServiceStub(channel), channel)
        shown = [" ".join(process.cmdline()) for process in processes]
        processes[0].kill()  # a shard, so that the run directory stays, with the errors of the other processes
        assert server.wait() == 5

    files = [path for path in (*server.base.rglob("*"), *folder.iterdir()) if path.is_file()]
    everything = "\n".join([*shown, *(path.read_text(errors="replace") for path in files)])
    assert {"stdout", "stderr", "log", "termination-log", "serve.json", "ready.json"} <= {path.name for path in files}
    assert ID in everything
    assert (folder / "termination-log").read_text().startswith("shard-0 was killed by SIGKILL")
    assert [secret for secret in ("canary", *outputs) if secret in everything] == []
    assert TOKEN not in environs


def make_calls(stub: GenerationServiceStub, channel: grpc.Channel) -> list[str]:
    """Make calls that succeed, fail and are cancelled, and one that stays in flight. Returns generated texts."""
    options: dict[str, Any] = {"metadata": [("x-correlation-id", ID)], "timeout": TIMEOUT_S}
    unary = stub.Generate(batch(), **options)
    stream = "".join(frame.text for frame in stub.GenerateStream(single(), **options))
    stub.Tokenize(pb.BatchedTokenizeRequest(requests=[pb.TokenizeRequest(text=PROMPT)]), **options)
    for refused in (batch(prefix_id=PREFIX), batch(adapter_id=ADAPTER), batch(parameters(STOP * 100))):
        with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
            stub.Generate(refused, **options)
    with contextlib.suppress(grpc.RpcError):
        channel.unary_unary("/fmaas.GenerationService/Generate")(b"\xff" + GARBAGE.encode(), **options)
    cancelled = stub.GenerateStream(single(max_new_tokens=1000), **options)
    next(cancelled)
    cancelled.cancel()
    next(stub.GenerateStream(single(max_new_tokens=1000), **options))
    return [max(text.splitlines(), key=len) for text in (unary.responses[0].text, stream)]


def parameters(stop_sequence: str = STOP, max_new_tokens: int = 20) -> pb.Parameters:
    stopping = pb.StoppingCriteria(stop_sequences=[stop_sequence], max_new_tokens=max_new_tokens)
    return pb.Parameters(stopping=stopping)


def batch(params: pb.Parameters | None = None, **fields: str) -> pb.BatchedGenerationRequest:
    requests = [pb.GenerationRequest(text=PROMPT)]
    return pb.BatchedGenerationRequest(requests=requests, params=params or parameters(), **fields)


def single(max_new_tokens: int = 20) -> pb.SingleGenerationRequest:
    params = parameters(max_new_tokens=max_new_tokens)
    return pb.SingleGenerationRequest(request=pb.GenerationRequest(text=PROMPT), params=params)
