"""Containers for the trial of the image: `confine.py` in namespaces, and commands like those of `kubectl exec`."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgis_server.host.interpreter import make_command

UID = 1000730000  # as OpenShift assigns them
CLONE_NEWNET = 0x40000000
NAMESPACES = ("--mount", "--pid", "--ipc", "--uts")
# Whatever ends the trial also ends its containers.
WITH_PARENT = ("/usr/bin/setpriv", "--pdeathsig", "KILL")


@dataclass(frozen=True)
class Image:
    """A mounted image, and what its configuration says."""

    root: Path
    settings: dict[str, Any]
    environ: dict[str, str]


class Running:
    """A container that is running, or has ended."""

    def __init__(
        self, image: Image, process: subprocess.Popen[bytes], folder: Path, environ: Mapping[str, str]
    ) -> None:
        self.process = process
        self._image, self._folder, self._environ = image, folder, environ

    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    def termination_log(self) -> str:
        return (self._folder / "termination-log").read_text(errors="replace")

    def find_first_process(self) -> int:
        """The process id on this machine."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return int(children.split()[0])

    def identity(self) -> tuple[int, int]:
        """The user and the group of the first process."""
        status = Path(f"/proc/{self.find_first_process()}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        return int(fields["Uid"].split()[0]), int(fields["Gid"].split()[0])

    def signal(self, number: int) -> None:
        os.kill(self.find_first_process(), number)

    def start_inside(self, *command: str) -> subprocess.Popen[str]:
        """Run a command in the container, as `kubectl exec` would."""
        enter = ["/usr/bin/nsenter", "--target", str(self.find_first_process()), "--all", "--root", "--wd"]
        program = f"/opt/tgis/bin/{command[0]}"
        return subprocess.Popen(
            [*WITH_PARENT, *enter, "--setuid", str(UID), "--setgid", "0", program, *command[1:]],
            env=dict(self._environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        process = self.start_inside(*command)
        stdout, stderr = process.communicate(timeout=120)
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)

    def ready(self) -> dict[str, Any]:
        """The answer from /health/ready, asked from outside but in the container's network; empty if not ready."""
        with ThreadPoolExecutor(max_workers=1) as pool:  # a thread can join a network without its process
            return pool.submit(self._ask).result()

    def _ask(self) -> dict[str, Any]:
        try:
            with open(f"/proc/{self.find_first_process()}/ns/net", "rb") as network:
                ctypes.CDLL(None).setns(network.fileno(), CLONE_NEWNET)
            with urllib.request.urlopen("http://127.0.0.1:3000/health/ready", timeout=2) as answer:
                return dict(json.load(answer))
        except (OSError, IndexError):
            return {}

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until a condition holds, at most as long as the container runs."""
        deadline = time.monotonic() + seconds
        while not (holds := condition()) and time.monotonic() < deadline and self.process.poll() is None:
            time.sleep(0.1)
        return holds


@contextmanager
def start(
    image: Image,
    command: Sequence[str],
    *,
    environ: Mapping[str, str] | None = None,
    volumes: Sequence[str] = (),
    has_network: bool = False,
) -> Iterator[Running]:
    """Start a container, and kill it at the end.

    Args:
        has_network: whether it has this machine's network, not only a loopback interface.
    """
    with tempfile.TemporaryDirectory(prefix="tgis-trial-") as place:
        folder = Path(place)
        termination_log = folder / "termination-log"
        termination_log.touch()
        termination_log.chmod(0o666)  # as Kubernetes makes it
        network = [] if has_network else ["--net"]
        mounts = [
            word for volume in (*volumes, f"{termination_log}:/dev/termination-log") for word in ("--volume", volume)
        ]
        confine = [*make_command("-I", str(Path(__file__).with_name("confine.py"))), *mounts]
        confine += ["--own-network"] * (not has_network) + [str(image.root), str(UID)]
        unshare = ["/usr/bin/unshare", *NAMESPACES, *network, "--propagation", "private", "--kill-child", "--fork"]
        own = image.environ | dict(environ or {})
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*WITH_PARENT, *unshare, *confine, *command],
                env=own | {"WORKDIR": image.settings["WorkingDir"]},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            yield Running(image, process, folder, own)
        finally:
            process.kill()
            process.wait()
