"""The processes of one measurement of the engine: started as a launcher starts its shards, read, and ended."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tgis_cli.bench.engine.work import Plan
from tgis_cli.causes.cause import Exit, find_cause, read_records
from tgis_cli.causes.oom import OomWatch
from tgis_cli.own_server.launcher import KINDS
from tgis_cli.supervisor.environment import child_environment
from tgis_server.errors import GroupFailed, TgisError
from tgis_server.host.interpreter import make_command
from tgis_server.run import Run
from tgis_server.words.processes import shard_name

LEADER_MODULE, FOLLOWER_MODULE = "tgis_cli.bench.engine.leader", "tgis_server.child"
LOOK_S = 0.2  # between looks at the processes
CAUSE_S = 0.5  # for the process that failed first to report why
END_S = 5.0  # for followers to end after the leader has told them to
TAIL_LINES = 200


@dataclass(slots=True)
class Group:
    """The shards of a run. No process is left after the block."""

    run: Run
    plan: Plan
    environ: Mapping[str, str]
    num_profiled: int = 0  # rows of the profile that the leader prints; 0: it measures
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _report: int = -1
    _oom: OomWatch = field(default_factory=OomWatch)

    def __enter__(self) -> Group:
        with self._stack:
            death_read, death_write = os.pipe()  # never written to: its end tells the children that we have ended
            self._stack.callback(os.close, death_write)
            self._report, report_write = os.pipe()
            self._stack.callback(os.close, self._report)
            self._stack.callback(self._kill)
            try:
                for rank in range(self.run.num_shard):
                    self._start(rank, death_read, report_write)
            finally:
                os.close(death_read)
                os.close(report_write)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def events(self, is_stopped: Callable[[], bool]) -> Iterator[dict[str, Any]]:
        """What the leader reports, until it has measured everything or ``is_stopped``.

        Raises:
            TgisError: a process has failed; with its cause.
        """
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._report, selectors.EVENT_READ)
            while not is_stopped():
                if not selector.select(LOOK_S):
                    self._check()
                    continue
                data = os.read(self._report, 1 << 16)
                if not data:
                    return self._wait()
                *lines, rest = (rest + data).split(b"\n")
                yield from map(json.loads, lines)
        return None

    def _start(self, rank: int, death_fd: int, report_fd: int) -> None:
        name = shard_name(rank)
        words = [name, "--run", str(self.run.file), "--death-fd", str(death_fd), "--parent", str(os.getpid())]
        descriptors = [death_fd]
        if rank == 0:
            words += ["--report", str(report_fd), "--profile", str(self.num_profiled)]
            words += ["--plan", json.dumps(self.plan.as_dict())]
            descriptors.append(report_fd)
        with self._log(name).open("wb") as log:
            self._processes[name] = subprocess.Popen(
                make_command("-m", FOLLOWER_MODULE if rank else LEADER_MODULE, *words),
                env=child_environment(self.run, rank, self.environ),
                stdin=subprocess.DEVNULL,
                stdout=None if rank == 0 and self.num_profiled else log,
                stderr=log,
                pass_fds=descriptors,
                process_group=0,  # Ctrl-C reaches only this process
            )

    def _check(self) -> None:
        """
        Raises:
            TgisError: a process has ended too early.
        """
        leader, *followers = self._processes.values()
        self._oom.sample({name: process.pid for name, process in self._processes.items()})
        if leader.poll() or any(follower.poll() is not None for follower in followers if leader.poll() is None):
            raise self._explain()

    def _wait(self) -> None:
        """Wait until all processes have ended; the leader has closed its pipe.

        Raises:
            TgisError: one of them has failed.
        """
        deadline = time.monotonic() + END_S
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        if any(process.poll() for process in self._processes.values()):
            raise self._explain()

    def _explain(self) -> TgisError:
        """The error of the process that failed first."""
        ended_at = time.time()
        time.sleep(CAUSE_S)
        self._oom.sample({})
        exits = [
            Exit(name, status, ended_at, self._read_tail(name), str(self._log(name)))
            for name, process in self._processes.items()
            if (status := process.poll())  # those that ended normally are not the cause
        ]
        records = read_records(self.run.errors_dir)
        cause = find_cause(exits, records, self._oom.evidence(), num_shard=self.run.num_shard)
        return KINDS.get(cause.exit_code, GroupFailed)(cause.sentence)

    def _kill(self) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _log(self, name: str) -> Path:
        return self.run.run_dir / f"{name}.out"

    def _read_tail(self, name: str) -> list[str]:
        return self._log(name).read_text(errors="replace").splitlines()[-TAIL_LINES:]
