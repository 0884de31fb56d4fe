"""What docs/client.md and docs/tls.md tell readers to type works as written, except for the ports."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pages import ROOT, at_ports, read_blocks

BIN = Path(sys.executable).parent
TIMEOUT_S = 60
SHIPPED_STUBS = "Python with the shipped stubs"
WITH_TLS = "Python with TLS"
OWN_STUBS = "Python without this package"
ENVIRON = {"TGIS_REHEARSE": "true", "TGIS_HOST": "127.0.0.1"}  # of servers


def run(command: list[str | Path], directory: Path, **environ: str) -> str:
    """The output of a command that succeeds."""
    path = f"{BIN}:{os.environ['PATH']}"
    kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    result = subprocess.run(
        command,
        cwd=directory,
        env=kept | {"PATH": path} | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def run_shell(text: str, directory: Path, **environ: str) -> str:
    return run(["bash", "-eu", "-c", text], directory, **environ)


def run_python(text: str, directory: Path) -> str:
    return run([sys.executable, "-c", text], directory)


def read_python(section: str, server) -> list[str]:
    """The Python blocks of a section of client.md, for this server."""
    return [
        at_ports(one.text, *ports_of(server)) for one in read_blocks("client.md", "python") if one.section == section
    ]


def ports_of(server) -> tuple[int, int]:
    return tuple(int(server.facts[name].rpartition(":")[2]) for name in ("grpc", "http"))


def test_every_section_with_snippets_is_run():
    sections = {block.section for block in read_blocks("client.md", "python", "sh")}

    assert sections == {"From a shell", SHIPPED_STUBS, WITH_TLS, OWN_STUBS}


@pytest.fixture(scope="module")
def plain(start_shared):
    return start_shared(**ENVIRON).wait_until_ready()


def test_the_commands_for_a_shell_work(plain, tmp_path: Path):
    [block] = [block for block in read_blocks("client.md", "sh") if block.section == "From a shell"]

    health, answer, tokens = run_shell(block.text, tmp_path, TGIS_URL=plain.address).splitlines()

    assert health == "ready"
    assert answer
    assert "Once" in tokens


def test_the_snippets_with_the_shipped_stubs_work(plain, tmp_path: Path):
    output = run_python("\n".join(read_python(SHIPPED_STUBS, plain)), tmp_path)

    assert "seed 7" in output
    assert "INVALID_ARGUMENT temperature must be >= 0.05" in output
    assert "\norder-4711\n" in output


def test_stubs_made_from_the_proto_and_reflection_work(plain, tmp_path: Path):
    (tmp_path / "proto").mkdir()
    shutil.copy(ROOT / "proto" / "generation.proto", tmp_path / "proto")
    [protoc] = [block for block in read_blocks("client.md", "sh") if block.section == OWN_STUBS]
    own_stubs, reflection = read_python(OWN_STUBS, plain)

    run_shell(protoc.text, tmp_path)

    assert run_python(own_stubs, tmp_path).strip()
    assert run_python(reflection, tmp_path).strip()


@dataclass
class Walk:
    """The commands of tls.md, run in order, with a server that requires client certificates at the end."""

    directory: Path
    server: Any
    outputs: list[str]  # of all commands but the launches


@pytest.fixture(scope="module")
def walk(start_shared, tmp_path_factory) -> Walk:
    directory, server, outputs = tmp_path_factory.mktemp("tls"), None, []
    for block in read_blocks("tls.md", "sh"):
        if block.text.startswith("tgis launch"):
            if server:
                assert server.stop() == 0
            server = start_shared(*shlex.split(block.text)[2:], cwd=directory, **ENVIRON).wait_until_ready()
        else:
            outputs.append(run_shell(at_ports(block.text, *(ports_of(server) if server else (0, 0))), directory))
    return Walk(directory, server, outputs)


def test_the_walk_to_tls_ends_with_a_server_that_is_ready_for_clients_with_certificates(walk: Walk):
    assert "for tgis.example.com, localhost, 127.0.0.1" in "".join(walk.outputs)  # tgis doctor
    assert walk.outputs[-2].splitlines()[-1] == "ready"  # tgis health, over mutual TLS


def test_the_server_of_the_walk_refuses_clients_without_a_certificate(walk: Walk):
    result = walk.server.run("generate", "x", "--ca", str(walk.directory / "ca.crt"))

    assert result.returncode == 1
    assert "requires a client certificate" in result.stderr


def test_the_renewal_of_the_walk_shows_the_certificate_that_the_log_names(walk: Walk):
    fingerprint = walk.outputs[-1].rpartition("Fingerprint=")[2].strip()

    walk.server.wait_for_line(f"TLS certificate tls.crt was reloaded: SHA-256 {fingerprint}")


def test_the_snippets_with_tls_work_with_the_files_of_the_walk(walk: Walk):
    output = run_python("\n".join(read_python(WITH_TLS, walk.server)), walk.directory)

    assert output.split() == ["1024", "1024"]
