"""Running servers as data and as run directories, for the commands that look for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tgis_cli.runs.run_dir import make_run_dir
from tgis_cli.runs.servers import RunningServer, ServerTls

TLS = ServerTls(Path("/tls/server.pem"), ("tgis.example.com",), demands_client_certificate=False)


def make_running(**changes: Any) -> RunningServer:
    """A server on the default ports of this machine, with process id 100."""
    facts: dict[str, Any] = {
        "pid": 100,
        "door": Path("/proc/100/fd/7"),
        "run_dir": "/tmp/tgis-abc",
        "model": "demo",
        "label": "",
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


CONFIG = {
    "host": "0.0.0.0",
    "grpc_port": 8033,
    "port": 0,
    "tls_cert_path": None,
    "tls_client_ca_cert_path": None,
    "http_tls": "off",
    "drain_delay": 1.0,
    "drain_timeout": 90.0,
    "shard_uds_path": None,
}


def make_run(parent: Path, *, ready: dict[str, Any] | None = None, **config: Any) -> Path:
    """A run directory that is complete, but for a launcher; ready if there are facts for ``ready.json``."""
    run_dir = make_run_dir(parent)
    run = {"model_id": "org/name", "model_dir": "/models/name", "label": "", "num_shard": 2, "config": CONFIG | config}
    (run_dir / "serve.json").write_text(json.dumps(run))
    if ready is not None:
        (run_dir / "ready.json").write_text(json.dumps(ready))
    return run_dir
