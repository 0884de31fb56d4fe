"""Every signal to every process in every phase: the exit code, the root cause and the fate of calls are as documented,
and nothing is left behind.

Each cell is a separate test; a few run at once because they mostly wait. The table in docs/lifecycle.md documents the
behaviour. `make test` runs the cells that differ most: signals to any process under load, and to the launcher in any
phase, but only one of two with the same end; `make acceptance` runs the others. ``TGIS_KILL_MATRIX=native`` replaces
the rehearsal with the demo model.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from shards import wait_until

pytestmark = pytest.mark.serial

GONE_S = 2.0  # from a signal to the end of the last process
NOTICED_S = 10.0  # from a SIGSTOP to its consequences
NUM_STREAMS = 3
VICTIMS = ("launcher", "frontend", "shard-0", "shard-1")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGSTOP)
PHASES = ("loading", "idle", "under load", "draining")


def differs(victim: str, number: signal.Signals, phase: str) -> bool:
    """Whether the cell differs enough from the others for `make test`."""
    match victim, number:
        case "launcher", signal.SIGINT:  # ends as with SIGTERM
            return phase == "under load"
        case "launcher", _:
            return True
        case "shard-0", signal.SIGTERM | signal.SIGINT:  # ignored, as by shard-1
            return False
        case _:
            return phase == "under load"


CELLS = [
    pytest.param(
        (victim, number, phase),
        marks=[] if differs(victim, number, phase) else pytest.mark.acceptance,
        id=f"{victim}-{number.name}-{phase}",
    )
    for victim in VICTIMS
    for number in SIGNALS
    for phase in PHASES
]

IS_NATIVE = os.environ.get("TGIS_KILL_MATRIX") == "native"
ENGINE = ("--allow-faults",) if IS_NATIVE else ("--rehearse", "--rehearse-step-ms", "20")
AT_ONCE = 1 if IS_NATIVE else 6  # servers that run at once
OPTIONS = (*ENGINE, "--num-shard", "2", "--host", "127.0.0.1")
FINISHED, CUT = "MAX_TOKENS", "UNAVAILABLE"


@dataclass(frozen=True)
class Expected:
    """The expected end of a cell."""

    exit_code: int = 0
    cause: str = ""  # a pattern for the last line if the exit code is not 0
    streams: str = FINISHED  # how the streams in flight end
    survives: bool = False  # the server keeps running, and the test stops it
    is_noticed: bool = False  # /health/live reports the stopped process until it is continued


def expect(victim: str, number: signal.Signals, phase: str) -> Expected:
    """The documented behaviour."""
    failed = Expected(5, f"^{victim} was killed by SIGKILL", CUT)
    match victim, number:
        case "launcher", signal.SIGKILL:
            return Expected(-signal.SIGKILL, streams=CUT)
        case "launcher", signal.SIGSTOP:
            return Expected(survives=True, is_noticed=True)
        case "launcher", _:
            return Expected(streams=CUT if phase == "draining" else FINISHED)  # a second signal skips the drain
        case _, signal.SIGKILL:
            return failed
        case _, signal.SIGSTOP:
            return Expected(5, f"^{victim} was stopped by a signal", CUT)
        case "frontend", signal.SIGTERM if phase == "draining":
            return Expected()  # it is already draining
        case "frontend", signal.SIGINT if phase == "draining":
            return Expected(streams=CUT)  # like the launcher's second signal
        case "frontend", _:
            return Expected(
                5,
                "^frontend (was ended by SIG|ended without being asked to)",
                CUT if number == signal.SIGINT else FINISHED,
            )
        case _ if phase == "loading":
            return Expected(5, f"^{victim} was ended by {number.name} from outside", CUT)
        case _:
            return Expected(survives=True)  # a serving shard exits only when the front-end does


class Cell:
    """One server and what happens to one of its processes."""

    def __init__(self, victim: str, number: signal.Signals, phase: str, start: Callable[..., Any]) -> None:
        self.victim, self.number, self.phase = victim, number, phase
        self.expected = expect(victim, number, phase)
        arguments = [*OPTIONS, "--fault", "shard1:hang@load"] if phase == "loading" else OPTIONS
        self.server = start(*arguments)
        self.load: Any = None

    def run(self) -> None:
        pids = self.reach_phase()
        os.kill(pids[self.victim], self.number)
        signalled_at = time.monotonic()
        if self.expected.is_noticed:
            self.assert_noticed(pids["frontend"], signalled_at)
            os.kill(pids[self.victim], signal.SIGCONT)
            wait_until(lambda: self.is_live() or self.server.process.poll() is not None, "life after SIGCONT")
        if self.expected.survives and self.phase != "draining":
            self.assert_streams()
            self.server.process.send_signal(signal.SIGTERM)
            signalled_at = time.monotonic()
        within_s = NOTICED_S if self.number == signal.SIGSTOP else GONE_S
        if self.expected.streams == FINISHED and self.load:
            self.assert_streams()
            signalled_at = time.monotonic()
        exit_code = self.server.wait()
        self.server.wait_until_gone(max(0.0, signalled_at + within_s - time.monotonic()), pids.values())
        self.assert_streams()
        assert exit_code == self.expected.exit_code, self.server.stderr
        assert re.search(self.expected.cause, self.server.last_line), self.server.last_line
        self.assert_directory()

    def reach_phase(self) -> dict[str, int]:
        """Bring the server into the cell's phase; returns its processes."""
        server = self.server
        if self.phase == "loading":
            server.wait_for_line(r"listening: gRPC")
            pids = server.wait_for_children(3)
            names = {pid: name for pid in pids for name in VICTIMS if name in read_argv(pid)}
            return {**{name: pid for pid, name in names.items()}, "launcher": server.process.pid}
        server.wait_until_ready()
        if self.phase != "idle":
            is_cut = self.expected.streams == CUT
            self.load = server.start_load(NUM_STREAMS, max_new_tokens=900 if is_cut else 100)
        if self.phase == "draining":
            server.process.send_signal(signal.SIGTERM)
            server.wait_for_line(rf"^launcher \| .*{NUM_STREAMS} calls in flight")
        return server.pids

    def assert_streams(self) -> None:
        if self.load:
            assert self.load.join() == [self.expected.streams] * NUM_STREAMS

    def assert_noticed(self, frontend: int, since: float) -> None:
        """Check that the front-end reports the stopped launcher, unless the drain ends first."""

        def has_drained() -> bool:
            return self.phase == "draining" and psutil.Process(frontend).status() == psutil.STATUS_ZOMBIE

        wait_until(lambda: "kill -CONT" in self.live_error() or has_drained(), "the notice")
        assert time.monotonic() - since < NOTICED_S

    def live_error(self) -> str:
        """The error of ``/health/live``, if any."""
        port = re.findall(r"HTTP 127\.0\.0\.1:(\d+)", self.server.stderr)[-1]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health/live", timeout=2).close()
        except urllib.error.HTTPError as error:
            return str(json.loads(error.read())["error"])
        except OSError:
            return ""
        return ""

    def is_live(self) -> bool:
        return not self.live_error()

    def assert_directory(self) -> None:
        """Check that the run directory is gone after a stop, kept otherwise, and without sockets after a failure."""
        run_dir = self.server.run_dir
        match self.expected.exit_code:
            case 0:
                assert run_dir is None
            case 5:
                assert run_dir is not None
                assert not list(run_dir.glob("*.sock"))
            case _:
                assert run_dir is not None


def read_argv(pid: int) -> str:
    with open(f"/proc/{pid}/cmdline") as file:
        return file.read()


@pytest.fixture(scope="module")
def cells(request: pytest.FixtureRequest, start_shared: Callable[..., Any]) -> Iterator[dict[Any, Future[None]]]:
    """Starts the selected cells, a few at a time."""
    wanted = [item.callspec.params["cell"] for item in request.session.items if item.name.startswith("test_cell[")]

    def run(cell: tuple[str, signal.Signals, str]) -> None:
        Cell(*cell, start_shared).run()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {cell: pool.submit(run, cell) for cell in wanted}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("cell", CELLS)
def test_cell(cells: dict[Any, Future[None]], cell: tuple[str, signal.Signals, str]):
    cells[cell].result()
