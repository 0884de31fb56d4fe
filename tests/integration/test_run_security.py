"""Everything that a run creates is private to its user: directory, files, sockets, addresses and secrets."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

Start = Callable[..., Any]  # starts a Server of conftest.py

PASSWORD = "canary-password"
LOOPBACK = "127.0.0.1"


@dataclass
class Guarded:
    """A server that is watched while it starts."""

    server: Any
    shared: Path  # a world-writable directory with the shards' sockets
    temporary: Path  # its TMPDIR
    key: str  # a line of its TLS key
    early_modes: set[int]  # of sockets before the server was ready

    @property
    def children(self) -> dict[str, psutil.Process]:
        return {name: psutil.Process(pid) for name, pid in self.server.facts["pids"].items()}


@pytest.fixture(scope="module")
def guarded(start_shared: Start) -> Iterator[Guarded]:
    with tempfile.TemporaryDirectory(prefix="t-") as name:
        shared, temporary = Path(name, "shared"), Path(name, "tmp")
        temporary.mkdir()
        shared.mkdir()
        shared.chmod(0o1777)
        key = make_certificate(Path(name))
        with umask(0):
            server = start_shared(
                *("--rehearse", "--num-shard", "2", "--host", LOOPBACK, "--shard-uds-path", f"{shared}/tgis"),
                *("--tls-cert-path", f"{name}/cert.pem", "--tls-key-path", f"{name}/key.pem"),
                OTLP_ENDPOINT=f"http://user:{PASSWORD}@{LOOPBACK}:9",
                TMPDIR=str(temporary),
            )
        early_modes: set[int] = set()
        is_starting = True
        while is_starting:
            is_starting = server.process.poll() is None and not find(server.base, "ready.json")
            early_modes |= {mode_of(path) for path in (*find(server.base, "*.sock"), *find(shared, "tgis-*"))}
        yield Guarded(server.wait_until_ready(), shared, temporary, key, early_modes)


def make_certificate(directory: Path) -> str:
    words = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -subj /CN=localhost"
    subprocess.run(words.split(), cwd=directory, check=True, capture_output=True)
    return (directory / "key.pem").read_text().splitlines()[1]


@contextmanager
def umask(mask: int) -> Iterator[None]:
    previous = os.umask(mask)
    yield
    os.umask(previous)


def find(directory: Path, pattern: str) -> list[Path]:
    return list(directory.rglob(pattern))


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode) if path.exists() else 0


def listeners(process: psutil.Process) -> list[tuple[str, int]]:
    """Addresses on which a process listens."""
    connections = process.net_connections(kind="inet")
    found = [one.laddr for one in connections if one.status == psutil.CONN_LISTEN]
    return sorted((host.removeprefix("::ffff:"), port) for host, port in found)


def test_the_directory_its_files_and_the_sockets_are_private(guarded: Guarded):
    run_dir = guarded.server.run_dir
    directories = {path for path in (run_dir, *find(run_dir, "*")) if path.is_dir()}
    files = {*find(run_dir, "*"), *guarded.shared.iterdir()} - directories

    assert {"serve.json", "ready.json", "frontend.sock", "plan.sock", "tgis-0", "tgis-1"} <= {f.name for f in files}
    assert {mode_of(path) for path in directories} == {0o700}
    assert {mode_of(path) for path in files} == {0o600}
    assert {path.stat().st_uid for path in (*directories, *files)} == {os.getuid()}


def test_other_users_can_never_connect_to_a_socket(guarded: Guarded):
    assert guarded.early_modes
    assert {mode & 0o077 for mode in guarded.early_modes} == {0}


def test_the_server_listens_only_on_the_configured_addresses(guarded: Guarded):
    facts = guarded.server.facts
    addresses = sorted((LOOPBACK, int(facts[name].rsplit(":", 1)[1])) for name in ("grpc", "http"))
    found = {name: listeners(process) for name, process in guarded.children.items()}

    assert found == {"shard-0": [], "shard-1": [], "frontend": addresses}
    assert listeners(psutil.Process(guarded.server.process.pid)) == []


def test_nothing_is_created_outside_the_run_directory(guarded: Guarded):
    assert list(guarded.temporary.iterdir()) == []
    assert [path.name for path in guarded.server.base.iterdir() if path.is_dir()] == [guarded.server.run_dir.name]


def test_credentials_and_keys_are_only_where_they_are_needed(guarded: Guarded):
    children = guarded.children
    environs = {name: " ".join(process.environ().values()) for name, process in children.items()}
    shown = [" ".join(process.cmdline()) for process in children.values()]
    files = [path.read_text() for path in find(guarded.server.base, "*") if path.is_file()]

    assert [name for name, environ in environs.items() if PASSWORD in environ] == ["frontend"]
    assert [text for text in (*shown, *files) if PASSWORD in text] == []
    assert [text for text in (*shown, *files, *environs.values()) if guarded.key in text] == []


def test_a_failed_run_leaves_no_socket_and_only_private_files(guarded: Guarded):
    run_dir = guarded.server.run_dir
    os.kill(guarded.server.facts["pids"]["shard-1"], signal.SIGKILL)

    assert guarded.server.wait() == 5
    assert find(run_dir, "*.sock") + list(guarded.shared.iterdir()) + list(guarded.temporary.iterdir()) == []
    assert {mode_of(path) for path in find(run_dir, "*") if path.is_file()} == {0o600}


def test_native_shards_connect_only_over_loopback_and_ignore_strangers_there(launch: Start):
    server = launch("--num-shard", "2", "--max-sequence-length", "64")
    addresses = [address for rank in (0, 1) for address in listeners(psutil.Process(server.pids[f"shard-{rank}"]))]
    for address in addresses:
        with socket.create_connection(address) as stranger:
            stranger.sendall(b"\0" * 64)

    assert [host for host, _ in addresses] == [LOOPBACK, LOOPBACK]
    assert server.run("generate", "Once upon a time").returncode == 0
