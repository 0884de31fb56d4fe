"""Memory and CPU time of the processes of a server on this machine."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field

import psutil

from tgis_cli.clients.address import Address
from tgis_cli.clients.metrics_source import find_local_server
from tgis_cli.runs.memory import measure_process
from tgis_cli.runs.servers import RunningServer, find_server
from tgis_server.words.processes import LAUNCHER

MEMORY_EVERY_S = 5.0  # the kernel walks all pages to divide the shared ones among processes


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """One process at this moment."""

    name: str  # "launcher", "frontend", "shard-0"
    pid: int
    memory_bytes: int
    cpu_share: float  # of one CPU, since the last look; above 1 with several threads


@dataclass(slots=True)
class Processes:
    """The processes of one server, as long as its launcher runs. None if it is on another machine or another user's."""

    server: RunningServer | None
    _known: dict[int, psutil.Process] = field(default_factory=dict)  # CPU time is counted between two looks
    _memory: dict[int, int] = field(default_factory=dict)
    _measured_at: float = float("-inf")

    @classmethod
    def find(cls, address: Address) -> Processes:
        return cls(find_local_server(address))

    def look(self) -> list[ServerProcess]:
        if self.server is None:
            return []
        server = find_server(self.server.pid)  # again: after a restart it has other processes
        pids = {LAUNCHER: self.server.pid} | (server.pids if server else {})
        if (now := time.monotonic()) - self._measured_at >= MEMORY_EVERY_S or pids.values() - self._memory.keys():
            self._measured_at, self._memory = now, {}
        found = [self._measure(name, pid) for name, pid in pids.items()]
        return [process for process in found if process is not None]

    def _measure(self, name: str, pid: int) -> ServerProcess | None:
        with contextlib.suppress(psutil.Error, OSError):
            process = self._known.setdefault(pid, psutil.Process(pid))
            if not process.is_running():  # another process has this pid now
                del self._known[pid]
                return None
            if pid not in self._memory:
                self._memory[pid] = measure_process(process)
            return ServerProcess(name, pid, self._memory[pid], process.cpu_percent() / 100)
        return None
