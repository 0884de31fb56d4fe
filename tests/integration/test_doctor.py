"""`tgis doctor` as a process: on an ordinary machine, and confined like a container."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tgis_server

Start = Callable[..., Any]  # starts a Server of conftest.py

BIN = Path(sys.executable).parent
DEMO_MODEL = Path(tgis_server.__file__).parent / "demo_model"
UID = 1000730000
CONFINED = (
    *(str(BIN / "python"), str(Path(__file__).with_name("hostile.py"))),
    *("{base}", str(UID), "env", "-u", "HOME", "-u", "TMPDIR", "PYTHONDONTWRITEBYTECODE=1"),
)
TIMEOUT_S = 30.0


def run(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.run(
        words,
        env=kept | {"GRPC_PORT": "0", "PORT": "0"} | environ,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def run_doctor(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return run(str(BIN / "tgis"), "doctor", *arguments, **environ)


@pytest.mark.serial
def test_an_ordinary_machine_passes_with_the_demo_model_within_seconds(tmp_path: Path):
    started_at = time.monotonic()

    done = run_doctor(str(DEMO_MODEL), "--json", HF_HUB_CACHE=str(tmp_path))

    report = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert report["summary"]["fail"] == 0
    assert {verdict["group"] for verdict in report["verdicts"]} == {
        *("Devices", "Limits", "Storage", "Environment", "Network", "Libraries", "Model")
    }
    assert [verdict for verdict in report["verdicts"] if " crashed: " in verdict["sentence"]] == []
    assert time.monotonic() - started_at < 10


def test_a_user_without_a_name_a_home_or_rights_passes_on_a_read_only_root(tmp_path: Path):
    confined = [word.format(base=tmp_path) for word in CONFINED]
    trial = run(*confined, "true")
    if trial.returncode:
        pytest.skip(f"private mounts are not permitted here: {trial.stderr.splitlines()[-1]}")

    done = run(*confined, str(BIN / "tgis"), "doctor", "--json", "--bundle", "/tmp/report.tgz")

    sentences = {verdict["check"]: verdict["sentence"] for verdict in json.loads(done.stdout)["verdicts"]}
    assert done.returncode == 0
    assert sentences["user"].startswith(f"User {UID} (no name); HOME is not set; the root file system ")
    assert sentences["cache"] == f"There is no cache: HOME is not set, and user {UID} has no home directory."
    assert sentences["run-dir"].endswith("mounted noexec, which is fine.")
    assert sentences["shared-memory"].startswith("/dev/shm has 64 MiB")
    assert " crashed: " not in done.stdout
    with tarfile.open(tmp_path / "report.tgz") as archive:
        assert "tgis-report/doctor.json" in archive.getnames()


def test_every_problem_of_a_broken_machine_is_reported(tmp_path: Path):
    broken = tmp_path / "broken.pem"
    broken.write_text("no PEM")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run_doctor(
            *("no/model", "--tls-cert-path", str(broken), "--tls-key-path", str(broken), "--run-dir", "/nowhere"),
            PORT="tcp://10.0.0.1:80",
            GRPC_PORT=str(taken.getsockname()[1]),
            HF_HUB_CACHE=str(tmp_path),
        )

    failures = [line.removeprefix("  FAIL  ") for line in done.stdout.splitlines() if line.startswith("  FAIL  ")]
    assert [" ".join(failure.split()[:3]) for failure in failures] == [
        "The run directory",
        "The variable PORT",
        f"Port {taken_port(failures)} is",
        "TLS certificate " + str(broken),
        "Model no/model not",
    ]
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.endswith("5 failures\n")


def taken_port(failures: list[str]) -> str:
    return failures[2].split()[1]


def test_the_ports_of_a_running_server_are_not_failures(launch: Start):
    server = launch("--rehearse", "--host", "127.0.0.1")
    ports = {"GRPC_PORT": server.address.rpartition(":")[2], "TGIS_HOST": "127.0.0.1", "TGIS_RUN_DIR": str(server.base)}

    done = run_doctor(**ports)

    assert done.returncode == 0
    assert "is used by your server of demo (pid " in done.stdout
    assert f"Stop it with `tgis stop {ports['GRPC_PORT']}`, or choose" in done.stdout
    assert f"A server is running: demo at {server.address}, in {server.run_dir}." in done.stdout
