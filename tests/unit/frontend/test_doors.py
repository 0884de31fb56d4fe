"""Only doors know the messages of their API: what stands behind them takes requests and gives parts."""

from __future__ import annotations

import ast
from pathlib import Path

import tgis_server.frontend

FRONTEND = Path(tgis_server.frontend.__file__).parent
OTHERS = {
    "entry",  # puts all together
    "launcher_socket",  # the launcher's own door
    "shard_health",  # asks shards for their health
    "tls",  # certificates of every port
    "metrics",  # take over what the engine says of its steps
}
MESSAGES = ("grpc", "google.protobuf", "tgis_server.wire.generation_pb2", "tgis_server.wire.shard_pb2")


def imports_of(file: Path) -> set[str]:
    """Names of everything that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Import():
                names |= {alias.name for alias in node.names}
            case ast.ImportFrom():
                names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def test_behind_the_doors_of_the_front_end_nobody_knows_protobuf_or_grpc():
    files = [file for file in FRONTEND.rglob("*.py") if "grpc_api" not in file.parts and file.stem not in OTHERS]
    behind = {file.stem: imports_of(file) for file in files}
    forbidden = (*MESSAGES, "tgis_server.frontend.grpc_api")

    knowing = {
        name: found
        for name, imported in behind.items()
        if (found := {one for one in imported if any(one == f or one.startswith(f"{f}.") for f in forbidden)})
    }

    assert {"generation", "output", "validation", "router", "tracing", "request_log", "request"} <= behind.keys()
    assert knowing == {}
