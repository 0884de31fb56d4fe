"""Real shard processes with the fake engine, without a launcher or a front-end."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from tokenizers import Tokenizer, models

from tgis_server.host.interpreter import make_command
from tgis_server.options import ServeConfig
from tgis_server.run import Run
from tgis_server.wire import shard_pb2 as pb
from tgis_server.wire import shard_pb2_grpc
from tgis_server.wire.codec import decode_step_result, encode_to_engine
from tgis_server.wire.messages import NO_TOKEN, FinishReason, StepResult, Submit

VOCAB_SIZE = 97
DEADLINE_S = 20


def make_run(tmp_path: Path, *, num_shard: int = 1, **options: object) -> Run:
    """A run of the fake engine with 97 tokens, saved into a run directory."""
    model_dir, run_dir = tmp_path / "model", tmp_path / "run"
    model_dir.mkdir()
    (run_dir / "errors").mkdir(parents=True)
    Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCAB_SIZE)}, unk_token="t0")).save(
        str(model_dir / "tokenizer.json")
    )
    run = Run(
        config=ServeConfig(rehearse=True, **options),
        run_dir=run_dir,
        model_id="fake",
        model_dir=model_dir,
        engine="fake",
        device="cpu",
        dtype="float32",
        num_shard=num_shard,
        max_sequence_length=512,
        is_max_sequence_length_explicit=False,
        max_batch_tokens=64,
        tokenization_workers=1,
    )
    run.save()
    return run


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> object:
    """Poll until ``condition`` is truthy."""
    deadline = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {deadline_s:g} s for {what}"
        time.sleep(0.01)
    return value


@dataclass
class Shards:
    """The processes of one run, killed when the ``with`` block ends."""

    run: Run
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    death_pipe: tuple[int, int] = (-1, -1)

    def __enter__(self) -> Shards:
        self.death_pipe = os.pipe()
        self.processes = [self._start(rank) for rank in range(self.run.num_shard)]
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for end in self.death_pipe:
            with contextlib.suppress(OSError):
                os.close(end)

    def _start(self, rank: int) -> subprocess.Popen[bytes]:
        command = make_command("-m", "tgis_server.child", f"shard-{rank}", "--run", str(self.run.file))
        command += ("--death-fd", str(self.death_pipe[0]), "--parent", str(os.getpid()))
        return subprocess.Popen(command, pass_fds=[self.death_pipe[0]], process_group=0)

    @contextlib.contextmanager
    def stub(self, rank: int = 0) -> Iterator[shard_pb2_grpc.ShardStub]:
        with grpc.insecure_channel(f"unix:{self.run.shard_socket(rank)}") as channel:
            yield shard_pb2_grpc.ShardStub(channel)

    def health(self, rank: int = 0) -> pb.HealthReply:
        with self.stub(rank) as stub:
            return stub.Health(pb.HealthRequest(), wait_for_ready=True, timeout=DEADLINE_S)

    def wait_until_serving(self) -> None:
        for rank in range(self.run.num_shard):
            wait_until(lambda rank=rank: self.health(rank).state == pb.HealthReply.SERVING, f"shard {rank} to serve")


class Session:
    """The front-end's side of a Session, for tests."""

    def __init__(self, stub: shard_pb2_grpc.ShardStub) -> None:
        self._outgoing: queue.SimpleQueue[pb.ToEngine | None] = queue.SimpleQueue()
        self.call = stub.Session(iter(self._outgoing.get, None))

    def send(self, *submits: Submit, cancels: tuple[int, ...] = ()) -> None:
        self._outgoing.put(encode_to_engine(submits, cancels))

    def results(self) -> Iterator[StepResult]:
        for message in self.call:
            yield decode_step_result(message)

    def collect(self, *request_ids: int) -> tuple[dict[int, list[int]], dict[int, tuple[str, str]]]:
        """Wait until all these requests have ended; return tokens and failures (status, text) by request."""
        tokens: dict[int, list[int]] = {request_id: [] for request_id in request_ids}
        open_ids, failures = set(request_ids), {}
        for result in self.results():
            for request_id, token_id, reason in zip(
                result.request_ids, result.token_ids, result.finish_reasons, strict=True
            ):
                if token_id != NO_TOKEN:
                    tokens[request_id].append(token_id)
                if reason is not FinishReason.NOT_FINISHED:
                    open_ids.discard(request_id)
            failures |= {failure.request_id: (failure.status, failure.text) for failure in result.failures}
            open_ids -= failures.keys()
            if not open_ids:
                return tokens, failures
        raise AssertionError("the session ended early")

    def close(self) -> None:
        self._outgoing.put(None)
