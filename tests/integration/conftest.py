"""Starts the real `tgis launch` on free ports, in a separate run directory, and waits until it is ready::

    def test_something(launch):
        server = launch("--rehearse", "--num-shard", "2")
        server.address                      # "127.0.0.1:41234"
        server.run("generate", "Hello")     # `tgis generate --url ADDRESS Hello`
        server.start_load(4, 100)           # four streams of 100 tokens, all of which have started
        server.stop()                       # SIGTERM; returns the exit code

Tests use the helpers only through fixtures: several directories have a conftest, so importing one is ambiguous.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from tgis_server.wire import generation_pb2 as pb
from tgis_server.wire.generation_pb2_grpc import GenerationServiceStub

BIN = Path(sys.executable).parent
DEADLINE_S = 20.0


def wait_until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Poll until ``condition`` is truthy and return its value."""
    deadline = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {deadline_s} s for {what}"
        time.sleep(0.01)
    return value


def clean_environ() -> dict[str, str]:
    """The environment, without variables that would change options or colours."""
    kept = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name in kept}


@dataclass
class Server:
    """A `tgis launch` that a test has started."""

    base: Path  # contains run directories, and files with the outputs of the process
    process: subprocess.Popen[bytes]
    facts: dict[str, Any] = field(default_factory=dict)  # ready.json

    @property
    def address(self) -> str:
        return str(self.facts["grpc"])

    @property
    def pids(self) -> dict[str, int]:
        """The pids of all processes by name, the launcher's included."""
        return {**self.facts["pids"], "launcher": self.process.pid}

    @property
    def stdout(self) -> str:
        return (self.base / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self.base / "stderr").read_text()

    @property
    def last_line(self) -> str:
        return self.stderr.rstrip("\n").rsplit("\n", 1)[-1]

    @property
    def run_dir(self) -> Path | None:
        return next(iter(sorted(self.base.glob("tgis-*"))), None)

    def wait_until_ready(self) -> Server:
        def read_ready() -> dict[str, Any] | None:
            assert self.process.poll() is None, f"the launcher ended:\n{self.stderr}"
            file = self.run_dir / "ready.json" if self.run_dir else None
            return json.loads(file.read_text()) if file and file.exists() else None

        self.facts = wait_until(read_ready, "the server to be ready")
        return self

    def wait_for_new_run(self, old_pids: dict[str, int]) -> None:
        """Wait until the launcher has restarted its group and the new one is ready."""

        def read_ready() -> dict[str, Any] | None:
            found = [json.loads(file.read_text()) for file in self.base.glob("tgis-*/ready.json")]
            return next((facts for facts in found if not set(facts["pids"].values()) & set(old_pids.values())), None)

        self.facts = wait_until(read_ready, "the group to be restarted")

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        """Wait for the launcher's exit code."""
        return self.process.wait(timeout_s)

    def run(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a `tgis` command against this server until it ends."""
        return subprocess.run(
            [BIN / "tgis", command, "--url", self.address, *arguments],
            env=clean_environ(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def start_load(self, num_streams: int, max_new_tokens: int) -> Load:
        """Start streams, and return when each has received its first token."""
        return Load(self.address).start(num_streams, max_new_tokens)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait_for_line(self, pattern: str) -> None:
        """Wait until a line on stderr matches."""
        wait_until(lambda: re.search(pattern, self.stderr, re.MULTILINE), f"a line like {pattern}")

    def wait_for_children(self, count: int) -> list[int]:
        """Wait until the launcher has ``count`` children, and return their pids."""
        return list(wait_until(lambda: pids if len(pids := self.child_pids()) == count else None, f"{count} children"))

    def child_pids(self) -> list[int]:
        """The processes that the launcher has started so far."""
        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]

    def wait_until_gone(self, within_s: float, pids: Iterable[int] = ()) -> None:
        """Wait until the given processes have ended, by default all processes of a ready server."""
        expected = list(pids) or list(self.pids.values())
        wait_until(lambda: all(map(is_gone, expected)), "every process to be gone", within_s)

    def kill_all(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for pid in self.child_pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


def is_gone(pid: int) -> bool:
    """Whether a process has ended. A zombie counts as gone, because only its parent can make it disappear."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Start `tgis launch` with free ports and the given arguments, without waiting until it is ready."""
    yield from starting()


@pytest.fixture(scope="module")
def start_shared() -> Iterator[Callable[..., Server]]:
    """The same, for a server that several tests of a module share."""
    yield from starting()


def starting() -> Iterator[Callable[..., Server]]:
    """Yield a function that starts servers; end them all when the generator resumes."""
    servers: list[Server] = []

    def start_server(
        *arguments: str,
        script: str = "tgis launch",
        output: int | None = None,
        cwd: Path | None = None,
        **environ: str,
    ) -> Server:
        base = Path(tempfile.mkdtemp(prefix="t-"))  # short, as socket paths must be; pytest's own are too long
        words = script.format(base=base).split()
        command = [BIN / words[0], *words[1:], *arguments]
        with (base / "stdout").open("wb") as stdout, (base / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                command,
                env=clean_environ() | {"GRPC_PORT": "0", "PORT": "0", "TGIS_RUN_DIR": str(base)} | environ,
                stdin=subprocess.DEVNULL,
                stdout=output or stdout,
                stderr=output or stderr,
                start_new_session=True,
                cwd=cwd,
            )
        servers.append(Server(base, process))
        return servers[-1]

    yield start_server
    for server in servers:
        server.kill_all()
        shutil.rmtree(server.base, ignore_errors=True)


@pytest.fixture
def launch(start: Callable[..., Server]) -> Callable[..., Server]:
    """Start `tgis launch` and wait until it is ready."""

    def launch_server(*arguments: str, **options: Any) -> Server:
        return start(*arguments, **options).wait_until_ready()

    return launch_server


@dataclass
class Load:
    """Streams that run in threads, and how each one ended."""

    address: str
    statuses: list[str] = field(default_factory=list)  # the StopReason, or the status of the error
    num_started: int = 0  # streams that have received a token
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self, num_streams: int, max_new_tokens: int) -> Load:
        self._threads = [threading.Thread(target=self._stream, args=(max_new_tokens,)) for _ in range(num_streams)]
        for thread in self._threads:
            thread.start()
        wait_until(lambda: self.num_started == num_streams, "the first token of every stream")
        return self

    def join(self) -> list[str]:
        """Wait for all streams; returns how each one ended."""
        for thread in self._threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive(), "a stream has not ended"
        return self.statuses

    def _stream(self, max_new_tokens: int) -> None:
        has_token, reason = False, pb.NOT_FINISHED
        request = pb.SingleGenerationRequest(
            request=pb.GenerationRequest(text="Once upon a time"),
            params=pb.Parameters(
                stopping=pb.StoppingCriteria(min_new_tokens=max_new_tokens, max_new_tokens=max_new_tokens)
            ),
        )
        with grpc.insecure_channel(self.address) as channel:
            try:
                for frame in GenerationServiceStub(channel).GenerateStream(request, timeout=DEADLINE_S):
                    reason = frame.stop_reason
                    if frame.generated_token_count and not has_token:
                        has_token = True
                        self.num_started += 1
                self.statuses.append(pb.StopReason.Name(reason))
            except grpc.RpcError as error:
                self.statuses.append(error.code().name)
