"""Servers that the suite starts for itself: `tgis launch` on free ports, ended when the tests are over."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READY_S = 120.0
STOP_S = 20.0
KEPT_ENVIRON = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR", "VIRTUAL_ENV")

CALM = {"OMP_WAIT_POLICY": "passive"}  # threads that wait sleep: three servers share the cores with other work


@dataclass
class Launched:
    """A `tgis launch` under way."""

    base: Path  # its run directory is made in here
    process: subprocess.Popen[bytes]

    def wait_until_ready(self) -> dict[str, Any]:
        """What the launcher writes when it serves: the addresses among others."""
        deadline = time.monotonic() + READY_S
        while not (files := list(self.base.glob("tgis-*/ready.json"))):
            output = (self.base / "output").read_text()
            assert self.process.poll() is None, f"the launcher ended:\n{output}"
            assert time.monotonic() < deadline, f"the server was not ready within {READY_S} s:\n{output}"
            time.sleep(0.02)
        facts: dict[str, Any] = json.loads(files[0].read_text())
        return facts

    def ask_to_stop(self) -> None:
        """Once to drain and once more to hurry."""
        for _ in range(2):
            self.process.send_signal(signal.SIGTERM)
            time.sleep(0.05)

    def wait_until_stopped(self) -> None:
        """The launcher ends what it started."""
        try:
            self.process.wait(STOP_S)
        finally:
            self.process.kill()
            self.process.wait()
            shutil.rmtree(self.base, ignore_errors=True)


def launch(*options: str) -> Launched:
    """Start `tgis launch` with these options; the last of equal ones counts."""
    base = Path(tempfile.mkdtemp(prefix="t-"))  # short, as socket paths are
    command: Sequence[str | Path] = [
        Path(sys.executable).parent / "tgis",
        *("launch", "--host", "127.0.0.1", "--grpc-port", "0", "--port", "0", *options),
    ]
    environ = {name: value for name, value in os.environ.items() if name in KEPT_ENVIRON}
    with (base / "output").open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environ | {"TGIS_RUN_DIR": str(base)} | CALM,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return Launched(base, process)
