"""Running servers as ``tgis ps`` shows them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tgis_cli.clients.server_status import State, Status, ask_all
from tgis_cli.runs.memory import measure_memory
from tgis_cli.runs.servers import RunningServer, find_running
from tgis_server.words.control_characters import escape_controls
from tgis_server.words.sizes import format_bytes

COLUMNS = ("MODEL", "GRPC", "HTTP", "AGE", "MEMORY", "PID", "STATE")
RIGHT = ("AGE", "MEMORY", "PID")
GAP = "  "


@dataclass(frozen=True, slots=True)
class Row:
    """One server, its status and its memory."""

    server: RunningServer
    status: Status
    memory_bytes: int

    def cells(self) -> list[str]:
        server = self.server
        secured = " TLS" if server.tls else ""
        return [
            server.title,
            f"{server.grpc_port or '-'}{secured}",
            f"{server.http_port or '-'}{' TLS' if server.http_tls != 'off' else ''}",
            format_age(server.age_s),
            format_bytes(self.memory_bytes),
            str(server.pid),
            str(self.status),
        ]

    def as_dict(self) -> dict[str, Any]:
        server, status = self.server, self.status
        tls = None
        if server.tls is not None:
            tls = {
                "certificate": str(server.tls.certificate),
                "names": list(server.tls.names),
                "demands_client_certificate": server.tls.demands_client_certificate,
            }
        return {
            "model": server.model,
            "label": server.label,
            "state": str(status.state),
            "phase": status.phase or None,
            "share": None if status.share is None else round(status.share, 4),
            "calls_in_flight": status.num_calls,
            "error": status.text or None,
            "grpc": server.grpc,
            "http": server.http,
            "grpc_port": server.grpc_port,
            "http_port": server.http_port,
            "tls": tls,
            "http_tls": server.http_tls,
            "pid": server.pid,
            "pids": {} if status.state is State.RESTARTING else server.pids,
            "started_at": round(time.time() - server.age_s, 1),
            "age_s": round(server.age_s, 1),
            "memory_bytes": self.memory_bytes,
            "run_dir": server.run_dir,
        }


def survey_servers() -> list[Row]:
    """All running servers of this user with their states, oldest first."""
    servers = find_running()
    rows = zip(servers, ask_all(servers), strict=True)
    return [Row(server, status, measure_memory(server.pid)) for server, status in rows if server.is_alive]


def format_age(seconds: float) -> str:
    """``12s``, ``3m``, ``5h``, ``9d``: the largest unit of which there are at least two, or seconds."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def describe_rows(rows: Sequence[Row], width: int | None) -> list[str]:
    """A line per server under a line of titles.

    Args:
        width: the terminal's width, or ``None`` if lines may have any length. If a server's line would be longer, its
            model is on a line of its own, so that nothing is cut.
    """
    table = [list(COLUMNS), *([escape_controls(cell) for cell in row.cells()] for row in rows)]
    widths = [max(len(cells[index]) for cells in table) for index in range(1, len(COLUMNS))]
    room = None if width is None else width - sum(widths) - len(GAP) * len(widths)
    longest = max((len(cells[0]) for cells in table if room is None or len(cells[0]) <= room), default=0)
    lines = []
    for cells in table:
        model, rest = cells[0], align(cells[1:], widths)
        if len(model) > longest:
            lines.append(model)
            model = ""
        lines.append(f"{model:<{longest}}{GAP}{rest}".rstrip())
    return lines


def align(cells: list[str], widths: list[int]) -> str:
    return GAP.join(
        f"{cell:>{width}}" if name in RIGHT else f"{cell:<{width}}"
        for name, cell, width in zip(COLUMNS[1:], cells, widths, strict=True)
    )
