"""Dependencies between the rooms of the front-end."""

from __future__ import annotations

import ast
from pathlib import Path

import tgis_server.frontend

FRONTEND_NAME = "tgis_server.frontend"
FRONTEND = Path(tgis_server.frontend.__file__).parent
OTHERS = {
    "entry",  # assembles everything
    "launcher_socket",  # the launcher's own door
    "shard_health",  # calls the shards
    "tls",  # certificates of every port
    "metrics",  # reads the statistics of the engine's steps
}
MESSAGES = ("grpc", "google.protobuf", "tgis_server.wire.generation_pb2", "tgis_server.wire.shard_pb2")
LOWER_ROOMS = ("metrics", "text", "transport")
ROOMS = (*LOWER_ROOMS, "grpc_api", "http_api")


def imports_of(file: Path) -> set[str]:
    """The names of everything that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Import():
                names |= {alias.name for alias in node.names}
            case ast.ImportFrom():
                names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def imports_of_room(room: str) -> set[str]:
    files = list((FRONTEND / room).glob("*.py"))
    assert files, room
    return set().union(*map(imports_of, files))


def test_only_doors_import_protobuf_or_grpc():
    files = [file for file in FRONTEND.rglob("*.py") if "grpc_api" not in file.parts and file.stem not in OTHERS]
    behind = {file.stem: imports_of(file) for file in files}
    forbidden = (*MESSAGES, "tgis_server.frontend.grpc_api")

    violations = {
        name: found
        for name, imported in behind.items()
        if (found := {one for one in imported if any(one == f or one.startswith(f"{f}.") for f in forbidden)})
    }

    assert {"generation", "output", "validation", "router", "tracing", "request_log", "request"} <= behind.keys()
    assert violations == {}


def test_no_room_imports_the_composition_root():
    for room in ROOMS:
        assert f"{FRONTEND_NAME}.entry" not in imports_of_room(room), room


def test_metrics_text_and_transport_import_nothing_of_the_front_end_but_each_other():
    allowed = tuple(f"{FRONTEND_NAME}.{room}" for room in LOWER_ROOMS)

    for room in LOWER_ROOMS:
        inside = {name for name in imports_of_room(room) if name.startswith(FRONTEND_NAME)}
        assert {name for name in inside if not name.startswith(allowed)} == set(), room
