"""Running servers as data, for the commands that look for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tgis_cli.runs.servers import RunningServer, ServerTls

TLS = ServerTls(Path("/tls/server.pem"), ("tgis.example.com",), demands_client_certificate=False)


def make_running(**changes: Any) -> RunningServer:
    """A rehearsal on the default ports of this machine, with process id 100."""
    facts: dict[str, Any] = {
        "pid": 100,
        "door": Path("/proc/100/fd/7"),
        "run_dir": "/tmp/tgis-abc",
        "model": "demo",
        "label": "rehearsal",
        "has_been_ready": True,
        "is_in_this_network": True,
        "host": "127.0.0.1",
        "grpc_port": 8033,
        "http_port": 3000,
        "tls": None,
        "http_tls": "off",
        "start_ticks": 1,
        "drain_s": 90.0,
        "shard_sockets": (Path("/proc/100/fd/7/shard-0.sock"),),
        "pids": {"frontend": 102, "shard-0": 101},
    }
    return RunningServer(**facts | changes)
